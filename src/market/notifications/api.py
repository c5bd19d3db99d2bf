"""The inbound edge: a Kafka message becomes a notice, or says why it cannot be read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import msgspec
from msgspec import Struct

from market.contracts import events, money
from market.kit import context, text
from market.kit.errors import BadInput
from market.notifications.domain import Kind, Line, Message, Notice, Unreadable

_KINDS: dict[str, Kind] = {events.CREATED: "created", events.CANCELLED: "cancelled"}
# What may stand before the @ of a Message-ID.
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9_-]{1,128})*")
_CURRENCY = re.compile(r"[A-Z]{3}")
# Nothing that moves the cursor or turns the direction of what follows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class _Envelope(Struct):
    specversion: str
    id: str
    type: str


_envelope = msgspec.json.Decoder(_Envelope)
_event = msgspec.json.Decoder(events.OrderEvent)


def read(message: Message) -> Notice | None:
    """What the message tells the customer; None: an event of a type that is nobody's mail. Raises Unreadable."""
    if message.value is None:
        raise Unreadable("it has no value")
    try:
        envelope = _envelope.decode(message.value)
        if envelope.type not in _KINDS:
            return None
        event = _event.decode(message.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Unreadable(str(e)[:300]) from None
    order = event.data
    if not _EVENT_ID.fullmatch(event.id) or len(event.id) > 200:
        raise Unreadable("id: must have letters, digits, - and _ only")
    if not _CURRENCY.fullmatch(order.currency):
        raise Unreadable("data.currency: must have three capital letters")
    try:
        order_id: UUID = text.parse_uuid("data.id", order.id)
        total = money.parse_total(order.total)
        lines = tuple(Line(_one_line(i.name), i.quantity, _price(n, i.unit_price)) for n, i in enumerate(order.items))
        ordered_at = datetime.fromisoformat(order.created_at)
    except BadInput as e:
        raise Unreadable(str(e)) from None
    except ValueError as e:
        raise Unreadable(f"data.total or data.created_at: {e}"[:300]) from None
    request_id = message.header(events.REQUEST_ID_HEADER)
    return Notice(
        event_id=event.id,
        kind=_KINDS[event.type],
        sequence=event.sequence,
        order_id=order_id,
        recipient=next((a for a in (order.email, order.user) if a and text.is_email_address(a)), None),
        lines=lines,
        total=total,
        currency=order.currency,
        ordered_at=ordered_at.astimezone(UTC) if ordered_at.tzinfo else ordered_at.replace(tzinfo=UTC),
        request_id=request_id if context.valid_request_id(request_id) else "",
    )


def _price(line: int, value: str) -> Decimal:
    try:
        return money.parse_price(value)
    except ValueError as e:
        raise BadInput(f"data.items[{line}].unit_price", str(e)) from None


def _one_line(name: str) -> str:
    return _CONTROL.sub(" ", name).strip()
