"""The requests in flight in this process, and the limits on them."""

from __future__ import annotations

from prometheus_client import Gauge

from market.kit.config import Http
from market.kit.errors import Overloaded, TooManyRequests

IN_FLIGHT = Gauge("market_http_requests_in_flight", "HTTP requests in flight.")


class InFlight:
    """Counts the requests in flight, in total and for each caller, and the bytes of their bodies."""

    def __init__(self, config: Http) -> None:
        self._max_requests = config.max_in_flight
        self._max_requests_per_caller = config.max_in_flight_per_caller
        self._max_body_bytes = config.max_in_flight_body_bytes
        self._requests = 0
        # Only the callers that have requests in flight.
        self.requests_by_caller: dict[str, int] = {}
        self._body_bytes = 0

    def add(self, caller: str, body_bytes: int) -> None:
        """Count a request, even if it will be refused. Call `remove` once when it ends."""
        self._requests += 1
        self._body_bytes += body_bytes
        self._change(caller, 1)
        IN_FLIGHT.inc()

    def remove(self, caller: str, body_bytes: int) -> None:
        """Stop counting a request that was added for the caller or reassigned to it."""
        self._requests -= 1
        self._body_bytes -= body_bytes
        self._change(caller, -1)
        IN_FLIGHT.dec()

    def reassign(self, caller: str, new_caller: str) -> None:
        """Count a request of `caller` for `new_caller` instead."""
        self._change(new_caller, 1)
        self._change(caller, -1)

    def check(self, caller: str, body_bytes: int) -> None:
        """Check the limits for a request that has just been added.

        Raises TooManyRequests if the caller has too many requests in flight. Raises Overloaded if there are too many
        requests in flight, or if the request has a body and the bodies in flight are too large in total.
        """
        self.check_caller(caller)
        if self._requests > self._max_requests:
            raise Overloaded("too many requests in flight")
        if body_bytes and self._body_bytes > self._max_body_bytes:
            raise Overloaded("the request bodies in flight exceed the limit on their total size")

    def check_caller(self, caller: str) -> None:
        """Raise TooManyRequests if the caller has too many requests in flight."""
        if self.requests_by_caller[caller] > self._max_requests_per_caller:
            raise TooManyRequests(f"at most {self._max_requests_per_caller} requests from one caller may be in flight")

    def _change(self, caller: str, change: int) -> None:
        count = self.requests_by_caller.get(caller, 0) + change
        if count:
            self.requests_by_caller[caller] = count
        else:
            del self.requests_by_caller[caller]
