"""Stock and reservations in the real inventory, which tests read and change without orders."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc.aio

from market.contracts import inventory_pb2 as pb
from tests.support.waiting import PATIENCE

_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Stock:
    """A client of the real inventory. `target`: its address, for the configuration of orders."""

    stub: Any
    target: str

    async def _call(self, method: Any, request: Any) -> Any:
        # Every call is idempotent. The machine may stand still for longer than a statement may take.
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as e:
                if e.code() not in _TRANSIENT or asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.1)

    async def set(self, product_id: str, quantity: int) -> None:
        """Set the product's stock."""
        await self._call(self.stub.SetStock, pb.SetStockRequest(product_id=product_id, quantity=quantity))

    async def available(self, product_id: str) -> int:
        """Return the units that can still be sold."""
        response = await self._call(self.stub.GetStock, pb.GetStockRequest(product_ids=[product_id]))
        return int(response.items[0].quantity)

    async def reserve(self, order_id: str, product_id: str, quantity: int) -> None:
        """Reserve units without orders, as another program would."""
        items = [pb.Item(product_id=product_id, quantity=quantity)]
        await self._call(self.stub.Reserve, pb.ReserveRequest(reservation_id=order_id, items=items))

    async def release(self, order_id: str) -> None:
        """Cancel the reservation without orders, as another program would."""
        await self._call(self.stub.CancelReserve, pb.CancelReserveRequest(reservation_id=order_id))

    async def reservation(self, order_id: str | UUID) -> tuple[str, dict[str, int]] | None:
        """Return the reservation's status ("reserved" or "cancelled") and its quantities by product id, or None."""
        after = str(UUID(int=UUID(str(order_id)).int - 1))
        response = await self._call(self.stub.ListReservations, pb.ListReservationsRequest(after_id=after, limit=1))
        for r in response.reservations:
            if r.reservation_id == str(order_id):
                return {1: "reserved", 2: "cancelled"}[r.status], {i.product_id: i.quantity for i in r.items}
        return None
