"""The calls of gRPC: the methods of inventory, health and reflection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid5

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from market.contracts import inventory_pb2 as pb
from tests.authorization import effects
from tests.authorization.calls import Call, Outcome, Reply, Send, Target
from tests.authorization.shop import Shop, bearer
from tests.support.waiting import PATIENCE

_CODES = {
    grpc.StatusCode.UNAUTHENTICATED: Outcome.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Outcome.FORBIDDEN,
}
# The type stubs lack the method List.
_ListResponse: Any = getattr(health_pb2, "HealthListResponse")  # noqa: B009


async def _reply(call: Awaitable[Any]) -> Reply:
    try:
        return Reply(Outcome.ALLOWED, await call)
    except grpc.aio.AioRpcError as e:
        if (outcome := _CODES.get(e.code())) is None:
            raise
        return Reply(outcome, None, e.details() or "")


def _options(token: str | None) -> dict[str, Any]:
    return {"metadata": [(name.lower(), value) for name, value in bearer(token).items()], "timeout": PATIENCE}


def _unary(path: str, make_request: Callable[[Target], Any], response_type: Any) -> Send:
    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        request = make_request(target)
        method: Any = shop.inventory.unary_unary(path, type(request).SerializeToString, response_type.FromString)
        return await _reply(method(request, **_options(token)))

    return send


async def inventory_code(shop: Shop, token: str) -> grpc.StatusCode:
    """Return the status with which inventory responds to a call that orders may make."""
    request = pb.ListReservationsRequest(limit=1)
    method: Any = shop.inventory.unary_unary(
        "/market.inventory.v1.Inventory/ListReservations",
        type(request).SerializeToString,
        pb.ListReservationsResponse.FromString,
    )
    try:
        await method(request, **_options(token))
    except grpc.aio.AioRpcError as e:
        return e.code()
    return grpc.StatusCode.OK


def _inventory(method: str, make_request: Callable[[Target], Any]) -> Send:
    return _unary(f"/market.inventory.v1.Inventory/{method}", make_request, getattr(pb, f"{method}Response"))


async def _watch(shop: Shop, target: Target, token: str | None) -> Reply:
    """Return the first response of the stream."""
    response = health_pb2.HealthCheckResponse
    request = health_pb2.HealthCheckRequest()
    method: Any = shop.inventory.unary_stream(
        "/grpc.health.v1.Health/Watch", type(request).SerializeToString, response.FromString
    )
    call = method(request, **_options(token))
    reply = await _reply(call.read())
    call.cancel()
    return reply


def _reflection(version: str) -> Send:
    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        method: Any = shop.inventory.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            type(request).SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        return await _reply(method(iter([request]), **_options(token)).read())

    return send


def _own_id(target: Target) -> str:
    """Return the id of the target's reservation that REST knows nothing of."""
    return str(uuid5(UUID(target.product_id), "reservation"))


def _reservation(target: Target) -> pb.ReserveRequest:
    items = [pb.Item(product_id=target.product_id, quantity=2)]
    return pb.ReserveRequest(reservation_id=_own_id(target), items=items)


async def _is_reserved(shop: Shop, target: Target, value: Any) -> None:
    assert await shop.stores.reservation(_own_id(target)) == "reserved"


async def _is_released(shop: Shop, target: Target, value: Any) -> None:
    assert await shop.stores.reservation(target.order_id) == "cancelled"


async def _is_counted(shop: Shop, target: Target, value: Any) -> None:
    assert await shop.stores.stock(target.product_id) == value.quantity == effects.COUNTED_STOCK


async def _is_delivered(shop: Shop, target: Target, value: Any) -> None:
    assert value.outcome == pb.DELIVERY_OUTCOME_ADDED
    assert await shop.stores.stock(target.product_id) == value.quantity


async def _shows_quantity(shop: Shop, target: Target, value: Any) -> None:
    assert [item.quantity for item in value.items] == [await shop.stores.stock(target.product_id)]


async def _shows_reservations(shop: Shop, target: Target, value: Any) -> None:
    assert value.reservations


async def _is_added(shop: Shop, target: Target, value: Any) -> None:
    raise AssertionError("nobody may call AddStock; a role that may needs a check of its effect here")


async def _is_message(shop: Shop, target: Target, value: Any) -> None:
    assert value.ByteSize()


CALLS: dict[str, Call] = {
    "inventory: CheckAvaliable": Call(
        _inventory("CheckAvaliable", lambda t: pb.CheckAvaliableRequest(product_ids=[t.product_id])), _shows_quantity
    ),
    "inventory: GetStock": Call(
        _inventory("GetStock", lambda t: pb.GetStockRequest(product_ids=[t.product_id])), _shows_quantity
    ),
    "inventory: SetStock": Call(
        _inventory("SetStock", lambda t: pb.SetStockRequest(product_id=t.product_id, quantity=effects.COUNTED_STOCK)),
        _is_counted,
        changes=True,
    ),
    "inventory: AddDelivery": Call(
        _inventory(
            "AddDelivery",
            lambda t: pb.AddDeliveryRequest(
                product_id=t.product_id, delivery_id=_own_id(t), quantity=5, product_version=2
            ),
        ),
        _is_delivered,
        changes=True,
    ),
    "inventory: AddStock": Call(
        _inventory("AddStock", lambda t: pb.AddStockRequest(movement_id=_own_id(t), product_id=t.product_id, delta=5)),
        _is_added,
        changes=True,
    ),
    "inventory: Reserve": Call(_inventory("Reserve", _reservation), _is_reserved, changes=True),
    "inventory: ReserveMany": Call(
        _inventory("ReserveMany", lambda t: pb.ReserveManyRequest(reservations=[_reservation(t)])),
        _is_reserved,
        changes=True,
    ),
    "inventory: CancelReserve": Call(
        _inventory("CancelReserve", lambda t: pb.CancelReserveRequest(reservation_id=t.order_id)),
        _is_released,
        changes=True,
    ),
    "inventory: ListReservations": Call(
        _inventory("ListReservations", lambda _: pb.ListReservationsRequest(limit=10)), _shows_reservations
    ),
    "grpc: grpc.health.v1.Health/Check": Call(
        _unary(
            "/grpc.health.v1.Health/Check",
            lambda _: health_pb2.HealthCheckRequest(),
            health_pb2.HealthCheckResponse,
        ),
        _is_message,
        reads_token=False,
    ),
    "grpc: grpc.health.v1.Health/List": Call(
        _unary("/grpc.health.v1.Health/List", lambda _: health_pb2.HealthCheckRequest(), _ListResponse),
        _is_message,
        reads_token=False,
    ),
    "grpc: grpc.health.v1.Health/Watch": Call(_watch, _is_message, reads_token=False),
    **{
        f"grpc: grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Call(
            _reflection(version), _is_message, reads_token=False
        )
        for version in ("v1", "v1alpha")
    },
}
