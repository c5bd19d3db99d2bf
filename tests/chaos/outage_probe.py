"""The shop's calls as a client makes them, each answered in one word, and a way to hold one process down."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from market_dev.stack.stack import Stack

HEALTHY = {
    "read products": "200",
    "change a product": "200",
    "set a stock": "200",
    "place": "201",
    "read orders": "200",
    "cancel": "204",
    "graphql": "whole",
    "graphql create": "placed",
}
QUERY = """query($product: ID!, $user: String!) {
  product(id: $product) { id available }
  orders(user: $user, limit: 1) { items { id items { product { id } } } }
}"""
CREATE = "mutation($input: CreateOrderInput!) { createOrder(input: $input) { id status } }"


@asynccontextmanager
async def dead(stack: Stack, name: str) -> AsyncIterator[None]:
    """Killed, and not started again before the end of the block."""
    server = stack.parts[name].server
    gate = threading.Event()
    begin = server.before_start

    def held_back() -> None:
        gate.wait()
        begin()

    server.before_start = held_back  # type: ignore[method-assign]
    stack.kill(name)
    try:
        async with asyncio.timeout(60):
            while name in stack.pids:
                await asyncio.sleep(0.005)
        yield
    finally:
        server.before_start = begin  # type: ignore[method-assign]
        gate.set()


@dataclass
class Answers:
    """What one call was answered, in turn, and how long each answer took."""

    words: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Shop:
    """A client of the shop, with goods and orders to work on."""

    stack: Stack
    http: httpx.AsyncClient
    goods: list[dict[str, Any]] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    mailboxes: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @classmethod
    async def opened(cls, stack: Stack, http: httpx.AsyncClient) -> Shop:
        shop = cls(stack, http)
        shop.goods = [await shop._made(stock=100_000) for _ in range(3)]
        return shop

    async def _made(self, stock: int) -> dict[str, Any]:
        body = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP", "stock": stock}
        made = await self._patiently(lambda: self.http.post(f"{self.stack.urls['products']}/api/product", json=body))
        return dict(made.json())

    async def _patiently(self, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """For what is prepared only: asked again for a minute."""
        until = time.monotonic() + 60
        while not (answer := await ask()).is_success:
            assert time.monotonic() < until, answer.text
            await asyncio.sleep(0.2)
        return answer

    async def prepare(self) -> None:
        """Two orders, one to read and one to cancel."""
        keys = [uuid4().hex for _ in range(2)]
        placed = await asyncio.gather(*(self._patiently(lambda key=key: self._order(key)) for key in keys))  # type: ignore[misc]
        self.orders = [p.json()["id"] for p in placed]

    async def _order(self, key: str, user: str = "reader@still.test") -> httpx.Response:
        body = {"user": user, "items": [{"product_id": self.goods[0]["id"], "quantity": 1}]}
        return await self.http.post(
            f"{self.stack.urls['orders']}/api/order", json=body, headers={"Idempotency-Key": key}
        )

    # Each call answers its word.

    async def read_products(self) -> str:
        url = f"{self.stack.urls['products']}/api/product"
        one, page = await asyncio.gather(
            self.http.get(f"{url}/{self.goods[0]['id']}"), self.http.get(url, params={"limit": 2})
        )
        # The store may come back between the two.
        status = max(one.status_code, page.status_code)
        return "200, available: null" if status == 200 and one.json()["available"] is None else str(status)

    async def change_a_product(self) -> str:
        body = {k: self.goods[1][k] for k in ("id", "name", "description", "price", "currency", "image_url")}
        return str((await self.http.put(f"{self.stack.urls['products']}/api/product", json=body)).status_code)

    async def set_a_stock(self) -> str:
        body = {k: self.goods[2][k] for k in ("id", "name", "description", "price", "currency", "image_url")}
        return str(
            (await self.http.put(f"{self.stack.urls['products']}/api/product", json={**body, "stock": 7})).status_code
        )

    async def place(self) -> str:
        user = f"c{next(self._numbers)}@still.test"
        answer = await self._order(uuid4().hex, user)
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
        if answer.status_code == 201:
            self.mailboxes.append(user)
        return str(answer.status_code)

    async def read_orders(self) -> str:
        url = f"{self.stack.urls['orders']}/api/order"
        one, page = await asyncio.gather(
            self.http.get(f"{url}/{self.orders[0]}"),
            self.http.get(url, params={"user": "reader@still.test", "limit": "5"}),
        )
        # The store may come back between the two.
        return str(max(one.status_code, page.status_code))

    async def cancel(self) -> str:
        return str((await self.http.delete(f"{self.stack.urls['orders']}/api/order/{self.orders[1]}")).status_code)

    async def graphql(self) -> str:
        told = await self._graphql(QUERY, {"product": self.goods[0]["id"], "user": "reader@still.test"})
        where = {"orders.items.0.items.0.product": "the join"}
        paths = [".".join(map(str, e["path"])) for e in told.get("errors", ())]
        assert {e["extensions"]["code"] for e in told.get("errors", ())} <= {"UNAVAILABLE"}
        if paths:
            return "null at " + ", ".join(sorted(where.get(p, p) for p in paths))
        return "whole" if told["data"]["product"]["available"] is not None else "available: null"

    async def graphql_create(self) -> str:
        lines = [{"productId": self.goods[0]["id"], "quantity": 1}]
        told = await self._graphql(CREATE, {"input": {"user": "reader@still.test", "items": lines}})
        return str(told["errors"][0]["extensions"]["code"]) if told.get("errors") else "placed"

    async def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = await self.http.post(
            f"{self.stack.urls['graphql']}/graphql", json={"query": query, "variables": variables}
        )
        assert answer.status_code == 200
        return dict(answer.json())

    def call(self, name: str) -> Callable[[], Awaitable[str]]:
        """The call of that name; where nobody listens its word is `no answer`."""
        ask: Callable[[], Awaitable[str]] = getattr(self, name.replace(" ", "_"))

        async def word() -> str:
            try:
                return await ask()
            except httpx.TransportError:
                return "no answer"

        return word

    async def mails(self, user: str) -> int:
        answer = await self.http.get(f"{self.stack.urls['mail']}/api/messages", params={"to": user, "limit": "1"})
        return int(answer.json()["total"])


async def asked(shop: Shop, rounds: int, pause: float) -> dict[str, Answers]:
    """Every call `rounds` times, all at once in each round, `pause` seconds between the rounds."""
    found = {name: Answers() for name in HEALTHY}

    async def once(name: str) -> None:
        began = time.monotonic()
        found[name].words.append(await shop.call(name)())
        found[name].seconds.append(time.monotonic() - began)

    for number in range(rounds):
        if number:
            await asyncio.sleep(pause)
        await asyncio.gather(*(once(name) for name in HEALTHY))
    return found


async def until_healthy(shop: Shop, seconds: float) -> dict[str, float]:
    """Seconds until each call is answered as in health, asked time and again. Raises TimeoutError."""
    began = time.monotonic()

    async def well(name: str) -> float:
        while await shop.call(name)() != HEALTHY[name]:
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async with asyncio.timeout(seconds):
        return dict(zip(HEALTHY, await asyncio.gather(*(well(name) for name in HEALTHY)), strict=True))
