"""The REST edge: routes, parsing, answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from market.contracts import events, money
from market.kit import context, text
from market.kit.config import Http
from market.kit.errors import BadInput, NotFound, Problem
from market.kit.http import edge
from market.kit.http.requests import idempotency_key, parse_query, read_body
from market.kit.http.responses import json_response
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.orders import service
from market.orders.domain import MAX_LINES, MAX_QUANTITY, NewOrder, Order, Status, as_contract, merged
from market.orders.metrics import OUTCOMES
from market.orders.service import Shop

MAX_PAGE_BYTES = 8 * 1024 * 1024
# Kept back of a deadline, so that the answer is there in time.
_ANSWER_SECONDS = 0.2

_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


class NewLine(Struct, frozen=True, forbid_unknown_fields=True):
    product_id: Annotated[str, Meta(pattern=_UUID, extra_json_schema={"format": "uuid"}, description="A product's id.")]
    quantity: Annotated[
        int, Meta(ge=1, le=MAX_QUANTITY, description="At most a million, also after lines of one product are merged.")
    ]


class CreateOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """An order to be placed."""

    user: Annotated[str, Meta(min_length=1, max_length=200, description="Who orders; no control characters.")]
    items: Annotated[list[NewLine], Meta(min_length=1, max_length=MAX_LINES)]
    email: (
        Annotated[
            str, Meta(max_length=254, description="Where the mail goes; else to `user`, where that is an address.")
        ]
        | None
    ) = None
    expected_total: (
        Annotated[
            money.TotalText,
            Meta(description="The total that the buyer has seen: another one is refused, and nothing is reserved."),
        ]
        | None
    ) = None


class Page(Struct, frozen=True):
    """A page of orders. It ends early at 8 MiB; `total` tells how many there are."""

    items: list[events.Order]
    total: int
    limit: int
    offset: int


class _Query(Struct, frozen=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(min_length=1, max_length=200)]
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    offset: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    status: Literal["pending", "confirmed", "cancelled"] | None = None


class _Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    pass


_body = msgspec.json.Decoder(CreateOrder, strict=True)
_encoder = msgspec.json.Encoder()
# Rejected orders are nobody's business but their maker's.
_LISTED = (Status.PENDING, Status.CONFIRMED, Status.CANCELLED)


def parsed(given: CreateOrder) -> NewOrder:
    """The request as domain data. Raises BadInput."""
    text.validate_text("user", given.user, min_length=1, max_length=200)
    if given.email is not None and not text.is_email_address(given.email):
        raise BadInput("email", "must be an e-mail address")
    expected: Decimal | None = None
    if given.expected_total is not None:
        try:
            expected = money.parse_total(given.expected_total)
        except ValueError as e:
            raise BadInput("expected_total", str(e)) from None
    for i, line in enumerate(given.items):
        # The pattern's $ lets a newline pass.
        if len(line.product_id) != 36:
            raise BadInput(f"items[{i}].product_id", "must be a UUID")
    return NewOrder(
        given.user, given.email, merged([(line.product_id.lower(), line.quantity) for line in given.items]), expected
    )


def routes(
    shop: Shop, order_seconds: float, other_seconds: float
) -> Mapping[str, Callable[[Request], Awaitable[Response]]]:
    """The four calls."""

    async def create(request: Request) -> Response:
        with context.deadline_in(max(0.05, context.remaining(order_seconds) - _ANSWER_SECONDS)):
            try:
                parse_query(request, _Nothing)
                key = idempotency_key(request)
                placed = await service.place(shop, parsed(await read_body(request, _body)), key)
            except Problem as e:
                OUTCOMES.labels(e.type).inc()
                raise
        OUTCOMES.labels("replayed" if placed.replayed else "confirmed").inc()
        headers = {"Location": f"/api/order/{placed.order.id}"}
        if placed.replayed:
            headers["Idempotency-Replayed"] = "true"
        return json_response(as_contract(placed.order), 200 if placed.replayed else 201, headers)

    async def get(request: Request) -> Response:
        parse_query(request, _Nothing)
        order = await shop.store.get(text.parse_path_id("order", request.path_params["id"]))
        if order is None:
            raise NotFound("order", request.path_params["id"])
        return json_response(as_contract(order))

    async def listed(request: Request) -> Response:
        query = parse_query(request, _Query)
        text.validate_text("user", query.user, min_length=1, max_length=200)
        statuses = (Status(query.status),) if query.status else _LISTED
        written: list[bytes] = []
        size = 0

        def fits(order: Order) -> bool:
            nonlocal size
            data = _encoder.encode(as_contract(order))
            size += len(data) + 1
            if written and size > MAX_PAGE_BYTES:
                return False
            written.append(data)
            return True

        page = await shop.store.listed(query.user, statuses, limit=query.limit, offset=query.offset, fits=fits)
        tail = f'],"total":{page.total},"limit":{query.limit},"offset":{query.offset}}}'
        return json_response(b'{"items":[' + b",".join(written) + tail.encode())

    async def cancel(request: Request) -> Response:
        parse_query(request, _Nothing)
        with context.deadline_in(max(0.05, context.remaining(other_seconds) - _ANSWER_SECONDS)):
            done = await service.cancel(shop, text.parse_path_id("order", request.path_params["id"]))
        return Response(status_code=204 if done else 202)

    return {
        "POST /api/order": create,
        "GET /api/order": listed,
        "GET /api/order/{id}": get,
        "DELETE /api/order/{id}": cancel,
    }


def app(shop: Shop, http: Http, tracer: Tracer, health: Health, *, order_seconds: float, other_seconds: float) -> Any:
    """The ASGI app."""
    calls = routes(shop, order_seconds, other_seconds)
    seconds = {call: order_seconds if call.startswith("POST") else other_seconds for call in calls}
    return edge.application(calls, http, tracer=tracer, health=health, timeouts=seconds)
