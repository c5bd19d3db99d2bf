"""The differences that reconciliation looks for between an order, its reservation, its outbox and its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.kit.text import pluralize
from market.orders.clients import Reservation
from market.orders.domain import Order, OutboxEntry, Status, to_contract
from market.orders.reconciliation.topic_reader import (
    CONTENT_HASH_SHIFT,
    CONTENTS_DIFFER,
    EVENT_BITS,
    ID_MISMATCH,
    OUT_OF_ORDER,
    content_hash,
)


class DifferenceType(StrEnum):
    """The types of differences. The values are the names in the report."""

    UNREADABLE = "unreadable-order"
    UNKNOWN_STATUS = "order-of-unknown-status"
    PENDING = "order-still-pending"
    NO_ORDER = "reservation-without-order"
    NOT_RELEASED = "stock-not-released"
    RELEASE_OVERDUE = "release-overdue"
    NO_RESERVATION = "confirmed-without-reservation"
    RESERVATION_CANCELLED = "confirmed-but-reservation-cancelled"
    ITEMS_DIFFER = "reserved-items-differ"
    EVENT_OVERDUE = "event-overdue"
    EVENT_STUCK = "stuck-event"
    EVENT_UNKNOWN_TYPE = "event-of-unknown-type"
    EVENT_MISSING = "event-not-in-topic"
    EVENT_POSSIBLY_DELETED = "event-possibly-deleted"
    EVENTS_OUT_OF_ORDER = "events-out-of-order"
    EVENT_WITHOUT_ORDER = "event-without-order"
    EVENT_CONTRADICTS = "event-contradicts-order"
    EVENT_DIFFERS = "event-differs-from-order"
    EVENT_UNREADABLE = "unreadable-event"
    NO_STOCK_ROW = "reserved-product-without-stock-row"
    STOCK_BELOW_ZERO = "stock-below-zero"


# The likely cause of a difference of each type, printed after "Likely cause: ".
CAUSES = {
    DifferenceType.UNREADABLE: "the document was modified by hand, or written by a newer version of orders or by "
    "another program",
    DifferenceType.UNKNOWN_STATUS: "a newer version of orders has stored the status; reconcile with that version",
    DifferenceType.PENDING: "recovery is not running, or cannot reach MongoDB",
    DifferenceType.NO_ORDER: "MongoDB was restored to a time before the order, or another program called inventory",
    DifferenceType.NOT_RELEASED: "inventory was restored to a time before the release, or release_due was removed by "
    "hand",
    DifferenceType.RELEASE_OVERDUE: "inventory is unavailable, or recovery is not running",
    DifferenceType.NO_RESERVATION: "inventory was restored to a time before the reservation, or its row was deleted by "
    "hand",
    DifferenceType.RESERVATION_CANCELLED: "another program called CancelReserve, or MongoDB was restored to a time "
    "before the cancellation; inventory permanently rejects this id",
    DifferenceType.ITEMS_DIFFER: "the order or the reservation was modified by hand",
    DifferenceType.EVENT_OVERDUE: "Kafka is unavailable, or no relay is running",
    DifferenceType.EVENT_STUCK: "Kafka rejected the event for the reason given, most often the topic's "
    "max.message.bytes",
    DifferenceType.EVENT_UNKNOWN_TYPE: "a newer version of orders has added the event, and only that version can "
    "publish it and the events after it",
    DifferenceType.EVENT_MISSING: "the topic was recreated or lost data",
    DifferenceType.EVENT_POSSIBLY_DELETED: "messages published around that time were deleted from the topic, or the "
    "event is so old that consumers would no longer detect a duplicate. It is not published again, because it is "
    "unknown whether it was consumed",
    DifferenceType.EVENTS_OUT_OF_ORDER: "the topic had lost order.created, and it was published again after "
    "order.cancelled; consumers detect this by the event's `sequence`",
    DifferenceType.EVENT_WITHOUT_ORDER: "MongoDB was restored to a time before the order, or another program wrote to "
    "the topic",
    DifferenceType.EVENT_CONTRADICTS: "MongoDB was restored to a time before the order was confirmed or cancelled, or "
    "another program wrote to the topic",
    DifferenceType.EVENT_DIFFERS: "the order was modified by hand after it was published, or another program wrote to "
    "the topic",
    DifferenceType.EVENT_UNREADABLE: "another program wrote to the topic; notifications stored it as a dead letter",
    DifferenceType.NO_STOCK_ROW: "inventory's table was modified by hand",
    DifferenceType.STOCK_BELOW_ZERO: "inventory's table was modified by hand, including its CHECK constraint",
}


class Finding(Struct, frozen=True):
    """A difference that `compare` found between one order and its reservation or events.

    event_type: the type of the event, if one is missing
    """

    difference_type: DifferenceType
    detail: str
    event_type: str | None = None


class Thresholds(Struct, frozen=True):
    """Cut-off times by MongoDB's clock. They keep work in progress from being reported as a difference."""

    # Only orders whose id was created before this are compared.
    compared_before: datetime
    # Work that became due before this is overdue.
    overdue_before: datetime
    # Unsent events from before this time are overdue.
    unsent_before: datetime
    # Events from before this time may be missing from the topic, because Kafka may have deleted them.
    retained_since: datetime
    # A missing event is published again if it is from this time or later. An earlier one may have been consumed, and
    # consumers might not recognize the duplicate.
    republished_since: datetime


