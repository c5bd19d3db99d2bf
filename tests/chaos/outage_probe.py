"""Probe calls to the shop, each with its result in a word or two, and a way to keep one process down."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from market_dev.stack.stack import Stack

from tests.support.waiting import until

# The probe calls, and their results when everything is up.
HEALTHY = {
    "read products": "200",
    "change a product": "200",
    "set a stock": "200",
    "place": "201",
    "read orders": "200",
    "cancel": "204",
    "graphql": "complete",
    "graphql create": "placed",
}
QUERY = """query($product: ID!, $user: String!) {
  product(id: $product) { id available }
  orders(user: $user, limit: 1) { items { id items { product { id } } } }
}"""
CREATE_ORDER = "mutation($input: CreateOrderInput!) { createOrder(input: $input) { id status } }"


@asynccontextmanager
async def down(stack: Stack, name: str) -> AsyncIterator[None]:
    """Kill a process and keep it from starting again until the end of the block."""
    stack.kill(name, restart=False)
    try:
        await until(lambda: name not in stack.pids, what=f"{name} is down", interval=0.005)
        yield
    finally:
        stack.restart(name)


@dataclass
class Results:
    """The results of one probe call, round by round, and the duration of each in seconds."""

    words: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Probe:
    """A client of the shop, with its own products and orders."""

    stack: Stack
    http: httpx.AsyncClient
    products: list[dict[str, Any]] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    # Users with an order whose mail was not yet seen.
    mailboxes: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @classmethod
    async def create(cls, stack: Stack, http: httpx.AsyncClient) -> Probe:
        """Return a probe with three products."""
        probe = cls(stack, http)
        probe.products = [await probe._create_product(stock=100_000) for _ in range(3)]
        return probe

    async def _create_product(self, stock: int) -> dict[str, Any]:
        body = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP", "stock": stock}
        url = f"{self.stack.urls['products']}/api/product"
        return dict((await self._retry(lambda: self.http.post(url, json=body))).json())

    async def _retry(self, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Retry for a minute; for preparations only, never for what is probed."""
        deadline = time.monotonic() + 60
        while not (response := await send()).is_success:
            assert time.monotonic() < deadline, response.text
            await asyncio.sleep(0.2)
        return response

    async def prepare(self) -> None:
        """Place two orders, one to read and one to cancel."""
        keys = [uuid4().hex for _ in range(2)]
        placed = await asyncio.gather(*(self._retry(lambda key=key: self._place(key)) for key in keys))  # type: ignore[misc]
        self.orders = [p.json()["id"] for p in placed]

    async def _place(self, key: str, user: str = "reader@outage.test") -> httpx.Response:
        body = {"user": user, "items": [{"product_id": self.products[0]["id"], "quantity": 1}]}
        url = f"{self.stack.urls['orders']}/api/order"
        return await self.http.post(url, json=body, headers={"Idempotency-Key": key})

    # The probe calls. Each returns its result.

    async def read_products(self) -> str:
        url = f"{self.stack.urls['products']}/api/product"
        product, page = await asyncio.gather(
            self.http.get(f"{url}/{self.products[0]['id']}"), self.http.get(url, params={"limit": 2})
        )
        # The store may recover between the two.
        status = max(product.status_code, page.status_code)
        return "200, available: null" if status == 200 and product.json()["available"] is None else str(status)

    async def change_a_product(self) -> str:
        return await self._put_product(self.products[1])

    async def set_a_stock(self) -> str:
        return await self._put_product(self.products[2], stock=7)

    async def _put_product(self, product: dict[str, Any], **changes: Any) -> str:
        body = {k: product[k] for k in ("id", "name", "description", "price", "currency", "image_url")}
        response = await self.http.put(f"{self.stack.urls['products']}/api/product", json={**body, **changes})
        return str(response.status_code)

    async def place(self) -> str:
        user = f"c{next(self._numbers)}@outage.test"
        response = await self._place(uuid4().hex, user)
        if response.status_code == 503:
            assert response.headers["retry-after"]
        if response.status_code == 201:
            self.mailboxes.append(user)
        return str(response.status_code)

    async def read_orders(self) -> str:
        url = f"{self.stack.urls['orders']}/api/order"
        order, page = await asyncio.gather(
            self.http.get(f"{url}/{self.orders[0]}"),
            self.http.get(url, params={"user": "reader@outage.test", "limit": "5"}),
        )
        # The store may recover between the two.
        return str(max(order.status_code, page.status_code))

    async def cancel(self) -> str:
        return str((await self.http.delete(f"{self.stack.urls['orders']}/api/order/{self.orders[1]}")).status_code)

    async def graphql(self) -> str:
        content = await self._post_graphql(QUERY, {"product": self.products[0]["id"], "user": "reader@outage.test"})
        errors = content.get("errors", ())
        assert {e["extensions"]["code"] for e in errors} <= {"UNAVAILABLE"}
        if errors:
            # Without the indices of lists.
            paths = {".".join(part for part in e["path"] if isinstance(part, str)) for e in errors}
            return "null at " + ", ".join(sorted(paths, key=len))
        return "complete" if content["data"]["product"]["available"] is not None else "available: null"

    async def graphql_create(self) -> str:
        lines = [{"productId": self.products[0]["id"], "quantity": 1}]
        content = await self._post_graphql(CREATE_ORDER, {"input": {"user": "reader@outage.test", "items": lines}})
        return str(content["errors"][0]["extensions"]["code"]) if content.get("errors") else "placed"

    async def _post_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        request = {"query": query, "variables": variables}
        response = await self.http.post(f"{self.stack.urls['graphql']}/graphql", json=request)
        assert response.status_code == 200
        return dict(response.json())

    async def call(self, name: str) -> str:
        """Return the result of that call, or `no response` if nothing listens."""
        probe_call: Callable[[], Awaitable[str]] = getattr(self, name.replace(" ", "_"))
        try:
            return await probe_call()
        except httpx.TransportError:
            return "no response"

    async def count_mails(self, user: str) -> int:
        params = {"to": user, "limit": "1"}
        response = await self.http.get(f"{self.stack.urls['mail']}/api/messages", params=params)
        return int(response.json()["total"])


async def call_all(probe: Probe, rounds: int, pause_seconds: float) -> dict[str, Results]:
    """Make every call `rounds` times; within a round all calls run concurrently."""
    results = {name: Results() for name in HEALTHY}

    async def call_once(name: str) -> None:
        started = time.monotonic()
        results[name].words.append(await probe.call(name))
        results[name].seconds.append(time.monotonic() - started)

    for number in range(rounds):
        if number:
            await asyncio.sleep(pause_seconds)
        await asyncio.gather(*(call_once(name) for name in HEALTHY))
    return results


async def wait_until_healthy(probe: Probe, timeout_seconds: float) -> dict[str, float]:
    """Repeat every call until its result is the healthy one; return the seconds each took. Raises TimeoutError."""
    started = time.monotonic()

    async def until_healthy(name: str) -> float:
        while await probe.call(name) != HEALTHY[name]:
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async with asyncio.timeout(timeout_seconds):
        return dict(zip(HEALTHY, await asyncio.gather(*(until_healthy(name) for name in HEALTHY)), strict=True))
