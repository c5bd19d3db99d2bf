"""The REST edge: routes, parsing and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from market.contracts import access, currency, money
from market.kit import context, text
from market.kit.auth.authenticator import Authenticator
from market.kit.auth.identity import identity
from market.kit.config import Http
from market.kit.errors import BadInput, InputErrors, NotFound, Problem
from market.kit.http import edge
from market.kit.http.admission import Admission
from market.kit.http.requests import idempotency_key, parse_query, read_body, reject_unsupported_preconditions
from market.kit.http.responses import json_response, prefers_representation
from market.kit.mail_address import parse_mail_address
from market.kit.paging import MAX_COUNT, Cursor, Offset, read_cursor, write_cursor
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.kit.times import parse_interval
from market.orders import service
from market.orders.config import Recovery
from market.orders.desk import endpoints as desk
from market.orders.domain import MAX_LINES, MAX_QUANTITY, NewOrder, Order, RequestedLine, Status, timestamp
from market.orders.history import representation
from market.orders.history.representation import to_representation
from market.orders.listing.pages import PageOutline, Position, Selection
from market.orders.metrics import OUTCOMES
from market.orders.ownership.rules import check_recipient, listed_user, required_owner
from market.orders.pricing.prices import merge_lines
from market.orders.service import Deps

MAX_PAGE_BYTES = 8 * 1024 * 1024
# Subtracted from the caller's deadline, to leave time for sending the response.
_RESPONSE_SECONDS = 0.2
# The minimum time for a handler, even if the caller's deadline has almost passed.
_MIN_HANDLER_SECONDS = 0.05

# The minimum weight of a body is one line per this number of bytes. (In JSON, a line usually takes 60 to 120 bytes.)
_BYTES_PER_LINE = 256
# The weight of a page of orders is one line per this number of stored bytes.
_PAGE_BYTES_PER_LINE = 2048

_REPRESENTATION_APPLIED = {"Preference-Applied": "return=representation"}
_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


class NewLine(RequestedLine, frozen=True, forbid_unknown_fields=True):
    """A line of the order to place."""

    product_id: Annotated[str, Meta(pattern=_UUID, extra_json_schema={"format": "uuid"}, description="A product's id.")]
    quantity: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_QUANTITY,
            description="At most 1000000 per product, even if several lines have the same product.",
        ),
    ]


_UserText = Annotated[str, Meta(min_length=1, max_length=200)]
_Lines = Annotated[list[NewLine], Meta(min_length=1, max_length=MAX_LINES)]


class CreateOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An order to place."""

    user: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="The customer; no control characters. Where sign-in is required, it defaults to the "
                "subject of the token, and only merchants may name another user. Where sign-in is not required, it "
                "must be present. If it contains @ and there is no `email`, it must be an e-mail address, unless it is "
                "the subject of the token.",
            ),
        ]
        | None
    ) = None
    items: _Lines
    email: (
        Annotated[
            str,
            Meta(
                max_length=254,
                description="The address for e-mail notifications; internationalized domain names are accepted. Where "
                "sign-in is required, and the order is for the caller, it defaults to the verified address in the "
                "token; without one, no mails are sent. In all other cases it defaults to `user` if that is an e-mail "
                "address, and no mails are sent if it is not. Where sign-in is required, only merchants may name "
                "another address.",
            ),
        ]
        | None
    ) = None
    expected_total: (
        Annotated[
            money.TotalText,
            Meta(
                description="The total that the customer has seen. If it differs from the current one, the order is "
                "not placed (409). Without `expected_currency`, only the amount is compared."
            ),
        ]
        | None
    ) = None
    expected_currency: (
        Annotated[
            str,
            Meta(
                description="The currency of the prices that the customer has seen, as an ISO 4217 code. If a product "
                "has another currency, the order is not placed (409). Send it together with `expected_total`, which is "
                "100 both for 100 yen and for 100 dollars.",
                extra_json_schema={"minLength": 3, "maxLength": 3, "enum": list(currency.CODES)},
            ),
        ]
        | None
    ) = None


class Page(Struct, frozen=True):
    """A page of orders. It has fewer than `limit` items if more would exceed 8 MiB; the rest is on the next page."""

    items: list[representation.Order]
    total: Annotated[int, Meta(ge=0, description="The number of orders in the whole list, or a lower bound of it.")]
    limit: int
    offset: int
    total_exact: Annotated[
        bool, Meta(description=f"False if only {MAX_COUNT} orders were counted, and there are more.")
    ]
    next: Annotated[str, Meta(description="The cursor of the next page, for `after`; null on the last page.")] | None