def compare(
    order: Order | None, reservation: Reservation | None, topic_state: int | None, thresholds: Thresholds
) -> Iterable[Finding]:
    """Yield each difference between an order, its reservation and its events.

    topic_state: which events the topic contains for the order, and what is wrong with them (see topic_reader.py). 0 if
        it contains no events for the order. None if the topic was not read
    """
    if order is None:
        if reservation is not None and reservation.active and reservation.created_at < thresholds.compared_before:
            count = pluralize(len(reservation.items), "product")
            yield Finding(DifferenceType.NO_ORDER, f"has held {count} since {reservation.created_at.isoformat()}")
        if topic_state:
            yield Finding(DifferenceType.EVENT_WITHOUT_ORDER, "the topic has events for this order")
        return
    if order.status is Status.UNKNOWN:
        # A newer version has changed the order since the first check.
        return
    if order.status is Status.PENDING:
        if id_created_at(order.id) < thresholds.overdue_before:
            yield Finding(DifferenceType.PENDING, f"pending since {order.created_at.isoformat()}")
        return
    yield from _compare_reservation(order, reservation, thresholds)
    yield from _compare_events(order, topic_state, thresholds)


def _compare_reservation(order: Order, reservation: Reservation | None, thresholds: Thresholds) -> Iterable[Finding]:
    if order.status is Status.CONFIRMED:
        if reservation is None:
            yield Finding(
                DifferenceType.NO_RESERVATION, f"no stock is reserved for its {pluralize(len(order.lines), 'product')}"
            )
        elif not reservation.active:
            yield Finding(
                DifferenceType.RESERVATION_CANCELLED,
                f"the reservation for its {pluralize(len(order.lines), 'product')} was cancelled",
            )
        else:
            ordered = tuple(sorted((line.product_id, line.quantity) for line in order.lines))
            if reservation.items != ordered:
                yield Finding(DifferenceType.ITEMS_DIFFER, _describe_items(ordered, reservation.items))
    elif order.release_due:
        if order.ended_at is None or order.ended_at < thresholds.overdue_before:
            yield Finding(DifferenceType.RELEASE_OVERDUE, f"the order is {order.status}")
    elif reservation is not None and reservation.active:
        yield Finding(DifferenceType.NOT_RELEASED, f"the order is {order.status}")


