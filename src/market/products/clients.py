"""Calls to inventory."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import grpc.aio

from market.contracts.inventory_pb2 import CheckAvaliableRequest, SetStockRequest
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.kit import context
from market.kit.errors import Problem, Unavailable
from market.kit.resilience import CircuitBreaker, RetryBudget, retry
from market.kit.rpc import client as rpc

# Ids in one CheckAvaliable.
MOST = 1000


class InventoryClient:
    """Owns the circuit and the retry budget of the reads."""

    def __init__(self, channel: grpc.aio.Channel, *, write_seconds: float, read_seconds: float) -> None:
        self._stub = InventoryStub(channel)
        self._write_seconds = write_seconds
        self._read_seconds = read_seconds
        self._circuit = CircuitBreaker("inventory", slow_after_seconds=read_seconds / 2)
        self._budget = RetryBudget("inventory")

    async def available(self, ids: Sequence[str]) -> dict[str, bool]:
        """Which of the products can be sold now; at most MOST ids. Raises Unavailable."""
        request = CheckAvaliableRequest(product_ids=ids)
        with context.deadline_in(self._read_seconds):
            answer = await self._circuit(
                lambda: retry(
                    lambda: rpc.call(self._stub.CheckAvaliable, request, self._read_seconds),
                    budget=self._budget,
                    attempts=2,
                )
            )
        return {item.product_id: item.available for item in answer.items}

    async def set_stock(self, id: UUID, quantity: int) -> int:
        """The quantity now. Raises Unavailable, which leaves open whether it took effect; never repeated by itself."""
        try:
            answer = await rpc.call(
                self._stub.SetStock, SetStockRequest(product_id=str(id), quantity=quantity), self._write_seconds
            )
        except Unavailable as e:
            raise Unavailable(f"the stock could not be set: {e}") from None
        except Problem as e:
            # We sent what our own rules allow: whatever inventory has against it is not the caller's fault.
            raise Unavailable(f"inventory refused the stock: {e}") from None
        return int(answer.quantity)
