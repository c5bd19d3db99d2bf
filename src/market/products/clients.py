"""Calls to inventory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

import grpc.aio
from msgspec import Struct

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2 import AddDeliveryRequest, CheckAvaliableRequest, GetStockRequest, SetStockRequest
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.kit import context
from market.kit.errors import Problem, Unavailable
from market.kit.resilience import CircuitBreaker, RetryBudget, retry
from market.kit.rpc import client as rpc
from market.products.domain import Delivery, DeliveryIdReused, StockTooLarge

T = TypeVar("T")

# Product ids in one CheckAvaliable or GetStock.
MAX_IDS_PER_CALL = 1000


class StockInForce(Struct, frozen=True, gc=False):
    """A product's stock, and the version of the product to which it belongs.

    applied: whether the call has changed the stock
    """

    quantity: int
    version: int
    applied: bool


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
        self._circuit = CircuitBreaker("inventory", ignore_deadlines_below_seconds=read_seconds / 2, clock=clock)
        self._retries = RetryBudget("inventory")

    async def check_identity(self) -> None:
        """Raise IdentityRefused if inventory does not accept this service. An unavailable inventory raises nothing."""
        await rpc.check_identity(self._stub.GetStock, GetStockRequest(), self._read_seconds)

    async def check_available(self, product_ids: Sequence[str]) -> dict[str, bool]:
        """Return for each product whether it can be sold now; at most MAX_IDS_PER_CALL ids. Raises Unavailable."""
        request = CheckAvaliableRequest(product_ids=product_ids)
        response = await self._read(lambda: rpc.call(self._stub.CheckAvaliable, request, self._read_seconds))
        return {item.product_id: item.available for item in response.items}

    async def get_stock(self, product_ids: Sequence[str]) -> dict[str, int]:
        """Return the units of each product that are free to sell; at most MAX_IDS_PER_CALL ids. Raises Unavailable."""
        request = GetStockRequest(product_ids=product_ids)
        response = await self._read(lambda: rpc.call(self._stub.GetStock, request, self._read_seconds))
        quantities = {item.product_id: item.quantity for item in response.items}
        return {product_id: quantities.get(product_id, 0) for product_id in product_ids}

    async def set_stock(self, product_id: UUID, quantity: int, version: int) -> StockInForce:
        """Set the stock that belongs to this version of the product, unless that of a newer one is in force.

        Return what is in force afterwards. Never retried automatically. Raises Unavailable; whether the call took
        effect is then unknown.
        """
        request = SetStockRequest(product_id=str(product_id), quantity=quantity, product_version=version)
        try:
            response = await rpc.call(self._stub.SetStock, request, self._write_seconds)
        except Unavailable as e:
            raise Unavailable(f"the stock could not be set: {e}") from None
        except Problem as e:
            # Products has validated the request, so a rejection is not the caller's mistake.
            raise Unavailable(f"inventory rejected the stock: {e}") from None
        # The previous version of inventory has no versions, and always sets the stock.
        in_force = response.product_version if response.HasField("product_version") else version
        applied = response.applied if response.HasField("applied") else in_force == version
        return StockInForce(response.quantity, in_force, applied)

    async def check_delivery(self, product_id: UUID, delivery: Delivery) -> int:
        """Return the product's stock if the delivery can be added to it, or was added before.

        Raises DeliveryIdReused, StockTooLarge, Unavailable.
        """
        request = AddDeliveryRequest(
            product_id=str(product_id), delivery_id=str(delivery.id), quantity=delivery.quantity, validate_only=True
        )
        response = await self._read(lambda: rpc.call(self._stub.AddDelivery, request, self._read_seconds))
        _require_accepted(response, delivery)
        return response.quantity

    async def add_delivery(self, product_id: UUID, delivery: Delivery, version: int) -> StockInForce:
        """Add the delivery to the stock, unless it was added before, or a newer version of the product has set the
        stock.

        Return what is in force afterwards. Never retried automatically. Raises DeliveryIdReused and StockTooLarge,
        which add nothing, and Unavailable; whether the delivery was added is then unknown.
        """
        request = AddDeliveryRequest(
            product_id=str(product_id),
            delivery_id=str(delivery.id),
            quantity=delivery.quantity,
            product_version=version,
        )
        try:
            response = await rpc.call(self._stub.AddDelivery, request, self._write_seconds)
        except Unavailable as e:
            raise Unavailable(f"the delivery could not be added: {e}") from None
        except Problem as e:
            # Products has validated the request, so a rejection is not the caller's mistake.
            raise Unavailable(f"inventory rejected the delivery: {e}") from None
        _require_accepted(response, delivery)
        return StockInForce(response.quantity, response.product_version, response.outcome == pb.DELIVERY_OUTCOME_ADDED)

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a read, which is retried once. Raises Unavailable."""
        with context.deadline_in(self._read_seconds):
            return await self._circuit(lambda: retry(call, budget=self._retries, attempts=2))


def _require_accepted(response: pb.AddDeliveryResponse, delivery: Delivery) -> None:
    if response.outcome == pb.DELIVERY_OUTCOME_MISMATCH:
        raise DeliveryIdReused
    if response.outcome == pb.DELIVERY_OUTCOME_TOO_LARGE:
        raise StockTooLarge(delivery, response.quantity)