def _describe_items(ordered: Sequence[tuple[str, int]], reserved: Sequence[tuple[str, int]]) -> str:
    """Describe the first product whose quantities differ. Both sequences contain (product id, quantity)."""
    units_ordered, units_reserved = dict(ordered), dict(reserved)
    different = [
        (product_id, units_ordered.get(product_id, 0), units_reserved.get(product_id, 0))
        for product_id in sorted(units_ordered.keys() | units_reserved.keys())
        if units_ordered.get(product_id) != units_reserved.get(product_id)
    ]
    if not different:
        return "a product occurs more than once"
    product_id, expected, actual = different[0]
    more = f"; {pluralize(len(different) - 1, 'more product')}" if len(different) > 1 else ""
    return f"product {product_id}: ordered {expected}, reserved {actual}{more}"


def _compare_outbox(outbox: Sequence[OutboxEntry], thresholds: Thresholds) -> Iterable[Finding]:
    stuck = [entry for entry in outbox if entry.rejection is not None]
    for entry in stuck:
        yield Finding(DifferenceType.EVENT_STUCK, f"{entry.event_type}: {entry.rejection}")
    if stuck:
        # An event that waits behind a stuck one is not overdue.
        return
    for entry in outbox:
        is_overdue = entry.at < thresholds.unsent_before
        detail = f"{entry.event_type}, unsent since {entry.at.isoformat()}"
        if entry.event_type not in events.SEQUENCE:
            if is_overdue:
                yield Finding(DifferenceType.EVENT_UNKNOWN_TYPE, detail)
            # The events after it wait for the newer version, too.
            return
        if is_overdue:
            yield Finding(DifferenceType.EVENT_OVERDUE, detail)


def _compare_events(order: Order, topic_state: int | None, thresholds: Thresholds) -> Iterable[Finding]:
    # Events of unknown types are left out: only newer versions can publish them.
    waiting = {entry.event_type for entry in order.outbox if entry.event_type in events.SEQUENCE}
    yield from _compare_outbox(order.outbox, thresholds)
    # The events that the order's state implies, and their times.
    expected: dict[str, datetime] = {}
    if order.status is Status.CONFIRMED or order.confirmed_at is not None:
        expected[events.CREATED] = order.confirmed_at or order.created_at
        if order.status is Status.CANCELLED:
            expected[events.CANCELLED] = order.ended_at or order.created_at
    for event_type in waiting - expected.keys():
        yield Finding(
            DifferenceType.EVENT_CONTRADICTS, f"{event_type} is in the outbox, but the order is {order.status}"
        )
    if topic_state is None:
        return
    for event_type, bit in EVENT_BITS.items():
        if topic_state & bit and event_type not in expected:
            yield Finding(
                DifferenceType.EVENT_CONTRADICTS, f"{event_type} is in the topic, but the order is {order.status}"
            )
        elif (
            event_type in expected
            and expected[event_type] >= thresholds.retained_since
            and event_type not in waiting
            and not topic_state & bit
        ):
            if expected[event_type] >= thresholds.republished_since:
                yield Finding(DifferenceType.EVENT_MISSING, event_type, event_type)
            else:
                yield Finding(
                    DifferenceType.EVENT_POSSIBLY_DELETED,
                    f"{event_type}, published around {expected[event_type].isoformat()}",
                )
    if topic_state & OUT_OF_ORDER:
        yield Finding(DifferenceType.EVENTS_OUT_OF_ORDER, "order.cancelled came first")
    if topic_state & ID_MISMATCH:
        yield Finding(DifferenceType.EVENT_DIFFERS, "an event's id or key does not match the order")
    if topic_state & CONTENTS_DIFFER:
        yield Finding(DifferenceType.EVENT_DIFFERS, "the order's events in the topic have different contents")
    elif topic_state and topic_state >> CONTENT_HASH_SHIFT != content_hash(to_contract(order)):
        yield Finding(
            DifferenceType.EVENT_DIFFERS, "the event's user, products, prices or times differ from the order's"
        )


_EPOCH = datetime.fromtimestamp(0, UTC)
_YEAR_9999 = 253_370_764_800_000


def id_created_at(order_id: UUID) -> datetime:
    """Return the time in a UUIDv7 (RFC 9562). For other UUIDs, and for times from the year 9999 on, return 1970."""
    milliseconds = order_id.int >> 80
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        if order_id.version == 7 and milliseconds < _YEAR_9999
        else _EPOCH
    )
