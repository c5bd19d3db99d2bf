"""A steady load of orders and reads through the ingress; each request is made once, and each failure is kept.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

# Small enough for two cores that carry the cluster too; MARKET_CLUSTER_LOAD=3 makes it three times that.
TIMES = float(os.environ.get("MARKET_CLUSTER_LOAD", "1"))
ORDERS_PER_SECOND = 5 * TIMES
READS_PER_SECOND = 10 * TIMES


class NotOurs(Exception):
    """An answer that no service of ours gave: the ingress controller's own, or none at all."""


@dataclass(frozen=True)
class Request:
    """`began` and `ended` in seconds since the load began; `ours`: it is a service of the shop that said no."""

    began: float
    ended: float
    what: str
    reason: str = ""
    ours: bool = True

    def __str__(self) -> str:
        return f"{self.began:.2f} to {self.ended:.2f} s: {self.what}: {self.reason}"


@dataclass(frozen=True)
class Books:
    """`settled`: keys whose first answer never came; `lost`: answered and not there; `doubled`: orders beyond one per
    key."""

    keys: int
    settled: int
    lost: int
    doubled: int


@dataclass
class Load:
    """Requests at fixed times, whether or not earlier ones were answered; connections are kept, as a browser does."""

    url: str
    products: list[str]
    answered: list[Request] = field(default_factory=list)
    failures: list[Request] = field(default_factory=list)
    # From when to when the blow fell, see `strike`.
    struck: tuple[float, float] = (float("inf"), float("inf"))
    # By idempotency key: the product wanted, and the id of the order that was answered.
    wanted: dict[str, str] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)
    user: str = field(default_factory=lambda: f"load-{uuid.uuid4().hex[:12]}")

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=15), connector=aiohttp.TCPConnector(limit=0)
        )
        self._began = time.monotonic()
        self._stopping = False
        self._flying: set[asyncio.Task[None]] = set()
        self._drivers = [
            asyncio.create_task(self._drive(1 / ORDERS_PER_SECOND, [self._order, self._graphql_order])),
            asyncio.create_task(
                self._drive(1 / READS_PER_SECOND, [self._product, self._list, self._orders, self._graphql])
            ),
        ]
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stopping = True
        await asyncio.gather(*self._drivers)
        await asyncio.gather(*self._flying)
        await self._session.close()

    async def _drive(self, pause: float, kinds: list[Any]) -> None:
        for number in itertools.count():
            delay = self._began + number * pause - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            if self._stopping:
                return
            task = asyncio.create_task(self._once(kinds[number % len(kinds)], number))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    @property
    def requests(self) -> int:
        return len(self.answered) + len(self.failures)

    @property
    def slowest(self) -> float:
        return max(r.ended - r.began for r in self.answered + self.failures)

    def strike(self, blow: Callable[[], object], gone: Callable[[], bool]) -> None:
        """`blow` ends something, at once or in a while; it has fallen when `gone` says so (at most a minute)."""
        began = alive = self._now()
        blow()
        while not gone() and self._now() < began + 60:
            alive = self._now()
            time.sleep(0.005)
        # A dying process has lost its connections some moments before it is gone.
        self.struck = (max(began, alive - 0.25), self._now())

    @property
    def in_hand(self) -> list[Request]:
        """What was under way somewhere in the shop at the strike: these may fail."""
        began, ended = self.struck
        return [r for r in self.answered + self.failures if r.began <= ended and r.ended >= began]

    def failed_after_the_strike(self, *, ours: bool) -> list[Request]:
        """What began when it was over, and failed all the same."""
        return [f for f in self.failures if f.began > self.struck[1] and f.ours is ours]

    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _once(self, kind: Any, number: int) -> None:
        began, what = self._now(), kind.__name__.strip("_")
        try:
            await kind(number)
        except Exception as e:
            ours = not isinstance(e, (NotOurs, aiohttp.ClientError, TimeoutError))
            self.failures.append(Request(began, self._now(), what, f"{type(e).__name__}: {e}"[:300], ours))
        else:
            self.answered.append(Request(began, self._now(), what))

    async def _call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        async with self._session.request(method, self.url + path, json=body, headers=headers) as response:
            answer = await response.read()
            if response.status not in (200, 201):
                kind = RuntimeError if "json" in response.headers.get("content-type", "") else NotOurs
                raise kind(f"{response.status} {answer[:200].decode('utf-8', 'replace')}")
            return msgspec.json.decode(answer)

    def _new(self, number: int) -> tuple[str, str]:
        key, product = str(uuid.uuid4()), self.products[number % len(self.products)]
        self.wanted[key] = product
        return key, product

    async def _order(self, number: int) -> None:
        key, product = self._new(number)
        self.placed[key] = await self._place(key, product)

    async def _place(self, key: str, product: str) -> str:
        body = {"user": self.user, "items": [{"product_id": product, "quantity": 1}]}
        order = await self._call("POST", "/api/order", body, {"Idempotency-Key": key})
        return str(order["id"])

    async def _graphql_order(self, number: int) -> None:
        key, product = self._new(number)
        order = await self._query(
            "mutation($input: CreateOrderInput!, $key: String) { createOrder(input: $input, idempotencyKey: $key) { id "
            "} }",
            {"input": {"user": self.user, "items": [{"productId": product, "quantity": 1}]}, "key": key},
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

    async def _query(self, query: str, variables: dict[str, Any]) -> Any:
        answer = await self._call("POST", "/graphql", {"query": query, "variables": variables})
        if answer.get("errors"):
            raise RuntimeError(str(answer["errors"])[:300])
        return answer["data"]

    async def settle(self) -> Books:
        """After the disturbance: what got no answer is asked again with its key, and then every key must have one
        order."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as self._session:
            unknown = [key for key in self.wanted if key not in self.placed]
            for key in unknown:
                self.placed[key] = await self._place(key, self.wanted[key])
            pages = [
                await self._call("GET", f"/api/order?user={self.user}&limit=1000&offset={offset}")
                for offset in range(0, max(1, len(self.wanted)), 1000)
            ]
        there = [order["id"] for page in pages for order in page["items"] if order["status"] == "confirmed"]
        return Books(
            keys=len(self.wanted),
            settled=len(unknown),
            lost=len(set(self.placed.values()) - set(there)),
            doubled=len(there) - len(self.wanted),
        )
