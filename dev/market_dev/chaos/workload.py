"""The order workload: clients that place, retry, cancel and read orders, and carry on through errors as real ones
would.

Each order has its own Idempotency-Key and is retried with that key until the response is final.
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

# Statuses after which a request is retried with the same key; 0: no response.
RETRYABLE = {0, 500, 502, 503, 504}

CREATE_ORDER = """mutation($input: CreateOrderInput!, $key: String) {
  createOrder(input: $input, idempotencyKey: $key) { id status }
}"""
DELETE_ORDER = "mutation($id: ID!) { deleteOrder(id: $id) { id status } }"
READ_ORDER = "query($id: ID!) { order(id: $id) { id status } }"
# The gateway's error codes as HTTP statuses.
STATUS_OF = {
    "OUT_OF_STOCK": 409,
    "PRICE_CHANGED": 409,
    "ORDER_CANCELLED": 409,
    "CONFLICT": 409,
    "BAD_INPUT": 422,
    "NOT_FOUND": 404,
}


@dataclass
class Response:
    """What a client learns from a call. `status`: of HTTP, or 0 if there was no response."""

    status: int
    order_id: str = ""
    order_status: str = ""
    detail: str = ""


@dataclass
class OrderWorkload:
    """`clients` concurrent clients, driven by a seed. `urls`: those of graphql, products and orders."""

    urls: dict[str, str]
    products: list[str]
    history: History
    seed: int
    clients: int = 16
    # The mean pause of a client between two operations.
    think_seconds: float = 0.05
    timeout_seconds: float = 12.0
    # How long a client retries with one key.
    retry_seconds: float = 90.0
    orders_in_flight: int = 0
    # When the last order was placed, in seconds since the run started.
    last_order_at: float = 0.0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run until `stop()`; operations that have begun are completed."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)
        timeout = aiohttp.ClientTimeout(total=self.timeout_seconds)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(self.clients)))

    def stop(self) -> None:
        self._stopping.set()

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        user = f"client-{number}@chaos.test"
        # Equal keys of different users: a key belongs to its user.
        keys = (f"chaos-{self.seed}-{n}" for n in itertools.count())
        own_orders: list[str] = []
        while not self._stopping.is_set():
            choice = rng.random()
            if choice < 0.70 or not own_orders:
                order_id = await self._place(http, rng, user, next(keys))
                if order_id:
                    own_orders.append(order_id)
            elif choice < 0.82:
                order_id = own_orders.pop(rng.randrange(len(own_orders)))
                await self._until_final(http, rng, "cancel", order_id=order_id)
            elif choice < 0.90:
                await self._call(http, rng, "read", order_id=rng.choice(own_orders))
            elif choice < 0.95:
                await self._call(http, rng, "browse")
            else:
                await self._call(http, rng, "list", user=user)
            await asyncio.sleep(rng.uniform(0, 2 * self.think_seconds))

    async def _place(self, http: aiohttp.ClientSession, rng: random.Random, user: str, key: str) -> str:
        """Place an order. Return its id, or "" if none was placed."""
        products = rng.sample(self.products, k=min(len(self.products), rng.choice([1, 1, 2, 3])))
        items = {product: rng.choice([1, 1, 2]) for product in products}
        response = await self._until_final(http, rng, "place", key=key, items=items, user=user)
        if rng.random() < 0.1:
            # A client that lost the response repeats the request, sometimes twice at the same time.
            await asyncio.gather(
                *(self._call(http, rng, "place", key=key, items=items, user=user) for _ in range(rng.choice([1, 2])))
            )
        return response.order_id if response.status in (200, 201) else ""

    async def _until_final(
        self, http: aiohttp.ClientSession, rng: random.Random, operation: Operation, **request: Any
    ) -> Response:
        """Call and retry, with exponential backoff, until the response is final or `retry_seconds` are over."""
        deadline = self.history.now() + self.retry_seconds
        backoff = 0.1
        while True:
            response = await self._call(http, rng, operation, **request)
            if response.status not in RETRYABLE or self.history.now() > deadline:
                return response
            await asyncio.sleep(rng.uniform(0.5, 1) * backoff)
            backoff = min(1.0, backoff * 2)

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
    ) -> Response:
        """Make one call, by REST or GraphQL at random, and record it in the history."""
        via: Literal["rest", "graphql"] = (
            rng.choice(["rest", "graphql"]) if operation in ("place", "cancel", "read") else "rest"
        )
        started_at = self.history.now()
        placing = operation == "place"
        self.orders_in_flight += placing
        try:
            send = self._send_graphql if via == "graphql" else self._send_rest
            response = await send(http, operation, key, items or {}, user, order_id)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as e:
            response = Response(0, detail=type(e).__name__)
        finally:
            self.orders_in_flight -= placing
        ended_at = self.history.now()
        if placing and response.status in (200, 201):
            self.last_order_at = ended_at
        self.history.add(
            Call(
                operation=operation,
                via=via,
                started_at=started_at,
                ended_at=ended_at,
                status=response.status,
                key=key,
                user=user,
                order_id=response.order_id or order_id,
                items=items or {},
                order_status=response.order_status,
                detail=response.detail,
            )
        )
        return response

    async def _send_rest(
        self, http: aiohttp.ClientSession, operation: str, key: str, items: dict[str, int], user: str, order_id: str
    ) -> Response:
        orders = f"{self.urls['orders']}/api/order"
        if operation == "browse":
            request = http.get(f"{self.urls['products']}/api/product", params={"limit": "20"})
        elif operation == "place":
            body = {"user": user, "items": [{"product_id": p, "quantity": q} for p, q in items.items()]}
            request = http.post(orders, json=body, headers={"Idempotency-Key": key})
        elif operation == "cancel":
            request = http.delete(f"{orders}/{order_id}")
        elif operation == "list":
            request = http.get(orders, params={"user": user, "limit": "20"})
        else:
            request = http.get(f"{orders}/{order_id}")
        async with request as response:
            data = await response.read()
            content: Any = msgspec.json.decode(data) if data else {}
            if response.status >= 400:
                return Response(response.status, content.get("order_id", ""), detail=content.get("detail", "")[:200])
            return Response(response.status, content.get("id", ""), content.get("status", ""))

    async def _send_graphql(
        self, http: aiohttp.ClientSession, operation: str, key: str, items: dict[str, int], user: str, order_id: str
    ) -> Response:
        variables: dict[str, Any]
        if operation == "place":
            lines = [{"productId": p, "quantity": q} for p, q in items.items()]
            query, field_name = CREATE_ORDER, "createOrder"
            variables = {"input": {"user": user, "items": lines}, "key": key}
        else:
            query, field_name = (DELETE_ORDER, "deleteOrder") if operation == "cancel" else (READ_ORDER, "order")
            variables = {"id": order_id}
        request = {"query": query, "variables": variables}
        async with http.post(f"{self.urls['graphql']}/graphql", json=request) as response:
            content: Any = msgspec.json.decode(await response.read())
            status = response.status
        if status >= 400 and not content.get("errors"):
            return Response(status)
        if errors := content.get("errors"):
            extensions = errors[0].get("extensions", {})
            return Response(
                STATUS_OF.get(extensions.get("code", ""), 503),
                extensions.get("orderId", ""),
                detail=errors[0]["message"][:200],
            )
        order = content["data"][field_name]
        return Response(200, order["id"], order["status"])
