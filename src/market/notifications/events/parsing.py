"""Converts Kafka records to messages, and parses order events strictly."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from confluent_kafka import Message as KafkaMessage
from msgspec import Struct

from market.contracts import events, money
from market.kit import context, text
from market.kit.errors import BadInput
from market.kit.mail_address import parse_mail_address
from market.notifications.domain import EventSummary, InvalidEvent, Kind, Line, Message, Notification, mask_addresses

_KINDS: dict[str, Kind] = {events.CREATED: "created", events.CANCELLED: "cancelled"}
# A dot-atom (RFC 5322), because the id is used in the Message-ID, before the @.
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}(\.[A-Za-z0-9_-]{1,128})*")
_CURRENCY = re.compile(r"[A-Z]{3}")
# More than orders accepts, and little enough that a line's amount can be written.
_MAX_QUANTITY = 2_147_483_647
# Control characters, line separators, and characters that change the direction of the text after them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class _Envelope(Struct):
    specversion: str
    id: str
    type: str


class _RecipientFields(Struct):
    class Data(Struct):
        user: str = ""
        email: str | None = None

    data: Data = msgspec.field(default_factory=Data)


class _SummaryFields(Struct):
    class Data(Struct):
        id: str = ""
        user: str = ""
        email: str | None = None

    type: str = ""
    nomail: bool | None = None
    data: Data = msgspec.field(default_factory=Data)


_decode_recipient_fields = msgspec.json.Decoder(_RecipientFields).decode
_decode_summary_fields = msgspec.json.Decoder(_SummaryFields).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_event = msgspec.json.Decoder(events.OrderEvent).decode


def to_message(record: KafkaMessage) -> Message:
    """Convert a record to a message. The record must not be an error."""
    partition, offset = record.partition(), record.offset()
    assert partition is not None
    assert offset is not None
    headers: Any = record.headers() or ()
    return Message(
        topic=record.topic() or "",
        partition=partition,
        offset=offset,
        key=_as_bytes(record.key()),
        value=_as_bytes(record.value()),
        headers=tuple((name, _as_bytes(value)) for name, value in headers),
    )


def _as_bytes(value: str | bytes | None) -> bytes | None:
    # Without a deserializer, the value is always bytes, but the type stubs allow str.
    return value.encode() if isinstance(value, str) else value


def parse_notification(message: Message) -> Notification | None:
    """Return the notification of an order event, or None for an event of an unknown type. Raises InvalidEvent."""
    if message.value is None:
        raise InvalidEvent("the message has no value")
    try:
        envelope = _decode_envelope(message.value)
        if envelope.type not in _KINDS:
            return None
        event = _decode_event(message.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidEvent(str(e)[:300]) from None
    try:
        sequence = event.sequence_number
    except ValueError as e:
        raise InvalidEvent(str(e)) from None
    order = event.data
    if not _EVENT_ID.fullmatch(event.id) or len(event.id) > 200:
        raise InvalidEvent(
            "id: must be at most 200 characters: parts of 1 to 128 letters, digits, - and _, separated by single dots"
        )
    if not _CURRENCY.fullmatch(order.currency):
        raise InvalidEvent("data.currency: must be three capital letters")
    try:
        order_id: UUID = text.parse_uuid("data.id", order.id)
        lines = tuple(
            Line(_single_line(item.name), _quantity(index, item.quantity), _price(index, item.unit_price))
            for index, item in enumerate(order.items)
        )
    except BadInput as e:
        raise InvalidEvent(str(e)) from None
    try:
        total = money.parse_total(order.total)
    except ValueError as e:
        raise InvalidEvent(f"data.total: {e}") from None
    try:
        ordered_at = _in_utc(datetime.fromisoformat(order.created_at))
    except (ValueError, OverflowError):
        raise InvalidEvent("data.created_at: must be a time in ISO 8601 format") from None
    request_id = message.header(events.REQUEST_ID_HEADER)
    addresses = [] if event.nomail is True else [a for a in (order.email, order.user) if a]
    return Notification(
        event_id=event.id,
        kind=_KINDS[event.type],
        sequence=sequence,
        order_id=order_id,
        recipient=next((str(found) for a in addresses if (found := parse_mail_address(a)) is not None), None),
        has_address=any("@" in a for a in addresses),
        lines=lines,
        total=total,
        currency=order.currency,
        ordered_at=ordered_at,
        occurred_at=_time_of(event.time),
        request_id=request_id if context.valid_request_id(request_id) else "",
    )


def domain_of(message: Message) -> str:
    """Return the domain of the order's `email`, or of its `user` if there is no `email`, in lower case.

    Return an empty string if there is no domain. The event is not validated, so this is not always the domain to which
    the mail goes. That is good enough for scheduling.
    """
    try:
        data = _decode_recipient_fields(message.value or b"").data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    _, at, domain = (data.email or data.user).rpartition("@")
    return domain.lower()[:255] if at else ""


def summarize(message: Message) -> EventSummary:
    """Return what the event is about. The event is not validated. If its value cannot be read, the fields are None.

    If the value does not contain the order's id, the id is taken from the message's key.
    """
    try:
        event = _decode_summary_fields(message.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event = _SummaryFields()
    addresses = [] if event.nomail else [event.data.email, event.data.user]
    return EventSummary(
        kind=_KINDS.get(event.type),
        order_id=_uuid(event.data.id) or _uuid((message.key or b"").decode("utf-8", "replace")),
        recipient=next((mask_addresses(address[:254]) for address in addresses if address and "@" in address), None),
    )


def _uuid(value: str) -> UUID | None:
    try:
        return text.parse_uuid("id", value)
    except BadInput:
        return None


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time_of(text: str) -> datetime | None:
    try:
        return _in_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _quantity(index: int, value: int) -> int:
    if abs(value) > _MAX_QUANTITY:
        raise BadInput(f"data.items[{index}].quantity", f"must be at most {_MAX_QUANTITY}")
    return value


def _price(index: int, value: str) -> Decimal:
    try:
        return money.parse_price(value)
    except ValueError as e:
        raise BadInput(f"data.items[{index}].unit_price", str(e)) from None


def _single_line(name: str) -> str:
    return _CONTROL.sub(" ", name).strip()
