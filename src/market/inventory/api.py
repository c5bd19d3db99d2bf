"""The inbound edge of inventory: gRPC messages in, domain data inside, gRPC messages out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import grpc

# A subclass of uuid.UUID that is read, compared and hashed in C: eight times as fast, and an order has several.
from asyncpg.pgproto.pgproto import UUID as FastUUID
from google.protobuf.message import DecodeError

from market.contracts import inventory_pb2 as pb
from market.inventory import store
from market.inventory.domain import (
    DEFAULT_PAGE,
    MAX_IDS,
    MAX_PAGE,
    MAX_QUANTITY,
    MAX_RAW_LINES,
    MAX_RESERVATIONS,
    MAX_STOCK,
    Movement,
    Reservation,
    Shortages,
    merged,
)
from market.inventory.service import Inventory
from market.kit.errors import GRPC_INTERNAL, INTERNAL_ERROR, BadInput, Problem
from market.kit.process import logs
from market.kit.process.tracing import Tracer
from market.kit.rpc.server import Handler, endpoint

log = logs.get_logger("inventory")

NAME = pb.DESCRIPTOR.services_by_name["Inventory"].full_name
_STATUSES = {"reserved": pb.RESERVATION_STATUS_RESERVED, "cancelled": pb.RESERVATION_STATUS_CANCELLED}
_TAKEN = pb.ReserveResponse(reserved=True)
_ONE_TAKEN = pb.ReserveManyResult(answer=_TAKEN)


class Api:
    """The calls of `market.inventory.v1.Inventory`, each from a message to its answer. Raises Problem."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def check_avaliable(self, request: pb.CheckAvaliableRequest) -> pb.CheckAvaliableResponse:
        product_ids = parse_ids(request.product_ids)
        quantities = await self._inventory.stock(product_ids)
        answer = pb.Availability
        return pb.CheckAvaliableResponse(
            items=[
                answer(product_id=str(id), available=True, quantity=left) if left else answer(product_id=str(id))
                for id, left in zip(product_ids, quantities, strict=True)
            ]
        )

    async def reserve(self, request: pb.ReserveRequest) -> pb.ReserveResponse:
        return _answer(await self._inventory.reserve(parse_reservation(request)))

    async def cancel_reserve(self, request: pb.CancelReserveRequest) -> pb.CancelReserveResponse:
        return pb.CancelReserveResponse(
            released=await self._inventory.cancel(parse_id("reservation_id", request.reservation_id))
        )

    async def reserve_many(self, request: pb.ReserveManyRequest) -> pb.ReserveManyResponse:
        if len(request.reservations) > MAX_RESERVATIONS:
            raise BadInput("reservations", f"must be at most {MAX_RESERVATIONS}")
        results: list[pb.ReserveManyResult] = []
        wanted: list[Reservation] = []
        places: list[int] = []
        for n, message in enumerate(request.reservations):
            try:
                wanted.append(parse_reservation(message))
            except BadInput as e:
                results.append(_failed(e))
            else:
                places.append(n)
                results.append(_ONE_TAKEN)
        for n, outcome in zip(places, await self._inventory.reserve_many(wanted), strict=True):
            if outcome:
                results[n] = (
                    _failed(outcome)
                    if isinstance(outcome, BaseException)
                    else pb.ReserveManyResult(answer=_answer(outcome))
                )
        return pb.ReserveManyResponse(results=results)

    async def set_stock(self, request: pb.SetStockRequest) -> pb.SetStockResponse:
        product_id = parse_id("product_id", request.product_id)
        if request.quantity < 0:
            raise BadInput("quantity", f"must be 0 to {MAX_STOCK}")
        return pb.SetStockResponse(quantity=await self._inventory.set_stock(product_id, request.quantity))

    async def add_stock(self, request: pb.AddStockRequest) -> pb.AddStockResponse:
        movement_id = parse_id("movement_id", request.movement_id)
        product_id = parse_id("product_id", request.product_id)
        if request.delta == 0 or request.delta < -MAX_STOCK:
            raise BadInput("delta", f"must be -{MAX_STOCK} to {MAX_STOCK}, and not 0")
        return pb.AddStockResponse(
            quantity=await self._inventory.add_stock(Movement(movement_id, product_id, request.delta))
        )

    async def get_stock(self, request: pb.GetStockRequest) -> pb.GetStockResponse:
        product_ids = list(dict.fromkeys(parse_ids(request.product_ids)))
        quantities = await self._inventory.stock(product_ids)
        return pb.GetStockResponse(
            items=[
                pb.Item(product_id=str(id), quantity=left)
                for id, left in zip(product_ids, quantities, strict=True)
                if left is not None
            ]
        )

    async def list_reservations(self, request: pb.ListReservationsRequest) -> pb.ListReservationsResponse:
        after = parse_id("after_id", request.after_id) if request.after_id else None
        if not 0 <= request.limit <= MAX_PAGE:
            raise BadInput("limit", f"must be 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}")
        limit = request.limit or DEFAULT_PAGE
        kept = await self._inventory.read(lambda conn: store.reservations(conn, after, limit))
        answer = pb.ListReservationsResponse()
        for one in kept:
            lines = zip(one.reservation.product_ids, one.reservation.quantities, strict=True)
            message = answer.reservations.add(
                reservation_id=str(one.reservation.id),
                status=_STATUSES[one.status],
                items=[pb.Item(product_id=str(id), quantity=quantity) for id, quantity in lines],
            )
            message.created_at.FromDatetime(one.created_at)
        return answer


