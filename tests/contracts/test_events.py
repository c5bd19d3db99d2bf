"""The events of orders: every form ever published is read by notifications, and the published contract is true."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from market.contracts import events
from market.notifications.domain import InvalidEvent, Message
from market.notifications.events.parsing import domain_of, parse_notification
from market.orders import domain

AT = datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)
PRODUCT_ID = "5b0c1f9e-3a5f-4e5c-9d0e-6f1b7a2c4d11"
ORDER = domain.Order(
    UUID(int=1), "ada", None, (domain.OrderLine(PRODUCT_ID, "Mug", 2, Decimal("1.25")),), Decimal("2.50"), "GBP", AT
)

# One file for each form of an event that was ever published: its number, then what is special about it. The highest
# number is what is published now. A form is never changed or removed: topics keep old events for 30 days, and dead
# letters for longer.
FORMS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).with_name("event_forms").glob("*.json")}
CURRENT = {name: form for name, form in FORMS.items() if name.startswith("2-")}
ROOT = Path(__file__).parents[2]
SCHEMA = Draft202012Validator(
    json.loads((ROOT / "asyncapi" / "order-event.schema.json").read_text()), format_checker=FormatChecker()
)


def message(form: dict[str, Any]) -> Message:
    headers = tuple((name, value.encode()) for name, value in form["headers"].items())
    value = json.dumps(form["value"]).encode()
    return Message("orders", 0, 0, form["value"]["subject"].encode(), value, headers)


def shape(value: Any) -> Any:
    """Return the value with the types of its parts in place of the parts."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(part) for part in value[:1]] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("name", FORMS)
def test_notifications_reads_every_form_of_an_event(name: str) -> None:
    form = FORMS[name]
    notification = parse_notification(message(form))
    assert notification is not None
    kind = form["value"]["type"].removeprefix("order.")
    assert (notification.kind, notification.sequence) == (kind, {"created": 1, "cancelled": 2}[kind])
    assert (notification.event_id, str(notification.order_id)) == (form["value"]["id"], form["value"]["subject"])
    assert notification.recipient == form["value"]["data"]["email"]
    assert [(line.name, line.quantity, line.unit_price) for line in notification.lines] == [
        ("Größe «M» mug", 2, Decimal("2.50")),
        ("Kettle", 1, Decimal("12.00")),
    ]
    assert (notification.total, notification.currency) == (Decimal("17.00"), "GBP")
    assert notification.ordered_at == datetime(2026, 10, 5, 9, 14, 59, 991000, tzinfo=UTC)
    assert notification.request_id == form["headers"]["x-request-id"]


@pytest.mark.parametrize("sequence", ["", "x", "0", "-1", " 1", "1.0", "٣", "99999999999", 0, -1, 2**40])
def test_a_sequence_that_is_no_positive_number_is_an_invalid_event(sequence: str | int) -> None:
    form = FORMS["2-created"]
    with pytest.raises(InvalidEvent, match="sequence: must be a whole number from 1 to 2147483647"):
        parse_notification(message({**form, "value": {**form["value"], "sequence": sequence}}))


@pytest.mark.parametrize(
    ("event_type", "fields", "form"),
    [
        (events.CREATED, {"email": "ann@shop.example"}, "2-created"),
        (events.CREATED, {}, "2-created-then-cancelled-without-email"),
        (events.CREATED, {"without_mail": True}, "2-created-without-mail"),
        (events.CANCELLED, {"email": "ann@shop.example"}, "2-cancelled"),
    ],
)
def test_what_orders_publishes_is_a_recorded_form(event_type: str, fields: dict[str, Any], form: str) -> None:
    entry = domain.OutboxEntry(events.event_id(ORDER.id, event_type), event_type, AT)
    order = msgspec.structs.replace(ORDER, **fields)
    published = json.loads(msgspec.json.encode(domain.to_event(order, entry)))
    assert shape(published) == shape(FORMS[form]["value"]), "record the new form in tests/contracts/event_forms"
    SCHEMA.validate(published)


@pytest.mark.parametrize("name", CURRENT)
def test_the_published_schema_accepts_the_current_form(name: str) -> None:
    SCHEMA.validate(CURRENT[name]["value"])


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 1},
        {"type": "order.lost"},
        {"time": 5},
        {"specversion": "0.3"},
        {"data": {}},
        {"id": None},
    ],
)
def test_the_published_schema_refuses_what_is_not_published(change: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid({**FORMS["2-created"]["value"], **change})


def test_both_documents_describe_the_same_event() -> None:
    document = json.loads((ROOT / "asyncapi" / "orders.json").read_text())
    schema = json.loads((ROOT / "asyncapi" / "order-event.schema.json").read_text())
    messages = document["components"]["messages"]
    assert set(messages) == set(events.SEQUENCE)
    assert document["channels"]["orders"]["address"] == events.TOPIC
    for event_type, described in messages.items():
        assert described["payload"]["properties"]["type"] == {"type": "string", "const": event_type}
        assert set(described["payload"]["properties"]) == set(schema["properties"])
        assert set(FORMS["2-created"]["headers"]) <= set(described["headers"]["properties"])


def test_amounts_in_an_event_have_the_decimals_of_the_currency() -> None:
    line = domain.OrderLine(PRODUCT_ID, "Mug", 2, Decimal("1.255"))
    order = msgspec.structs.replace(ORDER, lines=(line,), total=Decimal("2.51"), currency="KWD")
    entry = domain.OutboxEntry(events.event_id(ORDER.id, events.CREATED), events.CREATED, AT)
    published = json.loads(msgspec.json.encode(domain.to_event(order, entry)))
    data = published["data"]
    assert (data["items"][0]["unit_price"], data["total"], data["currency"]) == ("1.255", "2.510", "KWD")
    SCHEMA.validate(published)
    read = parse_notification(message({"headers": {}, "value": published}))
    assert read is not None
    assert (read.lines[0].unit_price, read.total) == (Decimal("1.255"), Decimal("2.510"))


@pytest.mark.parametrize(
    ("data", "domain"),
    [
        ({"user": "ann", "email": "Ann@Example.com"}, "example.com"),
        ({"user": "ann@example.com", "email": None}, "example.com"),
        ({"user": "ann", "email": None}, ""),
        ({}, ""),
    ],
)
def test_an_event_without_an_address_has_no_mail_domain(data: dict[str, Any], domain: str) -> None:
    assert domain_of(Message("orders", 0, 0, None, json.dumps({"data": data}).encode())) == domain
