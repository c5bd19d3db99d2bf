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


class Thresholds(Struct, frozen=True):
    """Cut-off times by MongoDB's clock, so that work in progress is not reported as a difference."""

    # Only orders whose id was created before this are compared.
    compared_before: datetime
    # Older work is overdue: recovery, which runs at intervals, has missed it several times.
    overdue_before: datetime
    # Older events are overdue: an event may wait for its acknowledgement, and then for its lease to expire.
    unsent_before: datetime
    # Older events may have been deleted from the topic.
    retained_since: datetime


def compare(
    order: Order | None, reservation: Reservation | None, seen: int | None, thresholds: Thresholds
) -> Iterable[tuple[Kind, str]]:
    """Yield (kind, detail) of each difference between an order, its reservation and its events.

    `seen`: the order's flags in TopicReader.seen, 0 if there are no events, None if the topic was not read.
    """
    if order is None:
        if reservation is not None and reservation.active and reservation.created_at < thresholds.compared_before:
            count = pluralize(len(reservation.items), "product")
            yield Kind.NO_ORDER, f"has held {count} since {reservation.created_at.isoformat()}"
        if seen:
            yield Kind.EVENT_WITHOUT_ORDER, "the topic has events of this order"
        return
    if order.status is Status.PENDING:
        if id_created_at(order.id) < thresholds.overdue_before:
            yield Kind.PENDING, f"pending since {order.created_at.isoformat()}"
        return
    yield from _compare_reservation(order, reservation, thresholds)
    yield from _compare_events(order, seen, thresholds)


def _compare_reservation(
    order: Order, reservation: Reservation | None, thresholds: Thresholds
) -> Iterable[tuple[Kind, str]]:
    if order.status is Status.CONFIRMED:
        if reservation is None:
            yield Kind.NO_RESERVATION, pluralize(len(order.lines), "product")
        elif not reservation.active:
            yield Kind.RESERVATION_CANCELLED, pluralize(len(order.lines), "product")
        elif reservation.items != tuple(sorted((line.product_id, line.quantity) for line in order.lines)):
            products = pluralize(len(order.lines), "product")
            yield Kind.ITEMS_DIFFER, f"the order has {products}, the reservation {len(reservation.items)}"
    elif order.release_due:
        if order.ended_at is None or order.ended_at < thresholds.overdue_before:
            yield Kind.RELEASE_OVERDUE, f"the order is {order.status}"
    elif reservation is not None and reservation.active:
        yield Kind.NOT_RELEASED, f"the order is {order.status}"


def _compare_events(order: Order, seen: int | None, thresholds: Thresholds) -> Iterable[tuple[Kind, str]]:
    waiting = {entry.event_type for entry in order.outbox}
    for entry in order.outbox:
        if entry.rejection is not None:
            yield Kind.EVENT_REJECTED, f"{entry.event_type}: {entry.rejection}"
        elif entry.at < thresholds.unsent_before and not any(e.rejection for e in order.outbox):
            yield Kind.EVENT_OVERDUE, f"{entry.event_type}, unsent since {entry.at.isoformat()}"
    # The events that the order's state implies, and their times.
    expected: dict[str, datetime] = {}
    if order.status is Status.CONFIRMED or order.confirmed_at is not None:
        expected[events.CREATED] = order.confirmed_at or order.created_at
        if order.status is Status.CANCELLED:
            expected[events.CANCELLED] = order.ended_at or order.created_at
    for event_type in waiting - expected.keys():
        yield Kind.EVENT_CONTRADICTS, f"{event_type} is in the outbox, but the order is {order.status}"
    if seen is None:
        return
    for event_type, bit in EVENT_BITS.items():
        if seen & bit and event_type not in expected:
            yield Kind.EVENT_CONTRADICTS, f"{event_type} is in the topic, but the order is {order.status}"
        elif (
            event_type in expected
            and expected[event_type] >= thresholds.retained_since
            and event_type not in waiting
            and not seen & bit
        ):
            yield Kind.EVENT_MISSING, event_type
    if seen & OUT_OF_ORDER:
        yield Kind.EVENTS_OUT_OF_ORDER, "order.cancelled came first"
    if seen & FOREIGN:
        yield Kind.EVENT_DIFFERS, "the event's id or key is not the order's"
    if seen & CONTENTS_DIFFER:
        yield Kind.EVENT_DIFFERS, "its events in the topic have different contents"
    elif seen and seen >> CONTENT_SHIFT != content_hash(to_contract(order)):
        yield Kind.EVENT_DIFFERS, "the event has a different user, products, prices or times"


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