def handlers(api: Api, tracer: Tracer) -> grpc.GenericRpcHandler:
    """The service for a gRPC server. Bytes that are no message of ours are INVALID_ARGUMENT, where the generated code says INTERNAL."""

    def unary(name: str, handler: Handler, request: Any, response: Any) -> grpc.RpcMethodHandler[Any, Any]:
        def parse(data: bytes) -> Any:
            try:
                return request.FromString(data)
            except DecodeError:
                return None

        async def serve(message: Any) -> Any:
            if message is None:
                raise BadInput("request", f"must be a {request.DESCRIPTOR.full_name}")
            return await handler(message)

        return grpc.unary_unary_rpc_method_handler(
            endpoint(name, serve, tracer), request_deserializer=parse, response_serializer=response.SerializeToString
        )

    table: dict[str, tuple[Handler, Any, Any]] = {
        "CheckAvaliable": (api.check_avaliable, pb.CheckAvaliableRequest, pb.CheckAvaliableResponse),
        "Reserve": (api.reserve, pb.ReserveRequest, pb.ReserveResponse),
        "CancelReserve": (api.cancel_reserve, pb.CancelReserveRequest, pb.CancelReserveResponse),
        "ReserveMany": (api.reserve_many, pb.ReserveManyRequest, pb.ReserveManyResponse),
        "SetStock": (api.set_stock, pb.SetStockRequest, pb.SetStockResponse),
        "AddStock": (api.add_stock, pb.AddStockRequest, pb.AddStockResponse),
        "GetStock": (api.get_stock, pb.GetStockRequest, pb.GetStockResponse),
        "ListReservations": (api.list_reservations, pb.ListReservationsRequest, pb.ListReservationsResponse),
    }
    return grpc.method_handlers_generic_handler(NAME, {name: unary(name, *entry) for name, entry in table.items()})


def parse_id(field: str, text: str) -> UUID:
    """The id, or BadInput. Takes the canonical form of 36 characters alone."""
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        try:
            id: UUID = FastUUID(text)
        except ValueError:
            pass
        else:
            return id
    raise BadInput(field, "must be a UUID")


def parse_ids(texts: Sequence[str]) -> list[UUID]:
    """The ids of `product_ids` as they came, repeats included."""
    if len(texts) > MAX_IDS:
        raise BadInput("product_ids", f"must be at most {MAX_IDS}")
    return [parse_id(f"product_ids[{n}]", text) for n, text in enumerate(texts)]


def parse_reservation(message: pb.ReserveRequest) -> Reservation:
    """What is wanted, merged and sorted, or BadInput."""
    id = parse_id("reservation_id", message.reservation_id)
    if len(message.items) > MAX_RAW_LINES:
        raise BadInput("items", f"must be at most {MAX_RAW_LINES}")
    return merged(id, _lines(message.items))


def _lines(items: Iterable[pb.Item]) -> Iterable[tuple[UUID, int]]:
    for n, item in enumerate(items):
        quantity = item.quantity
        if not 1 <= quantity <= MAX_QUANTITY:
            raise BadInput(f"items[{n}].quantity", f"must be 1 to {MAX_QUANTITY}")
        yield parse_id(f"items[{n}].product_id", item.product_id), quantity


def _answer(shortages: Shortages) -> pb.ReserveResponse:
    if not shortages:
        return _TAKEN
    return pb.ReserveResponse(
        shortages=[pb.Shortage(product_id=str(s.product_id), wanted=s.wanted, left=s.left) for s in shortages]
    )


def _failed(e: BaseException) -> pb.ReserveManyResult:
    if isinstance(e, Problem):
        return pb.ReserveManyResult(code=e.grpc_status, message=str(e))
    log.error("reservation failed", exc_info=e)
    return pb.ReserveManyResult(code=GRPC_INTERNAL, message=INTERNAL_ERROR)
