"""Calls to inventory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from uuid import UUID

import grpc.aio

from market.contracts.inventory_pb2 import CheckAvaliableRequest, SetStockRequest
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.kit import context
from market.kit.errors import Problem, Unavailable
from market.kit.resilience import CircuitBreaker, RetryBudget, retry
from market.kit.rpc import client as rpc

# Product ids in one CheckAvaliable.
MAX_IDS_PER_CALL = 1000


class InventoryClient:
    """Calls inventory. Owns the circuit breaker and the retry budget of the reads.

    read_seconds, write_seconds: the limit of one read with its retry, and of one write.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        read_seconds: float,
        write_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = InventoryStub(channel)
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        self._circuit = CircuitBreaker("inventory", slow_after_seconds=read_seconds / 2, clock=clock)
        self._retries = RetryBudget("inventory")

    async def check_available(self, product_ids: Sequence[str]) -> dict[str, bool]:
        """Return for each product whether it can be sold now; at most MAX_IDS_PER_CALL ids. Raises Unavailable."""
        request = CheckAvaliableRequest(product_ids=product_ids)
        with context.deadline_in(self._read_seconds):
            response = await self._circuit(
                lambda: retry(
                    lambda: rpc.call(self._stub.CheckAvaliable, request, self._read_seconds),
                    budget=self._retries,
                    attempts=2,
                )
            )
        return {item.product_id: item.available for item in response.items}

    async def set_stock(self, product_id: UUID, quantity: int) -> int:
        """Replace the product's stock, and return it. Never retried automatically.

        Raises Unavailable; whether the call took effect is then unknown.
        """
        request = SetStockRequest(product_id=str(product_id), quantity=quantity)
        try:
            response = await rpc.call(self._stub.SetStock, request, self._write_seconds)
        except Unavailable as e:
            raise Unavailable(f"the stock could not be set: {e}") from None
        except Problem as e:
            # The request satisfies the rules of products, so a rejection is not the caller's mistake.
            raise Unavailable(f"inventory rejected the stock: {e}") from None
        return int(response.quantity)
