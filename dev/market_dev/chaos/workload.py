"""Clients that order, repeat, cancel and read, and go on through errors as a real client would.

Each order has its Idempotency-Key, and is asked for with that key until there is a final answer.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import msgspec

from market_dev.chaos.history import Call, History, Operation

# Answers after which asking again with the same key makes sense.
AGAIN = {0, 500, 502, 503, 504}

CREATE = """mutation($input: CreateOrderInput!, $key: String) {
  createOrder(input: $input, idempotencyKey: $key) { id status }
}"""
DELETE = "mutation($id: ID!) { deleteOrder(id: $id) { id status } }"
READ = "query($id: ID!) { order(id: $id) { id status } }"
# What the gateway's codes are in REST.
STATUS_OF = {
    "OUT_OF_STOCK": 409,
    "PRICE_CHANGED": 409,
    "ORDER_CANCELLED": 409,
    "CONFLICT": 409,
    "BAD_INPUT": 422,
    "NOT_FOUND": 404,
}


@dataclass
class Answer:
    status: int
    order_id: str = ""
    order_status: str = ""
    detail: str = ""


@dataclass
class Load:
    """`clients` clients, from a seed. `urls`: graphql, products, orders of the shop."""

    urls: dict[str, str]
    products: list[str]
    history: History
    seed: int
    clients: int = 16
    # Seconds that each client rests between two things it does.
    think: float = 0.05
    # Seconds until a client gives a call up.
    patience: float = 12.0
    # Seconds for which a client asks again with one key.
    stubborn: float = 90.0
    in_flight: int = 0
    last_success: float = 0.0
    _keys: itertools.count[int] = field(default_factory=itertools.count)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until `stop()`; every order that was begun is asked for to the end."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=self.patience)
        ) as http:
            await asyncio.gather(*(self._client(http, n) for n in range(self.clients)))

    def stop(self) -> None:
        self._stop.set()

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        mine: list[str] = []
        while not self._stop.is_set():
            deed = rng.random()
            if deed < 0.70 or not mine:
                order_id = await self._place(http, rng, number)
                if order_id:
                    mine.append(order_id)
            elif deed < 0.82:
                await self._cancel(http, rng, mine.pop(rng.randrange(len(mine))))
            elif deed < 0.90:
                await self._call(http, rng, "read", order_id=rng.choice(mine))
            elif deed < 0.95:
                await self._call(http, rng, "browse")
            else:
                await self._call(http, rng, "list", user=f"client-{number}@torture.test")
            await asyncio.sleep(rng.uniform(0, 2 * self.think))

    async def _place(self, http: aiohttp.ClientSession, rng: random.Random, number: int) -> str:
        lines = rng.sample(self.products, k=min(len(self.products), rng.choice([1, 1, 2, 3])))
        items = {product: rng.choice([1, 1, 2]) for product in lines}
        key = f"torture-{self.seed}-{next(self._keys)}"
        user = f"client-{number}@torture.test"
        answer = await self._until_final(http, rng, "place", key=key, items=items, user=user)
        if rng.random() < 0.1:
            # A client that lost the answer asks again; sometimes two at once.
            await asyncio.gather(
                *(self._call(http, rng, "place", key=key, items=items, user=user) for _ in range(rng.choice([1, 2])))
            )
        return answer.order_id if answer.status in (200, 201) else ""

    async def _cancel(self, http: aiohttp.ClientSession, rng: random.Random, order_id: str) -> None:
        await self._until_final(http, rng, "cancel", order_id=order_id)

    async def _until_final(
        self, http: aiohttp.ClientSession, rng: random.Random, operation: Operation, **about: Any
    ) -> Answer:
        until = self.history.now() + self.stubborn
        pause = 0.1
        while True:
            answer = await self._call(http, rng, operation, **about)
            if answer.status not in AGAIN or self.history.now() > until:
                return answer
            await asyncio.sleep(rng.uniform(0.5, 1) * pause)
            pause = min(1.0, pause * 2)

    async def _call(
        self,
        http: aiohttp.ClientSession,
        rng: random.Random,
        operation: Operation,
        *,
        key: str = "",
        items: dict[str, int] | None = None,
        user: str = "",
        order_id: str = "",
    ) -> Answer:
        via: Literal["rest", "graphql"] = (
            rng.choice(["rest", "graphql"]) if operation in ("place", "cancel", "read") else "rest"
        )
        began = self.history.now()
        placing = operation == "place"
        self.in_flight += placing
        try:
            ask = self._graphql if via == "graphql" else self._rest
            answer = await ask(http, operation, key, items or {}, user, order_id)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as e:
            answer = Answer(0, detail=type(e).__name__)
        finally:
            self.in_flight -= placing
        ended = self.history.now()
        if placing and answer.status in (200, 201):
            self.last_success = ended
        self.history.add(
            Call(
                operation=operation,
                via=via,
                began=began,
                ended=ended,
                status=answer.status,
                key=key,
                user=user,
                order_id=answer.order_id or order_id,
                items=items or {},
                order_status=answer.order_status,
                detail=answer.detail,
            )
        )
        return answer

    async def _rest(
        self, http: aiohttp.ClientSession, operation: str, key: str, items: dict[str, int], user: str, order_id: str
    ) -> Answer:
        base = f"{self.urls['orders']}/api/order"
        if operation == "browse":
            request = http.get(f"{self.urls['products']}/api/product", params={"limit": "20"})
        elif operation == "place":
            body = {"user": user, "items": [{"product_id": p, "quantity": q} for p, q in items.items()]}
            request = http.post(base, json=body, headers={"Idempotency-Key": key})
        elif operation == "cancel":
            request = http.delete(f"{base}/{order_id}")
        elif operation == "list":
            request = http.get(base, params={"user": user, "limit": "20"})
        else:
            request = http.get(f"{base}/{order_id}")
        async with request as response:
            data = await response.read()
            told: Any = msgspec.json.decode(data) if data else {}
            if response.status >= 400:
                return Answer(response.status, told.get("order_id", ""), detail=told.get("detail", "")[:200])
            return Answer(response.status, told.get("id", ""), told.get("status", ""))

    async def _graphql(
        self, http: aiohttp.ClientSession, operation: str, key: str, items: dict[str, int], user: str, order_id: str
    ) -> Answer:
        if operation == "place":
            lines = [{"productId": p, "quantity": q} for p, q in items.items()]
            query, name, variables = CREATE, "createOrder", {"input": {"user": user, "items": lines}, "key": key}
        else:
            query, name = (DELETE, "deleteOrder") if operation == "cancel" else (READ, "order")
            variables = {"id": order_id}
        async with http.post(
            f"{self.urls['graphql']}/graphql", json={"query": query, "variables": variables}
        ) as response:
            told: Any = msgspec.json.decode(await response.read())
            status = response.status
        if status >= 400 and not told.get("errors"):
            return Answer(status)
        if errors := told.get("errors"):
            extensions = errors[0].get("extensions", {})
            return Answer(
                STATUS_OF.get(extensions.get("code", ""), 503),
                extensions.get("orderId", ""),
                detail=errors[0]["message"][:200],
            )
        order = told["data"][name]
        return Answer(200, order["id"], order["status"])
