"""The differences that reconciliation looks for between an order, its reservation, its outbox and its events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.kit.text import pluralize
from market.orders.clients import Reservation
from market.orders.domain import Order, Status, to_contract
from market.orders.reconciliation.topic_reader import (
    CONTENT_SHIFT,
    CONTENTS_DIFFER,
    EVENT_BITS,
    FOREIGN,
    OUT_OF_ORDER,
    content_hash,
)


class Kind(StrEnum):
    """The kinds of differences, by the names in the report."""

    UNREADABLE = "unreadable-order"
    PENDING = "order-still-pending"
    NO_ORDER = "reservation-without-order"
    NOT_RELEASED = "stock-not-released"
    RELEASE_OVERDUE = "release-overdue"
    NO_RESERVATION = "confirmed-without-reservation"
    RESERVATION_CANCELLED = "confirmed-but-reservation-cancelled"
    ITEMS_DIFFER = "reserved-items-differ"
    EVENT_OVERDUE = "event-overdue"
    EVENT_REJECTED = "event-rejected"
    EVENT_MISSING = "event-not-in-topic"
    EVENTS_OUT_OF_ORDER = "events-out-of-order"
    EVENT_WITHOUT_ORDER = "event-without-order"
    EVENT_CONTRADICTS = "event-contradicts-order"
    EVENT_DIFFERS = "event-differs-from-order"
    EVENT_UNREADABLE = "unreadable-event"
    NO_STOCK_ROW = "reserved-product-without-stock-row"
    STOCK_BELOW_ZERO = "stock-below-zero"


# The likely cause of each kind, as the end of a sentence.
CAUSES = {
    Kind.UNREADABLE: "the document was modified by hand, or written by another program",
    Kind.PENDING: "recovery is not running, or cannot reach MongoDB",
    Kind.NO_ORDER: "MongoDB was restored to a time before the order, or another program called inventory",
    Kind.NOT_RELEASED: "inventory was restored to a time before the release, or release_due was removed by hand",
    Kind.RELEASE_OVERDUE: "inventory has been unavailable since then, or recovery is not running",
    Kind.NO_RESERVATION: "inventory was restored to a time before the reservation, or its row was deleted by hand",
    Kind.RESERVATION_CANCELLED: "another program called CancelReserve, or MongoDB was restored to a time before the "
    "cancellation; inventory permanently rejects this id",
    Kind.ITEMS_DIFFER: "the order or the reservation was modified by hand",
    Kind.EVENT_OVERDUE: "Kafka is unavailable, or no relay is running",
    Kind.EVENT_REJECTED: "Kafka rejected the event for the reason given, most often the topic's max.message.bytes",
    Kind.EVENT_MISSING: "the topic was recreated or lost data",
    Kind.EVENTS_OUT_OF_ORDER: "the topic had lost order.created, and it was sent again after order.cancelled; "
    "consumers recognize this by `sequence`",
    Kind.EVENT_WITHOUT_ORDER: "MongoDB was restored to a time before the order, or another program wrote to the topic",
    Kind.EVENT_CONTRADICTS: "MongoDB was restored to a time before the order was confirmed or cancelled, or another "
    "program wrote to the topic",
    Kind.EVENT_DIFFERS: "the order was modified by hand after it was published, or another program wrote to the topic",
    Kind.EVENT_UNREADABLE: "another program wrote to the topic; notifications moved the message to the dead letters",
    Kind.NO_STOCK_ROW: "inventory's table was modified by hand",
    Kind.STOCK_BELOW_ZERO: "inventory's table was modified by hand, including its CHECK constraint",
}


class Finding(Struct, frozen=True):
    """A difference of one order. `event_type`: the type of the missing event, if the kind is EVENT_MISSING."""

    kind: Kind
    detail: str
    event_type: str | None = None


class Thresholds(Struct, frozen=True):
    """Cut-off times by MongoDB's clock. They keep work in progress from being reported as a difference."""

    # Only orders whose id was created before this are compared.
    compared_before: datetime
    # Older work is overdue: several passes of recovery should have finished it.
    overdue_before: datetime
    # Older events are overdue. They get more time than other work: an event may also wait for a lease to expire.
    unsent_before: datetime
    # Older events may have been deleted from the topic.
    retained_since: datetime


