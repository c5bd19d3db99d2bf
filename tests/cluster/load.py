"""A steady load of orders and reads through the ingress. Nothing is retried, and every failure is recorded.

async with Load(url) as load:
    ...                     # disturb the shop
print(load.failures)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

# Small enough for two cores that also run the cluster; MARKET_CLUSTER_LOAD=3 triples it.
FACTOR = float(os.environ.get("MARKET_CLUSTER_LOAD", "1"))
ORDERS_PER_SECOND, READS_PER_SECOND = 5, 10


class IngressError(Exception):
    """A response that came from the ingress controller instead of a service."""


@dataclass(frozen=True)
class Request:
    """`started` and `ended` in seconds since the load started; `by_shop`: a service of the shop rejected it."""

    started: float
    ended: float
    what: str
    reason: str = ""
    by_shop: bool = True

    def __str__(self) -> str:
        return f"{self.started:.2f} to {self.ended:.2f} s: {self.what}: {self.reason}"


@dataclass(frozen=True)
class Audit:
    """The orders after the disturbance.

    keys: idempotency keys that were used
    repeated: keys without a response, whose requests were repeated at the end
    lost: orders that were in a response and do not exist
    duplicated: orders beyond one per key
    sold: the confirmed units of each product
    """

    keys: int
    repeated: int
    lost: int
    duplicated: int
    sold: Mapping[str, int]

    @property
    def orders(self) -> int:
        """The confirmed orders; each has one unit."""
        return sum(self.sold.values())


@dataclass
class Load:
    """Sends requests at fixed times, whether or not earlier ones have a response, and keeps connections as a browser
    does."""

    url: str
    products: list[str]
    # Times 5 orders and 10 reads per second.
    factor: float = FACTOR
    succeeded: list[Request] = field(default_factory=list)
    failures: list[Request] = field(default_factory=list)
    # Start and end of the kill, see `kill`.
    killed: tuple[float, float] = (float("inf"), float("inf"))
    # By idempotency key: the requested product, and the id of the order in the response.
    requested: dict[str, str] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)
    user: str = field(default_factory=lambda: f"load-{uuid.uuid4().hex[:12]}")

    @property
    def email(self) -> str:
        """The address that every order of this load is mailed to."""
        return f"{self.user}@example.test"

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=15), connector=aiohttp.TCPConnector(limit=0)
        )
        self._started = time.monotonic()
        self._stopping = False
        self._in_flight: set[asyncio.Task[None]] = set()
        orders, reads = ORDERS_PER_SECOND * self.factor, READS_PER_SECOND * self.factor
        self._drivers = [
            asyncio.create_task(self._drive(1 / orders, [self._order, self._graphql_order])),
            asyncio.create_task(
                self._drive(1 / reads, [self._product, self._list, self._orders, self._graphql, self._page])
            ),
        ]
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopping = True
        await asyncio.gather(*self._drivers)
        await asyncio.gather(*self._in_flight)
        await self._session.close()

    async def _drive(self, pause: float, kinds: list[Any]) -> None:
        for number in itertools.count():
            delay = self._started + number * pause - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            if self._stopping:
                return
            task = asyncio.create_task(self._once(kinds[number % len(kinds)], number))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    @property
    def rejected(self) -> list[Request]:
        """Return the failed requests to which the shop responded that it, or a part of it, is unavailable."""
        return [f for f in self.failures if "503 " in f.reason or "UNAVAILABLE" in f.reason]

    @property
    def requests(self) -> int:
        return len(self.succeeded) + len(self.failures)

    @property
    def slowest(self) -> float:
        return max(r.ended - r.started for r in self.succeeded + self.failures)

    def kill(self, end: Callable[[], object], has_ended: Callable[[], bool]) -> None:
        """Call `end`, and wait (at most a minute) until what it ends `has_ended`."""
        started = alive = self.now()
        end()
        while not has_ended() and self.now() < started + 60:
            alive = self.now()
            time.sleep(0.005)
        # A process loses its connections some moments before it has exited.
        self.killed = (max(started, alive - 0.25), self.now())

    @property
    def in_flight(self) -> list[Request]:
        """Return the requests that were in flight in the shop during the kill: these may fail."""
        started, ended = self.killed
        return [r for r in self.succeeded + self.failures if r.started <= ended and r.ended >= started]

    def failed_after_the_kill(self, *, by_shop: bool) -> list[Request]:
        """Return the failed requests that started after the kill."""
        return [f for f in self.failures if f.started > self.killed[1] and f.by_shop is by_shop]

    def now(self) -> float:
        """Return the seconds since the load started."""
        return time.monotonic() - self._started

    def last_success(self, what: str) -> float:
        """Return when the latest successful request of that kind was sent; -1 if there is none."""
        return max((r.started for r in self.succeeded if r.what == what), default=-1.0)

    async def _once(self, kind: Any, number: int) -> None:
        started, what = self.now(), kind.__name__.strip("_")
        try:
            await kind(number)
        except Exception as e:
            by_shop = not isinstance(e, (IngressError, aiohttp.ClientError, TimeoutError))
            self.failures.append(Request(started, self.now(), what, f"{type(e).__name__}: {e}"[:1000], by_shop))
        else:
            self.succeeded.append(Request(started, self.now(), what))

    async def _request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
        async with self._session.request(method, self.url + path, json=body, headers=headers) as response:
            content = await response.read()
            if response.status not in (200, 201):
                # Every response of the shop has this header.
                kind = RuntimeError if "x-request-id" in response.headers else IngressError
                raise kind(f"{response.status} {content[:200].decode('utf-8', 'replace')}")
            return content

    async def _call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        return msgspec.json.decode(await self._request(method, path, body, headers))

    def _new(self, number: int) -> tuple[str, str]:
        key, product = str(uuid.uuid4()), self.products[number % len(self.products)]
        self.requested[key] = product
        return key, product

    async def _order(self, number: int) -> None:
        key, product = self._new(number)
        self.placed[key] = await self._place(key, product)

    async def _place(self, key: str, product: str) -> str:
        body = {"user": self.user, "email": self.email, "items": [{"product_id": product, "quantity": 1}]}
        order = await self._call("POST", "/api/order", body, {"Idempotency-Key": key})
        return str(order["id"])

    async def _graphql_order(self, number: int) -> None:
        key, product = self._new(number)
        order = await self._query(
            "mutation($input: CreateOrderInput!, $key: String) { createOrder(input: $input, idempotencyKey: $key) { id "
            "} }",
            {
                "input": {
                    "user": self.user,
                    "email": self.email,
                    "items": [{"productId": product, "quantity": 1}],
                },
                "key": key,
            },
        )
        self.placed[key] = order["createOrder"]["id"]

    async def _product(self, number: int) -> None:
        await self._call("GET", f"/api/product/{self.products[number % len(self.products)]}")

    async def _list(self, _: int) -> None:
        await self._call("GET", "/api/product?limit=20")

    async def _orders(self, _: int) -> None:
        await self._call("GET", f"/api/order?user={self.user}&limit=5")

    async def _graphql(self, _: int) -> None:
        await self._query("{ products(limit: 20) { items { id name price available } total } }", {})

    async def _page(self, _: int) -> None:
        await self._request("GET", "/")

    async def _query(self, query: str, variables: dict[str, Any]) -> Any:
        result = await self._call("POST", "/graphql", {"query": query, "variables": variables})
        if result.get("errors"):
            raise RuntimeError(str(result["errors"])[:900])
        return result["data"]

    async def _placed_orders(self) -> AsyncIterator[dict[str, Any]]:
        after = ""
        while True:
            page = await self._call("GET", f"/api/order?user={self.user}&limit=1000{after}")
            for order in page["items"]:
                yield order
            if page["next"] is None:
                return
            after = f"&after={page['next']}"

    async def audit(self) -> Audit:
        """Repeat the requests without a response with their keys, then compare the orders with the keys."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as self._session:
            unknown = [key for key in self.requested if key not in self.placed]
            for key in unknown:
                self.placed[key] = await self._place(key, self.requested[key])
            existing = {
                order["id"]: order["items"][0]["product_id"]
                async for order in self._placed_orders()
                if order["status"] == "confirmed"
            }
        return Audit(
            keys=len(self.requested),
            repeated=len(unknown),
            lost=len(set(self.placed.values()) - set(existing)),
            duplicated=len(existing) - len(self.requested),
            sold=Counter(existing.values()),
        )
