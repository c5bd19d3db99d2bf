"""What the tests of the gRPC edge share."""

from __future__ import annotations

from uuid import UUID

import grpc
import pytest

from market.contracts import inventory_pb2 as pb

A, B = str(UUID(int=1)), str(UUID(int=2))
SERVICE = "market.inventory.v1.Inventory"


def item(product: str, quantity: int) -> pb.Item:
    return pb.Item(product_id=product, quantity=quantity)


async def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()
