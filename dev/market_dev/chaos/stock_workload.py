"""The stock workload: samples the stock and books deliveries while clients place orders."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from uuid import uuid4

import grpc.aio

from market.contracts import inventory_pb2, inventory_pb2_grpc
from market_dev.chaos.final_reads import Stores, read_stock
from market_dev.chaos.history import Call, History
from market_dev.chaos.observations import StockSample
from market_dev.stack.stack import Stack

_SAMPLE_INTERVAL_SECONDS = 0.7


class StockWorkload:
    """Owns the samples (`samples`), and the units that were added (`restocked`, by product id)."""

    def __init__(
        self, stack: Stack, products: list[str], history: History, seed: int, restock_interval_seconds: float
    ) -> None:
        self._stack = stack
        self._products = products
        self._history = history
        self._rng = random.Random(f"{seed}/stock")
        self._restock_interval_seconds = restock_interval_seconds
        self._stopping = asyncio.Event()
        self.samples: list[StockSample] = []
        self.restocked: dict[str, int] = {}

    def stop(self) -> None:
        """Let `sample` and `restock` return."""
        self._stopping.set()

    async def sample(self) -> None:
        """Read the stock at intervals until `stop()`."""
        stores = Stores.of(self._stack)
        while not self._stopping.is_set():
            # A store that is down or paused is skipped this time.
            with suppress(Exception):
                async with asyncio.timeout(2):
                    second = self._history.now()
                    stock = await read_stock(stores, self._products)
                    self.samples += [StockSample(second, product, quantity) for product, quantity in stock.items()]
            await self._sleep(_SAMPLE_INTERVAL_SECONDS)

    async def restock(self) -> None:
        """Book deliveries until `stop()`. Each has its own id and is retried until inventory has confirmed it."""
        async with grpc.aio.insecure_channel(self._stack.urls["inventory"]) as channel:
            stub = inventory_pb2_grpc.InventoryStub(channel)
            while not self._stopping.is_set():
                await self._sleep(self._restock_interval_seconds)
                product, delta, movement = self._rng.choice(self._products), self._rng.randrange(1, 20), str(uuid4())
                request = inventory_pb2.AddStockRequest(movement_id=movement, product_id=product, delta=delta)
                while True:
                    started_at = self._history.now()
                    try:
                        await stub.AddStock(request, timeout=3)
                    except grpc.aio.AioRpcError as e:
                        self._record(started_at, 0, product, delta, e.code().name)
                        await asyncio.sleep(0.3)
                    else:
                        self._record(started_at, 200, product, delta, "")
                        self.restocked[product] = self.restocked.get(product, 0) + delta
                        break

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or return earlier when stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _record(self, started_at: float, status: int, product: str, delta: int, detail: str) -> None:
        self._history.add(
            Call(
                operation="restock",
                via="grpc",
                started_at=started_at,
                ended_at=self._history.now(),
                status=status,
                items={product: delta},
                detail=detail,
            )
        )
