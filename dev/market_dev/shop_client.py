"""A client of the shop's public API that retries with the same idempotency key until there is a final response.

async with ShopClient.at(port_base=8080, url=None) as shop:
    product = await shop.create_product(body, key="import:85123A")
    order = await shop.place_order(body, key="536365")
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from market.kit.errors import Unavailable
from market_dev.stack.topology import DEFAULT_DATA, LAST_PORT_BASE, ports
from market_dev.tokens import Credentials

if TYPE_CHECKING:
    from market.kit.auth.service_tokens import ServiceTokens

PRODUCTS, ORDERS = "/api/product", "/api/order"
# What an Idempotency-Key may contain unencoded.
_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
# The deadline of requesting a token.
_TOKEN_SECONDS = 10.0
# Statuses that leave the outcome open: the same request may be repeated.
_RETRYABLE = frozenset([408, 425, 429, 502, 503, 504])


class ShopUnavailable(Exception):
    """No final response in time. The outcome is unknown, so the request should be repeated with the same key."""


class ShopNotRunning(ShopUnavailable):
    """The first request got no response; nothing was sent before it."""


class InvalidAddress(Exception):
    """The address or the port base is not that of a shop."""


class SignInRequired(Exception):
    """The shop requires sign-in, and there are no credentials, or it does not accept them."""


class RequestRejected(Exception):
    """A final response other than a success: `status`, the problem's `kind` (its type without prefix) and `detail`."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Created:
    """The `id` of what was created; `replayed`: an earlier request with the same key had created it."""

    id: str
    replayed: bool


def idempotency_key(text: str) -> str:
    """Return the text as an Idempotency-Key: everything but visible ASCII is percent-encoded."""
    return quote(text, safe=_VISIBLE)


