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
from market_dev.chaos.people import Tokens, name_of
from market_dev.chaos.requests import Request, Response, send_graphql, send_rest
from market_dev.tokens import SignInFailed

_READ_OR_CANCEL: tuple[Operation, ...] = ("read", "cancel")
# Statuses after which a request is retried with the same key; 0: no response.
RETRYABLE = {0, 500, 502, 503, 504}


@dataclass
class OrderWorkload:
    """`clients` concurrent clients, driven by a seed. `urls`: those of graphql, products and orders.

    With `tokens` each client signs in as its user, leaves `user` out in half of its requests, and now and then requests
    an order of somebody else.
    """

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
    tokens: Tokens | None = None
    orders_in_flight: int = 0
    # When the last order was placed, in seconds since the run started.
    last_order_at: float = 0.0
    # The orders of all clients.
    _placed: list[str] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run until `stop()`; operations that have begun are completed."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)
        timeout = aiohttp.ClientTimeout(total=self.timeout_seconds)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(self.clients)))

    def stop(self) -> None:
        """Let `run` return once the operations in progress are completed."""
        self._stopping.set()

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        user = name_of(number)
        # Equal keys of different users: a key belongs to its user.
        keys = (f"chaos-{self.seed}-{n}" for n in itertools.count())
        own_orders: list[str] = []
        while not self._stopping.is_set():
            choice = rng.random()
            if choice < 0.70 or not own_orders:
                order_id = await self._place(http, rng, user, next(keys))
                if order_id:
                    own_orders.append(order_id)
                    self._placed.append(order_id)
            elif choice < 0.82:
                order_id = own_orders.pop(rng.randrange(len(own_orders)))
                await self._until_final(http, rng, "cancel", user=user, order_id=order_id)
            elif choice < 0.90:
                await self._call(http, rng, "read", user=user, order_id=rng.choice(own_orders))
            elif choice < 0.95:
                await self._call(http, rng, "browse", user=user)
            else:
                await self._call(http, rng, "list", user=user)
            if self.tokens is not None and self._placed and rng.random() < 0.1:
                operation = rng.choice(_READ_OR_CANCEL)
                await self._call(http, rng, operation, user=user, order_id=rng.choice(self._placed))
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
        user: str,
        key: str = "",
        items: dict[str, int] | None = None,
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
            headers, named = await self._sign_in(rng, user)
            send = send_graphql if via == "graphql" else send_rest
            response = await send(http, self.urls, Request(operation, key, items or {}, named, order_id), headers)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, SignInFailed) as e:
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
                shown_users=response.shown_users,
                detail=response.detail,
            )
        )
        return response

    async def _sign_in(self, rng: random.Random, user: str) -> tuple[dict[str, str], str]:
        """Return the headers of a request, and the user that it names, if any."""
        if self.tokens is None:
            return {}, user
        named = rng.choice([user, ""])
        return {"Authorization": f"Bearer {await self.tokens.get(user)}"}, named
