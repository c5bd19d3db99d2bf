"""The gRPC edge of inventory: parse protobuf messages into domain data, and write the results as messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import grpc

# A subclass of uuid.UUID that is parsed, compared and hashed in C, eight times as fast. An order has several ids.
from asyncpg.pgproto.pgproto import UUID as FastUUID
from google.protobuf.message import DecodeError, Message

from market.contracts import access
from market.contracts import inventory_pb2 as pb
from market.inventory import service
from market.inventory.availability import messages
from market.inventory.domain import (
    DEFAULT_PAGE,
    MAX_IDS,
    MAX_ITEMS,
    MAX_PAGE,
    MAX_QUANTITY,
    MAX_RESERVATIONS,
    MAX_STOCK,
    MAX_VERSION,
    Delivery,
    Movement,
    Outcome,
    Reservation,
    Shortages,
    StockWrite,
    merge_lines,
)
from market.inventory.service import Deps
from market.kit.errors import GRPC_INTERNAL, INTERNAL_ERROR, BadInput, Problem
from market.kit.process import logs
from market.kit.process.tracing import Tracer
from market.kit.rpc.server import endpoint

if TYPE_CHECKING:
    from market.kit.auth.authenticator import Authenticator

M = TypeVar("M", bound=Message)
log = logs.get_logger("inventory")

NAME = pb.DESCRIPTOR.services_by_name["Inventory"].full_name
_STATUSES = {"reserved": pb.RESERVATION_STATUS_RESERVED, "cancelled": pb.RESERVATION_STATUS_CANCELLED}
_DELIVERY_OUTCOMES = {
    Outcome.DONE: pb.DELIVERY_OUTCOME_ADDED,
    Outcome.REPEATED: pb.DELIVERY_OUTCOME_REPEATED,
    Outcome.SUPERSEDED: pb.DELIVERY_OUTCOME_SUPERSEDED,
    Outcome.REJECTED: pb.DELIVERY_OUTCOME_TOO_LARGE,
    Outcome.MISMATCH: pb.DELIVERY_OUTCOME_MISMATCH,
}
_RESERVED = pb.ReserveResponse(reserved=True)
_RESULT_RESERVED = pb.ReserveManyResult(answer=_RESERVED)


async def check_avaliable(deps: Deps, request: bytes) -> bytes:
    """Take the request and return the response encoded, see `messages`."""
    product_ids = parse_ids(pb.CheckAvaliableRequest, request)
    return messages.encode_response(product_ids, await service.get_stock(deps, product_ids))


async def reserve(deps: Deps, request: pb.ReserveRequest) -> pb.ReserveResponse:
    return _reserve_response(await service.reserve(deps, parse_reservation(request)))


async def cancel_reserve(deps: Deps, request: pb.CancelReserveRequest) -> pb.CancelReserveResponse:
    released = await service.cancel(deps, parse_id("reservation_id", request.reservation_id))
    return pb.CancelReserveResponse(released=released)


async def reserve_many(deps: Deps, request: pb.ReserveManyRequest) -> pb.ReserveManyResponse:
    _check_length("reservations", request.reservations, MAX_RESERVATIONS)
    results: list[pb.ReserveManyResult] = []
    reservations: list[Reservation] = []
    # The index in `results` of each reservation. Messages that cannot be parsed have an error there already.
    positions: list[int] = []
    for n, message in enumerate(request.reservations):
        try:
            reservations.append(parse_reservation(message))
        except BadInput as e:
            results.append(_failed_result(e))
        else:
            positions.append(n)
            results.append(_RESULT_RESERVED)
    for n, outcome in zip(positions, await service.reserve_many(deps, reservations), strict=True):
        if isinstance(outcome, BaseException):
            results[n] = _failed_result(outcome)
        elif outcome:
            results[n] = pb.ReserveManyResult(answer=_reserve_response(outcome))
    return pb.ReserveManyResponse(results=results)


async def set_stock(deps: Deps, request: pb.SetStockRequest) -> pb.SetStockResponse:
    product_id = parse_id("product_id", request.product_id)
    if request.quantity < 0:
        raise BadInput("quantity", f"must be between 0 and {MAX_STOCK}, got {request.quantity}")
    version = request.product_version if request.HasField("product_version") else None
    if version is not None and version < 1:
        raise BadInput("product_version", f"must be absent, or between 1 and {MAX_VERSION}, got {version}")
    change = await service.set_stock(deps, StockWrite(product_id, request.quantity, version))
    return pb.SetStockResponse(
        quantity=change.in_force.quantity,
        product_version=None if version is None else change.in_force.product_version,
        applied=change.applied,
    )


async def add_delivery(deps: Deps, request: pb.AddDeliveryRequest) -> pb.AddDeliveryResponse:
    product_id = parse_id("product_id", request.product_id)
    delivery_id = parse_id("delivery_id", request.delivery_id)
    if request.quantity < 1:
        raise BadInput("quantity", f"must be between 1 and {MAX_STOCK}, got {request.quantity}")
    if request.product_version < 1 and not request.validate_only:
        raise BadInput("product_version", f"must be between 1 and {MAX_VERSION}, got {request.product_version}")
    decide = service.check_delivery if request.validate_only else service.add_delivery
    result = await decide(deps, Delivery(delivery_id, product_id, request.quantity, request.product_version))
    return pb.AddDeliveryResponse(
        outcome=_DELIVERY_OUTCOMES[result.outcome],
        quantity=result.in_force.quantity,
        product_version=result.in_force.product_version,
    )


async def add_stock(deps: Deps, request: pb.AddStockRequest) -> pb.AddStockResponse:
    movement_id = parse_id("movement_id", request.movement_id)
    product_id = parse_id("product_id", request.product_id)
    if request.delta == 0 or request.delta < -MAX_STOCK:
        raise BadInput("delta", f"must be between -{MAX_STOCK} and {MAX_STOCK} and not 0, got {request.delta}")
    quantity = await service.add_stock(deps, Movement(movement_id, product_id, request.delta))
    return pb.AddStockResponse(quantity=quantity)


async def get_stock(deps: Deps, request: bytes) -> pb.GetStockResponse:
    product_ids = list(dict.fromkeys(parse_ids(pb.GetStockRequest, request)))
    quantities = await service.get_stock(deps, product_ids)
    return pb.GetStockResponse(
        items=[
            pb.Item(product_id=product_id, quantity=quantity)
            for product_id, quantity in zip(product_ids, quantities, strict=True)
            if quantity is not None
        ]
    )


async def list_reservations(deps: Deps, request: pb.ListReservationsRequest) -> pb.ListReservationsResponse:
    after = parse_id("after_id", request.after_id) if request.after_id else None
    if not 0 <= request.limit <= MAX_PAGE:
        raise BadInput("limit", f"must be between 1 and {MAX_PAGE}, or 0 for {DEFAULT_PAGE}, got {request.limit}")
    response = pb.ListReservationsResponse()
    for stored in await service.list_reservations(deps, after, request.limit or DEFAULT_PAGE):
        lines = zip(stored.reservation.product_ids, stored.reservation.quantities, strict=True)
        message = response.reservations.add(
            reservation_id=str(stored.reservation.id),
            status=_STATUSES[stored.status],
            items=[pb.Item(product_id=str(product_id), quantity=quantity) for product_id, quantity in lines],
        )
        message.created_at.FromDatetime(stored.created_at)
    return response


# The handler, the request and the response; None for a message that the handler itself parses or has encoded.
_METHODS: dict[str, tuple[Callable[[Deps, Any], Awaitable[Any]], Any, Any]] = {
    "CheckAvaliable": (check_avaliable, None, None),
    "Reserve": (reserve, pb.ReserveRequest, pb.ReserveResponse),
    "CancelReserve": (cancel_reserve, pb.CancelReserveRequest, pb.CancelReserveResponse),
    "ReserveMany": (reserve_many, pb.ReserveManyRequest, pb.ReserveManyResponse),
    "SetStock": (set_stock, pb.SetStockRequest, pb.SetStockResponse),
    "AddDelivery": (add_delivery, pb.AddDeliveryRequest, pb.AddDeliveryResponse),
    "AddStock": (add_stock, pb.AddStockRequest, pb.AddStockResponse),
    "GetStock": (get_stock, None, pb.GetStockResponse),
    "ListReservations": (list_reservations, pb.ListReservationsRequest, pb.ListReservationsResponse),
}


def handlers(deps: Deps, tracer: Tracer, authenticator: Authenticator | None = None) -> grpc.GenericRpcHandler:
    """Return the service `market.inventory.v1.Inventory` for a gRPC server.

    authenticator: verifies callers; without one everybody may call every method.

    Bytes that are not a valid message get INVALID_ARGUMENT; with the generated servicer they would get INTERNAL.
    """

    def unary(
        name: str, method: Callable[[Deps, Any], Awaitable[Any]], request: Any, response: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = partial(method, deps)

        async def serve(data: bytes) -> Any:
            return await handler(data if request is None else parse_message(request, data))

        return grpc.unary_unary_rpc_method_handler(
            endpoint(name, serve, tracer, authenticator=authenticator, access=access.INVENTORY),
            response_serializer=None if response is None else response.SerializeToString,
        )

    return grpc.method_handlers_generic_handler(NAME, {name: unary(name, *entry) for name, entry in _METHODS.items()})


def parse_id(field: str, text: str) -> UUID:
    """Return the UUID; only its canonical form of 36 characters is accepted. Raises BadInput."""
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        try:
            parsed: UUID = FastUUID(text)
        except ValueError:
            pass
        else:
            return parsed
    raise BadInput(field, "must be a UUID")


def parse_message(message: type[M], data: bytes) -> M:
    """Return the message. Raises BadInput."""
    try:
        return message.FromString(data)
    except DecodeError:
        raise BadInput("request", f"must be a {message.DESCRIPTOR.full_name}") from None


def parse_ids(message: type[pb.CheckAvaliableRequest | pb.GetStockRequest], data: bytes) -> list[str]:
    """Return the UUIDs of the field `product_ids` in lower case, in the same order with duplicates. Raises BadInput."""
    product_ids = messages.read_ids(data)
    texts = parse_message(message, data).product_ids if product_ids is None else product_ids
    _check_length("product_ids", texts, MAX_IDS)
    return product_ids or [str(parse_id(f"product_ids[{n}]", text)) for n, text in enumerate(texts)]


def parse_reservation(message: pb.ReserveRequest) -> Reservation:
    """Return the reservation with its lines merged and sorted. Raises BadInput."""
    reservation_id = parse_id("reservation_id", message.reservation_id)
    _check_length("items", message.items, MAX_ITEMS)
    return merge_lines(reservation_id, _parse_items(message.items))


def _parse_items(items: Iterable[pb.Item]) -> Iterable[tuple[UUID, int]]:
    for n, item in enumerate(items):
        quantity = item.quantity
        if not 1 <= quantity <= MAX_QUANTITY:
            raise BadInput(f"items[{n}].quantity", f"must be between 1 and {MAX_QUANTITY}, got {quantity}")
        yield parse_id(f"items[{n}].product_id", item.product_id), quantity


def _check_length(field: str, entries: Sequence[Any], max_length: int) -> None:
    if len(entries) > max_length:
        raise BadInput(field, f"must have at most {max_length} items, got {len(entries)}")


def _reserve_response(shortages: Shortages) -> pb.ReserveResponse:
    if not shortages:
        return _RESERVED
    return pb.ReserveResponse(
        shortages=[pb.Shortage(product_id=str(s.product_id), wanted=s.requested, left=s.available) for s in shortages]
    )


def _failed_result(error: BaseException) -> pb.ReserveManyResult:
    if isinstance(error, Problem):
        return pb.ReserveManyResult(code=error.grpc_status, message=str(error))
    log.error("reservation failed", exc_info=error)
    return pb.ReserveManyResult(code=GRPC_INTERNAL, message=INTERNAL_ERROR)
