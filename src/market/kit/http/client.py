"""HTTP calls to an upstream, with deadline, request id, retries and circuit breaker.

async with HttpClient("products", config.products) as products:
    response = await products.request("GET", "/api/product?ids=...")
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType

from market.kit import context
from market.kit.auth.identity import token
from market.kit.config import ForwardedHeader, HttpUpstream
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.http.caller import forwarded_value
from market.kit.http.pool import AcceptSize, ConnectError, ConnectionPool, HttpResponse, ProtocolError, ResponseTooLarge
from market.kit.resilience import RETRIES, CircuitBreaker, CircuitOpen, RetryBudget, retry

__all__ = ["AcceptSize", "HttpClient", "HttpResponse", "ResponseTooLarge", "UpstreamUnreachable", "join_ids"]

# A Kubernetes Service routes each connection to a random pod. For about a second after a crash, this may be the crashed
# pod. So connecting is tried up to seven times, with pauses of 0.7 to 1.4 s in total.
_CONNECT_ATTEMPTS = 7


class UpstreamUnreachable(Unavailable):
    """The connection could not be established, so the upstream has not seen the request."""


class HttpClient:
    """A client for one upstream, with a pool of keep-alive connections, a circuit breaker and a retry budget.

    upstream: the name in metrics and errors.
    forwarded_header: the header in which the address of the current request's client is sent to the upstream. The
        upstream trusts it only from `http.trusted_proxies`. None: the address is not sent.
    forward_token: whether the bearer token of the current request is sent to the upstream, which then checks what its
        owner may do.
    sleep: waits between connection attempts.
    """

    def __init__(
        self,
        upstream: str,
        config: HttpUpstream,
        *,
        forwarded_header: ForwardedHeader | None = None,
        forward_token: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upstream = upstream
        self._url = config.url
        self._timeout_seconds = config.timeout_seconds
        self._max_connections = config.connections
        self._circuit = CircuitBreaker(upstream, ignore_deadlines_below_seconds=config.timeout_seconds / 2)
        self._budget = RetryBudget(upstream)
        self._forwarded_header = forwarded_header
        self._forward_token = forward_token
        self._sleep = sleep
        self._retries = RETRIES.labels(upstream)
        self._pool: ConnectionPool | None = None

    async def __aenter__(self) -> HttpClient:
        self._pool = ConnectionPool(self._url, self._max_connections)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()

    @property
    def circuit_is_open(self) -> bool:
        """Whether the circuit breaker would refuse a call made now."""
        return self._circuit.is_open

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        idempotent: bool | None = None,
        accept_size: AcceptSize | None = None,
    ) -> HttpResponse:
        """Return the response.

        If no connection can be established, connecting is retried for about a second. A request that was sent is
        retried only if it is idempotent.

        timeout_seconds: the timeout of an attempt, by default the configured one. The deadline may shorten it.
        idempotent: by default, True unless the method is POST.
        accept_size: decides whether a body of a given size is read (see AcceptSize). If it returns False or raises an
            exception, reading stops, and the request is not retried. The circuit breaker does not count this as a
            failure.

        Raises CircuitOpen or UpstreamUnreachable if the last attempt did not reach the upstream. Earlier attempts of an
        idempotent request may have reached it. Raises DeadlineExceeded or Unavailable if the outcome is unknown, and
        Unavailable for status 502, 503 or 504 without a problem document. Raises ResponseTooLarge if `accept_size`
        returned False.
        """
        timeout = timeout_seconds or self._timeout_seconds
        if idempotent is None:
            idempotent = method != "POST"

        async def call() -> HttpResponse:
            return await self._circuit(
                lambda: self._connect_and_send(method, path, body, headers, timeout, accept_size)
            )

        return await retry(
            call,
            budget=self._budget,
            attempts=3 if idempotent else 1,
            do_not_retry_on=(CircuitOpen, UpstreamUnreachable),
        )

    async def _connect_and_send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        accept_size: AcceptSize | None,
    ) -> HttpResponse:
        # For the circuit breaker, all attempts are one call, because the upstream is not down if one pod is.
        for attempt in range(1, _CONNECT_ATTEMPTS + 1):
            try:
                return await self._send(method, path, body, headers, timeout, accept_size)
            except UpstreamUnreachable:
                pause = random.uniform(0.5, 1) * min(0.4, 0.02 * 2**attempt)
                if attempt == _CONNECT_ATTEMPTS or context.remaining(timeout) <= pause:
                    raise
                self._retries.inc()
                await self._sleep(pause)
        raise AssertionError("unreachable")

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        accept_size: AcceptSize | None,
    ) -> HttpResponse:
        assert self._pool is not None, "use it as a context manager"
        seconds = context.require_remaining(timeout)

        def current_headers() -> dict[str, str]:
            current = context.outgoing_headers(timeout)
            if self._forwarded_header is not None and (address := context.client_address.get()):
                current[self._forwarded_header] = forwarded_value(self._forwarded_header, address)
            if self._forward_token and (own := token.get()):
                current["authorization"] = f"Bearer {own}"
            if body is not None:
                current["content-type"] = "application/json"
            if headers:
                current.update(headers)
            return current

        try:
            response = await self._pool.request(method, path, current_headers, body, seconds, accept_size)
        except ConnectError as e:
            raise UpstreamUnreachable(f"cannot connect to {self._upstream}: {e}") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._upstream} did not respond in time") from None
        except ProtocolError as e:
            raise Unavailable(f"the connection to {self._upstream} failed: {e}") from None
        if response.status in (502, 503, 504) and "problem+json" not in response.headers.get("content-type", ""):
            raise Unavailable(f"{self._upstream} is unavailable: status {response.status}")
        return response


def join_ids(ids: Iterable[object]) -> str:
    """Return ids as one query value, separated by commas."""
    return ",".join(map(str, ids))
