"""Calls to a neighbour by HTTP: a deadline, the request's id, problems as exceptions.

products = HttpClient("products", config.products)
async with products:
    page = await products.call("GET", "/api/product?ids=...")
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from market.kit import context
from market.kit.config import Remote
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.resilience import Budget, Circuit, retrying


class NotSent(Unavailable):
    """No connection: the neighbour has not seen the request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `status` may be any; 5xx of a dead neighbour are Unavailable only where `call` says so."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class HttpClient:
    """Owns a pool of kept-alive connections to one neighbour, with its circuit and its retry budget."""

    def __init__(self, neighbour: str, config: Remote) -> None:
        self._neighbour = neighbour
        self._base = config.url.rstrip("/")
        self._seconds = config.timeout_seconds
        self._connections = config.connections
        self._circuit = Circuit(neighbour, patience=config.timeout_seconds / 2)
        self._budget = Budget(neighbour)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpClient:
        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60, ttl_dns_cache=10)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers={"User-Agent", "Accept-Encoding"},
        )
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def is_open(self) -> bool:
        """Whether calls are refused here, because the neighbour did not answer lately."""
        return self._circuit.is_open

    async def call(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None,
        seconds: float | None = None, idempotent: bool | None = None,
    ) -> Answer:  # fmt: skip
        """The answer, whatever its status but 502, 503 and 504 without a problem document of ours.

        Raises Unavailable when none came. A call that is idempotent (GET, PUT and DELETE by default) is tried
        again; any call is tried again when it was never sent.
        """
        if idempotent is None:
            idempotent = method != "POST"
        on = (Unavailable,) if idempotent else (NotSent,)
        return await retrying(
            lambda: self._circuit(lambda: self._once(method, path, body, headers, seconds or self._seconds)), budget=self._budget, on=on
        )

    async def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, seconds: float) -> Answer:
        assert self._session is not None, "use it as a context manager"
        left = context.remaining(seconds)
        if left <= 0:
            raise DeadlineExceeded("the caller's time is over")
        sent = context.outgoing(seconds)
        if body is not None:
            sent["content-type"] = "application/json"
        if headers:
            sent.update(headers)
        try:
            async with asyncio.timeout(left):
                async with self._session.request(method, self._base + path, data=body, headers=sent, allow_redirects=False) as response:
                    answer = Answer(response.status, await response.read(), response.headers)
        except aiohttp.ClientConnectorError as e:
            raise NotSent(f"{self._neighbour} cannot be reached: {e.os_error.strerror or e}") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{self._neighbour} did not answer in time") from None
        except (aiohttp.ClientError, OSError) as e:
            raise Unavailable(f"{self._neighbour} broke off: {type(e).__name__}") from None
        if answer.status in (502, 503, 504) and "problem+json" not in answer.headers.get("content-type", ""):
            raise Unavailable(f"{self._neighbour} is not there: {answer.status}")
        return answer


def quote_ids(ids: Any) -> str:
    """Ids as one query value."""
    return ",".join(map(str, ids))