class ShopClient:
    """Owns keep-alive connections; a request is repeated for up to `retry_seconds`. Use it as a context manager."""

    def __init__(
        self,
        products: str,
        orders: str,
        *,
        max_connections: int = 64,
        retry_seconds: float = 60.0,
        credentials: Credentials | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`products` and `orders` are base URLs; `max_connections` is per host; `sleep` waits between attempts.

        credentials: of this program, for a shop that requires sign-in
        """
        self.products = products.rstrip("/")
        self.orders = orders.rstrip("/")
        # How often a request was repeated, for reports.
        self.retries = 0
        self._max_connections = max_connections
        self._retry_seconds = retry_seconds
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._credentials = credentials
        self._tokens: ServiceTokens | None = None
        self._exit_stack = AsyncExitStack()

    @classmethod
    def at(
        cls,
        *,
        port_base: int,
        url: str | None,
        data: Path = DEFAULT_DATA,
        environ: Mapping[str, str] = os.environ,
        max_connections: int = 64,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> ShopClient:
        """Return a client of the shop at one public address, or of a local stack if `url` is None.

        It signs in with the credentials in the environment, or with those in the data directory of the local stack, if
        there are any. Raises InvalidAddress, SignInFailed.
        """
        credentials = Credentials.find(data, port_base, url, environ)
        if url is None:
            if not 1 <= port_base <= LAST_PORT_BASE:
                raise InvalidAddress(f"the port base must be between 1 and {LAST_PORT_BASE}, got {port_base}")
            local = ports(port_base)
            products, orders = (f"http://127.0.0.1:{local[name]}" for name in ("products", "orders"))
            return cls(products, orders, max_connections=max_connections, credentials=credentials, sleep=sleep)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidAddress(f"{url} is not the address of a shop; an example is https://shop.example")
        return cls(url, url, max_connections=max_connections, credentials=credentials, sleep=sleep)

    async def __aenter__(self) -> ShopClient:
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._max_connections, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=20, sock_connect=5)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._session = await self._exit_stack.enter_async_context(session)
        if self._credentials is not None:
            self._tokens = await self._exit_stack.enter_async_context(self._credentials.tokens())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit_stack.aclose()

    async def count_products(self, *, retry_seconds: float | None = None) -> int:
        """Return the number of products in the shop. Raises ShopUnavailable, RequestRejected."""
        url = f"{self.products}{PRODUCTS}?limit=1&availability=false"
        _, page = await self.request("GET", url, retry_seconds=retry_seconds)
        total = page.get("total")
        if not isinstance(total, int):
            raise ShopUnavailable(f"the server at {self.products} is not the shop")
        return total

    async def search_products(self, words: str) -> list[dict[str, Any]]:
        """Return the products that a full-text search finds, oldest first, up to 100. Raises as `request`."""
        url = f"{self.products}{PRODUCTS}?q={quote(words, safe='')}&limit=100&sort=created_at&availability=false"
        _, page = await self.request("GET", url)
        items: list[dict[str, Any]] = page["items"]
        return items

    async def create_product(self, body: dict[str, Any], key: str) -> Created:
        """Create a product, once per key. Raises RequestRejected, ShopUnavailable."""
        status, product = await self.request("POST", self.products + PRODUCTS, body, key)
        return Created(product["id"], status == 200)

    async def place_order(self, body: dict[str, Any], key: str) -> Created:
        """Place an order, once per key. Raises RequestRejected, ShopUnavailable."""
        status, order = await self.request("POST", self.orders + ORDERS, body, key)
        return Created(order["id"], status == 200)

    async def request(
        self, method: str, url: str, body: Any = None, key: str | None = None, *, retry_seconds: float | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Return (status, JSON body) of a successful response.

        Raises RequestRejected for another final response, SignInRequired if that is 401, ShopUnavailable if there is
        none within `retry_seconds` (default: the client's).
        """
        assert self._session is not None, "use it as a context manager"
        headers = {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        if key is not None:
            headers["Idempotency-Key"] = key
        deadline = time.monotonic() + (self._retry_seconds if retry_seconds is None else retry_seconds)
        attempt = 0
        token, token_refused = "", False
        while True:
            attempt += 1
            pause = random.uniform(0.5, 1) * min(2.0, 0.05 * 2**attempt)
            try:
                if self._tokens is not None:
                    token = await self._tokens.get(_TOKEN_SECONDS)
                    headers["Authorization"] = f"Bearer {token}"
                async with self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False
                ) as response:
                    content = await response.read()
                    status = response.status
                    retry_after = response.headers.get("Retry-After", "")
            except Unavailable as e:
                reason = f"cannot sign in: {e}"
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                reason = f"no response from {_host(url)}: {e or type(e).__name__}"
            else:
                if status == 401 and self._tokens is not None and not token_refused:
                    # Once: the issuer may have new keys.
                    token_refused = True
                    with suppress(Unavailable):
                        await self._tokens.replace(token, _TOKEN_SECONDS)
                    continue
                if status == 401:
                    refused = f"the shop refuses the token: {_problem(content)[1]}"
                    raise SignInRequired("the shop requires sign-in" if self._tokens is None else refused)
                if status not in _RETRYABLE:
                    return _final(status, content, url)
                reason = f"{_host(url)} returned {status}: {_problem(content)[1]}"
                if retry_after.isdigit() and len(retry_after) < 4:
                    # With jitter, so that not all clients return at once.
                    pause = int(retry_after) * random.uniform(1, 1.25)
            if time.monotonic() + pause >= deadline:
                raise ShopUnavailable(reason)
            self.retries += 1
            await self._sleep(pause)


def _final(status: int, content: bytes, url: str) -> tuple[int, dict[str, Any]]:
    if 200 <= status < 300:
        try:
            return status, msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ShopUnavailable(f"the server at {_host(url)} is not the shop") from None
    raise RequestRejected(status, *_problem(content))


def _problem(content: bytes) -> tuple[str, str]:
    """Return (kind, detail) of a problem document; of anything else its first characters as the detail."""
    try:
        document = msgspec.json.decode(content, type=dict[str, Any])
        return str(document["type"]).rpartition(":")[2], str(document.get("detail", ""))
    except (msgspec.DecodeError, KeyError):
        return "unknown", content[:100].decode("utf-8", "replace")


def _host(url: str) -> str:
    return urlsplit(url).netloc
