"""Calls to a neighbour by HTTP: a deadline, the request's id, problems as exceptions.

products = HttpClient("products", config.products)
async with products:
    page = await products.request("GET", "/api/product?ids=...")
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from market.kit import context
from market.kit.config import HttpUpstream
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.http.pool import ConnectError, ConnectionPool, HttpResponse, ProtocolError
from market.kit.resilience import RETRIES, CircuitBreaker, CircuitOpen, RetryBudget, retry

__all__ = ["ConnectFailed", "HttpClient", "HttpResponse", "quote_ids"]

# A Service's address leads to another pod at each connection, and for about a second after a pod's process died still
# to that one too. Who is refused tries again: seven times, over 0.7 to 1.4 s. That costs a dead neighbour nothing.
_CONNECTS = 7


class ConnectFailed(Unavailable):
    """No connection: the neighbour has not seen the request."""


class HttpClient:
    """Owns a pool of kept-alive connections to one neighbour, with its circuit and its retry budget."""

    def __init__(self, neighbour: str, config: HttpUpstream) -> None:
        self._neighbour = neighbour
        self._url = config.url
        self._seconds = config.timeout_seconds
        self._connections = config.connections
        self._circuit = CircuitBreaker(neighbour, slow_after_seconds=config.timeout_seconds / 2)
        self._budget = RetryBudget(neighbour)
        self._again = RETRIES.labels(neighbour)
        self._pool: ConnectionPool | None = None

    async def __aenter__(self) -> HttpClient:
        self._pool = ConnectionPool(self._url, self._connections)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()

    @property
    def is_open(self) -> bool:
        """Whether calls are refused here, because the neighbour did not answer lately."""
        return self._circuit.is_open

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        idempotent: bool | None = None,
    ) -> HttpResponse:
        """The answer, whatever its status but 502, 503 and 504 without a problem document of ours.

        Raises Unavailable when none came. A call that is idempotent (GET, PUT and DELETE by default) is tried
        again; any call looks for a connection again and again, for about a second, before it is ConnectFailed.
        """
        seconds = seconds or self._seconds
        if idempotent is None:
            idempotent = method != "POST"

        async def call() -> HttpResponse:
            return await self._circuit(lambda: self._connected(method, path, body, headers, seconds))

        return await retry(
            call, budget=self._budget, attempts=3 if idempotent else 1, never=(CircuitOpen, ConnectFailed)
        )

    async def _connected(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, seconds: float
    ) -> HttpResponse:
        # One call for the circuit: of two pods one may be dead, and that is no dead neighbour.
        for attempt in range(1, _CONNECTS + 1):
            try:
                return await self._once(method, path, body, headers, seconds)
            except ConnectFailed:
                pause = random.uniform(0.5, 1) * min(0.4, 0.02 * 2**attempt)
                if attempt == _CONNECTS or context.remaining(seconds) <= pause:
                    raise
                self._again.inc()
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, seconds: float
    ) -> HttpResponse:
        assert self._pool is not None, "use it as a context manager"
        left = context.remaining(seconds)
        if left <= 0:
            raise DeadlineExceeded("the caller's time is over")

        def sent() -> dict[str, str]:
            all = context.outgoing_headers(seconds)
            if body is not None:
                all["content-type"] = "application/json"
            if headers:
                all.update(headers)
            return all

        try:
            answer = await self._pool.request(method, path, sent, body, left)
        except ConnectError as e:
            raise ConnectFailed(f"{self._neighbour} cannot be reached: {e}") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._neighbour} did not answer in time") from None
        except ProtocolError as e:
            raise Unavailable(f"{self._neighbour} broke off: {e}") from None
        if answer.status in (502, 503, 504) and "problem+json" not in answer.headers.get("content-type", ""):
            raise Unavailable(f"{self._neighbour} is not there: {answer.status}")
        return answer


def quote_ids(ids: Any) -> str:
    """Ids as one query value."""
    return ",".join(map(str, ids))
