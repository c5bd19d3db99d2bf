"""The rules by which reconciliation compares one order, especially those about ages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from bson import Decimal128, Int64

from market.contracts import events
from market.orders.clients import Reservation
from market.orders.domain import Order, OrderLine, OutboxEntry, Status, UnreadableOrder, to_contract
from market.orders.mongodb.documents import document_to_order, order_to_document
from market.orders.reconciliation.differences import CAUSES, DifferenceType, Finding, Thresholds, compare, id_created_at
from market.orders.reconciliation.repairs import REPAIRS
from market.orders.reconciliation.topic_reader import CANCELLED_SEEN, CONTENT_HASH_SHIFT, CREATED_SEEN, content_hash

NOW = datetime(2026, 3, 1, tzinfo=UTC)
THRESHOLDS = Thresholds(
    compared_before=NOW,
    overdue_before=NOW,
    unsent_before=NOW,
    retained_since=NOW - timedelta(days=29),
    republished_since=NOW - timedelta(days=9),
)
LONG_AGO, RECENTLY = NOW - timedelta(days=40), NOW - timedelta(hours=1)
ID = UUID(int=7)
ORDER = Order(
    ID,
    "ada",
    None,
    (OrderLine("p", "Lamp", 2, Decimal("2.50")),),
    Decimal("5.00"),
    "GBP",
    LONG_AGO,
    Status.CONFIRMED,
    confirmed_at=LONG_AGO,
)
ACTIVE = Reservation(ID, True, (("p", 2),), LONG_AGO)
RELEASED = msgspec.structs.replace(ACTIVE, active=False)
CONTENT = content_hash(to_contract(ORDER)) << CONTENT_HASH_SHIFT
BOTH_SEEN = CONTENT | CREATED_SEEN | CANCELLED_SEEN


def order(**changes: Any) -> Order:
    return msgspec.structs.replace(ORDER, **changes)


def kinds(order: Order | None, reservation: Reservation | None, topic_state: int | None) -> list[DifferenceType]:
    return [finding.difference_type for finding in compare(order, reservation, topic_state, THRESHOLDS)]


CANCELLED = order(status=Status.CANCELLED, ended_at=RECENTLY)


def test_an_event_of_an_earlier_version_with_fewer_decimals_is_not_a_difference() -> None:
    price = Decimal("1.25")
    in_dinar = order(lines=(OrderLine("p", "Lamp", 2, price),), total=2 * price, currency="KWD")
    published = to_contract(in_dinar)
    assert (published.items[0].unit_price, published.total) == ("1.250", "2.500")
    earlier = msgspec.structs.replace(
        published, items=[msgspec.structs.replace(published.items[0], unit_price="1.25")], total="2.50"
    )
    for event in (published, earlier):
        assert kinds(in_dinar, ACTIVE, content_hash(event) << CONTENT_HASH_SHIFT | CREATED_SEEN) == []
    other = content_hash(msgspec.structs.replace(earlier, total="2.501")) << CONTENT_HASH_SHIFT | CREATED_SEEN
    assert kinds(in_dinar, ACTIVE, other) == [DifferenceType.EVENT_DIFFERS]


def test_an_event_is_missing_only_if_retention_cannot_have_deleted_it() -> None:
    assert kinds(ORDER, ACTIVE, 0) == []
    assert kinds(order(confirmed_at=RECENTLY), ACTIVE, 0) == [DifferenceType.EVENT_MISSING]
    # Placed long ago, cancelled recently.
    assert list(compare(CANCELLED, RELEASED, 0, THRESHOLDS)) == [
        Finding(DifferenceType.EVENT_MISSING, events.CANCELLED, event_type=events.CANCELLED)
    ]
    assert kinds(CANCELLED, RELEASED, CONTENT | CANCELLED_SEEN) == []


def test_the_status_in_an_event_may_differ_from_the_order() -> None:
    assert kinds(CANCELLED, RELEASED, BOTH_SEEN) == []
    assert kinds(order(total=Decimal("4.99")), ACTIVE, CONTENT | CREATED_SEEN) == [DifferenceType.EVENT_DIFFERS]


@pytest.mark.parametrize(
    ("items", "detail"),
    [
        ((("p", 3),), "product p: ordered 2, reserved 3"),
        ((("q", 2),), "product p: ordered 2, reserved 0; 1 more product"),
        ((("p", 2), ("p", 2)), "a product occurs more than once"),
    ],
)
def test_a_difference_of_items_names_the_first_product_that_differs(
    items: tuple[tuple[str, int], ...], detail: str
) -> None:
    reservation = msgspec.structs.replace(ACTIVE, items=items)
    assert list(compare(ORDER, reservation, None, THRESHOLDS)) == [Finding(DifferenceType.ITEMS_DIFFER, detail)]


@pytest.mark.parametrize("status", [Status.REJECTED, Status.CANCELLED])
def test_an_event_contradicts_an_order_that_was_never_confirmed(status: Status) -> None:
    ended = order(status=status, confirmed_at=None, ended_at=LONG_AGO)
    assert kinds(ended, RELEASED, 0) == []
    assert kinds(ended, RELEASED, CONTENT | CREATED_SEEN) == [DifferenceType.EVENT_CONTRADICTS]
    entry = OutboxEntry(events.event_id(ID, events.CREATED), events.CREATED, NOW)
    assert kinds(msgspec.structs.replace(ended, outbox=(entry,)), RELEASED, None) == [DifferenceType.EVENT_CONTRADICTS]


@pytest.mark.parametrize(
    ("outbox", "expected"),
    [
        # Only a newer version can publish the event, and after it those that this version knows.
        ([("order.shipped", LONG_AGO, None)], [DifferenceType.EVENT_UNKNOWN_TYPE]),
        (
            [("order.shipped", LONG_AGO, None), (events.CANCELLED, LONG_AGO, None)],
            [DifferenceType.EVENT_UNKNOWN_TYPE],
        ),
        # This version publishes the first event, but not the second one.
        (
            [(events.CREATED, LONG_AGO, None), ("order.shipped", LONG_AGO, None)],
            [DifferenceType.EVENT_OVERDUE, DifferenceType.EVENT_UNKNOWN_TYPE],
        ),
        # The newer version may be about to publish it.
        ([("order.shipped", NOW, None), (events.CANCELLED, NOW, None)], []),
        ([(events.CREATED, LONG_AGO, None), (events.CANCELLED, LONG_AGO, None)], [DifferenceType.EVENT_OVERDUE] * 2),
        # What waits behind a stuck event is not overdue.
        ([(events.CREATED, LONG_AGO, "too large"), ("order.shipped", LONG_AGO, None)], [DifferenceType.EVENT_STUCK]),
    ],
    ids=str,
)
def test_an_unsent_event_is_overdue_only_if_this_version_can_publish_it(
    outbox: list[tuple[str, datetime, str | None]], expected: list[DifferenceType]
) -> None:
    entries = tuple(OutboxEntry(ID, event_type, at, rejection=rejection) for event_type, at, rejection in outbox)
    cancelled = order(status=Status.CANCELLED, ended_at=LONG_AGO, outbox=entries)
    assert kinds(cancelled, RELEASED, None) == expected


def test_an_order_in_flight_is_not_a_difference() -> None:
    pending = order(
        id=UUID(int=(int(NOW.timestamp() * 1000) + 1 << 80) + (7 << 76) + (2 << 62)),
        status=Status.PENDING,
        confirmed_at=None,
    )
    assert kinds(pending, ACTIVE, 0) == []


def test_an_id_without_a_valid_time_counts_as_old() -> None:
    """The topic and inventory may contain such ids from other programs; they are compared like any other."""
    assert id_created_at(UUID("ffffffff-ffff-7fff-8fff-ffffffffffff")) < LONG_AGO
    assert id_created_at(UUID("0195479e-4000-7000-8000-000000000000")).year == 2025
    assert id_created_at(UUID("0195479e-4000-4000-8000-000000000000")) < LONG_AGO


def test_each_kind_has_a_cause_and_each_repair_has_a_kind() -> None:
    assert set(CAUSES) == set(DifferenceType)
    assert set(REPAIRS) <= set(DifferenceType)


@pytest.mark.parametrize(
    "change",
    [
        {"user": None},
        {"created_at": "2026-03-01"},
        {"confirmed_at": "2026-03-01"},
        {"total": Decimal128("Infinity")},
        {"items": None},
        {"items": [{"product_id": 3, "name": "Lamp", "quantity": 2, "unit_price": Decimal128("2.50")}]},
        {"items": [{"product_id": "p", "name": "Lamp", "quantity": Int64(2), "unit_price": Decimal128("2.50")}]},
        {"items": [{"product_id": "p", "name": "Lamp", "quantity": "2", "unit_price": Decimal128("2.50")}]},
        {"outbox": [{"id": ID, "type": events.CREATED, "at": "2026-03-01"}]},
        {"status": 5},
        {"status": None},
        {"reason": 5},
    ],
    ids=str,
)
def test_a_document_with_a_value_of_the_wrong_type_is_unreadable(change: dict[str, Any]) -> None:
    """Otherwise it would end the comparison of all orders with an error."""
    document = {**order_to_document(ORDER), "confirmed_at": LONG_AGO}
    assert document_to_order(document) == ORDER
    with pytest.raises(UnreadableOrder) as unreadable:
        document_to_order({**document, **change})
    assert unreadable.value.order_id == ID
    assert unreadable.value.reason