class _CreateOrderInOpenMode(CreateOrder, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The order to place in mode `open`: nobody signs in, so `user` is required."""

    user: _UserText
    # Declared again to keep it after `user`: an error lists missing fields in the sequence of their declaration.
    items: _Lines


class _ListQuery(Struct, frozen=True, forbid_unknown_fields=True):
    user: _UserText | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    offset: Offset = 0
    after: Cursor | None = None
    status: Literal["pending", "confirmed", "cancelled", "rejected"] | None = None
    created_from: str | None = None
    created_to: str | None = None


class _NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    pass


_body_decoder = msgspec.json.Decoder(CreateOrder, strict=True)
_open_mode_decoder: msgspec.json.Decoder[CreateOrder] = msgspec.json.Decoder(_CreateOrderInOpenMode, strict=True)
_encoder = msgspec.json.Encoder()


def _check_user(user: str | None) -> None:
    if user is not None:
        text.validate_display_text("user", user, min_length=1, max_length=200)


def _check_email(email: str | None) -> None:
    if email is not None and parse_mail_address(email) is None:
        raise BadInput("email", "must be an e-mail address")


def _check_expected_total(total: str | None) -> None:
    if total is not None:
        with _value_errors_as_bad_input("expected_total"):
            money.parse_total(total)


def _check_expected_currency(code: str | None) -> None:
    if code is not None:
        with _value_errors_as_bad_input("expected_currency"):
            currency.validate(code)


@contextmanager
def _value_errors_as_bad_input(field: str) -> Iterator[None]:
    """Raise BadInput for the field in place of a ValueError."""
    try:
        yield
    except ValueError as e:
        raise BadInput(field, str(e)) from None


# Further rules by field, which msgspec cannot check.
FIELD_CHECKS: dict[str, Callable[[Any], object]] = {
    "user": _check_user,
    "email": _check_email,
    "expected_total": _check_expected_total,
    "expected_currency": _check_expected_currency,
}


def parse_order(body: CreateOrder) -> NewOrder:
    """Return the request as domain data. Raises BadInput, which names all fields that are wrong.

    Does not check whether a signed-in caller may order for this user and address: ownership/rules.py does.
    """
    errors = InputErrors()
    for name, check in FIELD_CHECKS.items():
        with errors:
            check(getattr(body, name))
    with errors:
        if body.user is not None and not identity.get().signed_in:
            check_recipient(body.user, body.email)
    for i, line in enumerate(body.items):
        # The pattern alone would accept a trailing newline, because `$` also matches before one.
        if len(line.product_id) != 36:
            errors.collected.append((f"items[{i}].product_id", "must be a UUID"))
    errors.raise_collected()
    expected = None if body.expected_total is None else money.parse_total(body.expected_total)
    return NewOrder(body.user, body.email, merge_lines(body.items), expected, body.expected_currency)


def weigh(body: bytes) -> int:
    """Return the weight of a request: an estimate of the number of its lines, made before the body is parsed.

    The order and each of its lines begin with a brace in the JSON, so the number of lines is one less than that of the
    braces.
    """
    return max(1, body.count(b"{") - 1, len(body) // _BYTES_PER_LINE)


def _placed_response(placed: service.PlacedOrder) -> Response:
    headers = {"Location": f"/api/order/{placed.order.id}"}
    if placed.replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_response(to_representation(placed.order), 200 if placed.replayed else 201, headers)


def _weigh_page(outline: PageOutline) -> int:
    """Return the weight of a page in lines, estimated from its stored bytes.

    Bytes beyond twice MAX_PAGE_BYTES are not counted, because they are usually not read: the page ends before its JSON
    exceeds MAX_PAGE_BYTES.
    """
    return min(sum(outline.sizes.values()), 2 * MAX_PAGE_BYTES) // _PAGE_BYTES_PER_LINE


async def _encode_items(deps: Deps, outline: PageOutline) -> tuple[list[bytes], Order | None, bool]:
    """Return the encoded orders that fit on the page, the last of these orders, and whether more follow in the list."""
    encoded: list[bytes] = []
    last: Order | None = None
    size = 0
    async for order in deps.orders.read_page(outline):
        if len(encoded) == outline.limit:
            return encoded, last, True
        data = _encoder.encode(to_representation(order))
        size += len(data) + 1
        # The first order always fits, so that every page makes progress.
        if encoded and size > MAX_PAGE_BYTES:
            return encoded, last, True
        encoded.append(data)
        last = order
    return encoded, last, False


def _list_definition(selection: Selection) -> tuple[str | None, ...]:
    """Return the values that identify the list. A cursor is valid only for the list that it was issued for."""
    definition = ("orders", selection.user, selection.status)
    if selection.created_from is None and selection.created_to is None:
        # Without the interval, as in earlier versions, so that the cursors that they issued stay valid.
        return definition
    interval = (selection.created_from, selection.created_to)
    return (*definition, *(None if at is None else timestamp(at) for at in interval))


def _handler_seconds(limit: float) -> float:
    return max(_MIN_HANDLER_SECONDS, context.remaining(limit) - _RESPONSE_SECONDS)


def routes(
    deps: Deps, admission: Admission, create_order_timeout_seconds: float, default_timeout_seconds: float
) -> Mapping[str, edge.Endpoint]:
    """Return the endpoints by method and path."""

    async def create(request: Request) -> Response:
        with context.deadline_in(_handler_seconds(create_order_timeout_seconds)):
            try:
                reject_unsupported_preconditions(request)
                parse_query(request, _NoParameters)
                key = idempotency_key(request)
                async with admission(request, weigh(await request.body())):
                    decoder = _body_decoder if identity.get().signed_in else _open_mode_decoder
                    new = parse_order(await read_body(request, decoder, FIELD_CHECKS))
                    placed = await service.place_order(deps, new, key)
                    response = _placed_response(placed)
            except Problem as e:
                OUTCOMES.labels(e.type).inc()
                raise
        OUTCOMES.labels("replayed" if placed.replayed else "confirmed").inc()
        return response

    async def get(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        parse_query(request, _NoParameters)
        # The response for an order that the caller may not read is the same as for one that does not exist.
        owner = required_owner(access.READ_ORDERS)
        order = await deps.orders.get(text.parse_path_id("order", request.path_params["id"]), owner)
        if order is None:
            raise NotFound("order", request.path_params["id"])
        return json_response(to_representation(order))

    async def list_orders(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        query = parse_query(request, _ListQuery)
        if query.user is not None:
            text.validate_text("user", query.user, min_length=1, max_length=200)
        selection = Selection(
            listed_user(query.user),
            Status(query.status) if query.status else None,
            *parse_interval("created_from", query.created_from, "created_to", query.created_to),
        )
        definition = _list_definition(selection)
        after = None
        if query.after is not None:
            if query.offset:
                raise BadInput("offset", "cannot be combined with `after`")
            after = read_cursor(query.after, Position, *definition)
        outline = await deps.orders.outline_page(selection, limit=query.limit, offset=query.offset, after=after)
        # So far only sizes were read. The orders are read after admission, so a waiting request needs little memory.
        async with admission(request, _weigh_page(outline)):
            encoded, last, has_next = await _encode_items(deps, outline)
            next_cursor = None
            if last is not None and has_next:
                next_cursor = write_cursor(Position.of(last), *definition)
            # The items are encoded already: encode the page without items, and insert them.
            rest = _encoder.encode(Page([], outline.total, query.limit, query.offset, outline.total_exact, next_cursor))
            return json_response(b'{"items":[' + b",".join(encoded) + rest.removeprefix(b'{"items":['))

    async def cancel(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        parse_query(request, _NoParameters)
        with context.deadline_in(_handler_seconds(default_timeout_seconds)):
            cancelled = await service.cancel_order(deps, text.parse_path_id("order", request.path_params["id"]))
        if cancelled.is_released and prefers_representation(request):
            return json_response(to_representation(cancelled.order), 200, _REPRESENTATION_APPLIED)
        return Response(status_code=204 if cancelled.is_released else 202)

    return {
        "POST /api/order": create,
        "GET /api/order": list_orders,
        "GET /api/order/{id}": get,
        "DELETE /api/order/{id}": cancel,
    }


def app(
    deps: Deps,
    http: Http,
    tracer: Tracer,
    health: Health,
    admission: Admission,
    *,
    recovery: Recovery,
    create_order_timeout_seconds: float,
    default_timeout_seconds: float,
    authenticator: Authenticator | None = None,
) -> Any:
    """Return the ASGI app.

    recovery: determines when an order counts as unfinished
    create_order_timeout_seconds: the deadline of POST /api/order
    default_timeout_seconds: the deadline of every other request
    authenticator: verifies the callers' tokens. None: mode `open`, in which nobody signs in.
    """
    endpoints = {
        **routes(deps, admission, create_order_timeout_seconds, default_timeout_seconds),
        **desk.routes(deps, recovery),
    }
    timeouts = {
        route: create_order_timeout_seconds if route == "POST /api/order" else default_timeout_seconds
        for route in endpoints
    }
    return edge.application(
        endpoints,
        http,
        tracer=tracer,
        health=health,
        timeouts=timeouts,
        authenticator=authenticator,
        access=access.ORDERS,
    )
