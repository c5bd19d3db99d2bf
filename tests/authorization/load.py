"""Load on a shop with sign-in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.authorization.shop import Shop
from tests.support.waiting import until


class Load:
    """Callers that read and write through REST and GraphQL without a pause. `token` is what they send."""

    def __init__(self, shop: Shop, token: str) -> None:
        self.shop = shop
        self.token = token
        self.handled = 0
        self.failed: list[str] = []
        self.slowest_seconds = 0.0

    @asynccontextmanager
    async def running(self, callers: int = 8) -> AsyncIterator[Load]:
        product = await self.shop.create_product(stock=10_000_000)
        stopping = asyncio.Event()
        tasks = [asyncio.create_task(self._call(n, product["id"], stopping)) for n in range(callers)]
        try:
            yield self
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def handle(self, count: int) -> None:
        """Return when `count` more requests were handled."""
        wanted = self.handled + count
        await until(lambda: self.handled >= wanted, what=f"{count} more requests")

    async def _call(self, n: int, product_id: str, stopping: asyncio.Event) -> None:
        items = [{"product_id": product_id, "quantity": 1}]
        while not stopping.is_set():
            started = time.monotonic()
            if n % 4 == 0:
                response = await self.shop.rest("orders", "POST", "/api/order", self.token, json={"items": items})
            elif n % 4 == 1:
                response = await self.shop.rest("products", "GET", f"/api/product/{product_id}", self.token)
            else:
                response = await self.shop.graphql("{orders(limit: 2) {items {id total}}}", self.token)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
            self.handled += 1
            if not response.is_success or '"errors"' in response.text:
                self.failed.append(response.text)
