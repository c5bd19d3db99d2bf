"""A patient customer of the shop's public API: asks again, with the same key, until there is an answer.

async with Shop.at(port_base=8080, url=None) as shop:
    product = await shop.make_product(body, key="import:85123A")
    order = await shop.place(body, key="536365")
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

PRODUCTS, ORDERS = "/api/product", "/api/order"
# What an Idempotency-Key may hold as it is; the rest is written with percent signs.
_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
# Answers that leave it open: the same request may be made again.
_TRY_AGAIN = frozenset([408, 425, 429, 502, 503, 504])


class Unreachable(Exception):
    """No answer for as long as we had patience; whether anything happened is not known. Asking again with the same key is right."""


class NotThere(Unreachable):
    """Nothing was asked yet, and nobody answers."""


class BadAddress(Exception):
    """What was given is no address of a shop."""


class Refused(Exception):
    """A final answer that is no success: `status`, the problem's `kind` (its type without the prefix) and `detail`."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Made:
    """`id` of what was made; `before`: it had been made by an earlier request with the same key."""

    id: str
    before: bool


def key(text: str) -> str:
    """The text as an Idempotency-Key: visible ASCII, what is not is percent-encoded."""
    return quote(text, safe=_VISIBLE)


class Shop:
    """Owns the connections, kept alive, at most `connections` to each of products and orders.

    `patience` is how many seconds a request is tried again before it is Unreachable.
    """

    def __init__(self, products: str, orders: str, *, connections: int = 64, patience: float = 60.0) -> None:
        self.products = products.rstrip("/")
        self.orders = orders.rstrip("/")
        self._connections = connections
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None
        self.retries = 0

    @classmethod
    def at(cls, *, port_base: int, url: str | None, connections: int = 64, patience: float = 60.0) -> Shop:
        """The shop at one public address, or the local stack on its own ports. Raises BadAddress."""
        if url is None:
            if not 1 <= port_base <= 65_520:
                raise BadAddress("the port base must be 1 to 65520")
            return cls(
                f"http://127.0.0.1:{port_base + 1}",
                f"http://127.0.0.1:{port_base + 2}",
                connections=connections,
                patience=patience,
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadAddress(f"{url} is no address; it looks like https://shop.example")
        return cls(url, url, connections=connections, patience=patience)

    async def __aenter__(self) -> Shop:
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._connections, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=20, sock_connect=5)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def count(self, *, patience: float | None = None) -> int:
        """How many products the shop has. Raises Unreachable."""
        _, page = await self.request("GET", f"{self.products}{PRODUCTS}?limit=1&availability=false", patience=patience)
        total = page.get("total")
        if not isinstance(total, int):
            raise Unreachable(f"what answers at {self.products} is not the shop")
        return total

    async def find(self, words: str) -> list[dict[str, Any]]:
        """The products that a full-text search finds, oldest first, at most 100."""
        url = f"{self.products}{PRODUCTS}?q={quote(words, safe='')}&limit=100&sort=created_at&availability=false"
        _, page = await self.request("GET", url)
        items: list[dict[str, Any]] = page["items"]
        return items

    async def make_product(self, body: dict[str, Any], key: str) -> Made:
        """The product that the key stands for, made now or before. Raises Refused, Unreachable."""
        status, product = await self.request("POST", self.products + PRODUCTS, body, key)
        return Made(product["id"], status == 200)

    async def place(self, body: dict[str, Any], key: str) -> Made:
        """The order that the key stands for, placed now or before. Raises Refused, Unreachable."""
        status, order = await self.request("POST", self.orders + ORDERS, body, key)
        return Made(order["id"], status == 200)

    async def request(
        self, method: str, url: str, body: Any = None, key: str | None = None, *, patience: float | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and body of the success. Raises Refused, Unreachable."""
        assert self._session is not None, "use it as a context manager"
        headers = {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        if key is not None:
            headers["Idempotency-Key"] = key
        until = time.monotonic() + (self._patience if patience is None else patience)
        attempt = 0
        while True:
            attempt += 1
            wait = random.uniform(0.5, 1) * min(2.0, 0.05 * 2**attempt)
            try:
                async with self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False
                ) as response:
                    answer = await response.read()
                    status = response.status
                    asked = response.headers.get("Retry-After", "")
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                reason = f"no answer from {_host(url)}: {e or type(e).__name__}"
            else:
                if status not in _TRY_AGAIN:
                    return _decided(status, answer, url)
                reason = f"{_host(url)} answers {status}: {_problem(answer)[1]}"
                if asked.isdigit() and len(asked) < 4:
                    # As long as it asks for, and a little more, so that not all come back at once.
                    wait = int(asked) * random.uniform(1, 1.25)
            if time.monotonic() + wait >= until:
                raise Unreachable(reason)
            self.retries += 1
            await asyncio.sleep(wait)


def _decided(status: int, answer: bytes, url: str) -> tuple[int, dict[str, Any]]:
    if 200 <= status < 300:
        try:
            return status, msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError:
            raise Unreachable(f"what answers at {_host(url)} is not the shop") from None
    raise Refused(status, *_problem(answer))


def _problem(answer: bytes) -> tuple[str, str]:
    """Kind and detail of a problem document; of something else its first characters."""
    try:
        document = msgspec.json.decode(answer, type=dict[str, Any])
        return str(document["type"]).rpartition(":")[2], str(document.get("detail", ""))
    except (msgspec.DecodeError, KeyError):
        return "unknown", answer[:100].decode("utf-8", "replace")


def _host(url: str) -> str:
    return urlsplit(url).netloc