def compare(
    order: Order | None, reservation: Reservation | None, flags: int | None, thresholds: Thresholds
) -> Iterable[Finding]:
    """Yield each difference between an order, its reservation and its events.

    flags: the order's in TopicReader.flags, 0 if the topic has no events of it, None if the topic was not read.
    """
    if order is None:
        if reservation is not None and reservation.active and reservation.created_at < thresholds.compared_before:
            count = pluralize(len(reservation.items), "product")
            yield Finding(Kind.NO_ORDER, f"has held {count} since {reservation.created_at.isoformat()}")
        if flags:
            yield Finding(Kind.EVENT_WITHOUT_ORDER, "the topic has events of this order")
        return
    if order.status is Status.PENDING:
        if id_created_at(order.id) < thresholds.overdue_before:
            yield Finding(Kind.PENDING, f"pending since {order.created_at.isoformat()}")
        return
    yield from _compare_reservation(order, reservation, thresholds)
    yield from _compare_events(order, flags, thresholds)


def _compare_reservation(order: Order, reservation: Reservation | None, thresholds: Thresholds) -> Iterable[Finding]:
    if order.status is Status.CONFIRMED:
        if reservation is None:
            yield Finding(Kind.NO_RESERVATION, pluralize(len(order.lines), "product"))
        elif not reservation.active:
            yield Finding(Kind.RESERVATION_CANCELLED, pluralize(len(order.lines), "product"))
        elif reservation.items != tuple(sorted((line.product_id, line.quantity) for line in order.lines)):
            products = pluralize(len(order.lines), "product")
            yield Finding(Kind.ITEMS_DIFFER, f"the order has {products}, the reservation {len(reservation.items)}")
    elif order.release_due:
        if order.ended_at is None or order.ended_at < thresholds.overdue_before:
            yield Finding(Kind.RELEASE_OVERDUE, f"the order is {order.status}")
    elif reservation is not None and reservation.active:
        yield Finding(Kind.NOT_RELEASED, f"the order is {order.status}")


def _compare_events(order: Order, flags: int | None, thresholds: Thresholds) -> Iterable[Finding]:
    waiting = {entry.event_type for entry in order.outbox}
    for entry in order.outbox:
        if entry.rejection is not None:
            yield Finding(Kind.EVENT_REJECTED, f"{entry.event_type}: {entry.rejection}")
        elif entry.at < thresholds.unsent_before and not any(e.rejection for e in order.outbox):
            yield Finding(Kind.EVENT_OVERDUE, f"{entry.event_type}, unsent since {entry.at.isoformat()}")
    # The events that the order's state implies, and their times.
    expected: dict[str, datetime] = {}
    if order.status is Status.CONFIRMED or order.confirmed_at is not None:
        expected[events.CREATED] = order.confirmed_at or order.created_at
        if order.status is Status.CANCELLED:
            expected[events.CANCELLED] = order.ended_at or order.created_at
    for event_type in waiting - expected.keys():
        yield Finding(Kind.EVENT_CONTRADICTS, f"{event_type} is in the outbox, but the order is {order.status}")
    if flags is None:
        return
    for event_type, bit in EVENT_BITS.items():
        if flags & bit and event_type not in expected:
            yield Finding(Kind.EVENT_CONTRADICTS, f"{event_type} is in the topic, but the order is {order.status}")
        elif (
            event_type in expected
            and expected[event_type] >= thresholds.retained_since
            and event_type not in waiting
            and not flags & bit
        ):
            yield Finding(Kind.EVENT_MISSING, event_type, event_type)
    if flags & OUT_OF_ORDER:
        yield Finding(Kind.EVENTS_OUT_OF_ORDER, "order.cancelled came first")
    if flags & FOREIGN:
        yield Finding(Kind.EVENT_DIFFERS, "the event's id or key is not the order's")
    if flags & CONTENTS_DIFFER:
        yield Finding(Kind.EVENT_DIFFERS, "its events in the topic have different contents")
    elif flags and flags >> CONTENT_SHIFT != content_hash(to_contract(order)):
        yield Finding(Kind.EVENT_DIFFERS, "the event has a different user, products, prices or times")


_EPOCH = datetime.fromtimestamp(0, UTC)
_YEAR_9999 = 253_370_764_800_000


def id_created_at(order_id: UUID) -> datetime:
    """Return the time in a version 7 id; 1970 for other versions, and for times from the year 9999 on."""
    milliseconds = order_id.int >> 80
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        if order_id.version == 7 and milliseconds < _YEAR_9999
        else _EPOCH
    )
