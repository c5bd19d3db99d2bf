"""What reconciliation compares, and how it names what differs: an order, its reservation, its outbox and its events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.orders.clients import Held
from market.orders.domain import Order, Status, as_contract
from market.orders.topic import CONTENT, EVENT_BITS, FOREIGN, TWO_CONTENTS, WRONG_ORDER, content_of


class Kind(StrEnum):
    UNREADABLE = "unreadable-order"
    PENDING = "order-still-pending"
    NO_ORDER = "reservation-without-order"
    NOT_GIVEN_BACK = "goods-not-given-back"
    RELEASE_DUE = "release-overdue"
    NO_RESERVATION = "confirmed-without-reservation"
    RESERVATION_CANCELLED = "confirmed-but-reservation-cancelled"
    OTHER_ITEMS = "other-items-reserved"
    EVENT_DUE = "event-overdue"
    EVENT_REFUSED = "event-refused"
    EVENT_MISSING = "event-not-in-topic"
    EVENT_ORDER = "events-in-wrong-order"
    EVENT_STRANGE = "event-without-order"
    EVENT_UNTRUE = "event-contradicts-order"
    EVENT_DIFFERS = "event-differs-from-order"
    EVENT_UNREADABLE = "unreadable-event"
    NO_STOCK_ROW = "reserved-product-without-stock-row"
    BELOW_ZERO = "stock-below-zero"


CAUSES = {
    Kind.UNREADABLE: "the document was changed by hand, or written by another program",
    Kind.PENDING: "recovery is not running, or cannot reach MongoDB",
    Kind.NO_ORDER: "MongoDB was restored from before the order, or inventory was called by another program",
    Kind.NOT_GIVEN_BACK: "inventory was restored from before the release, or release_due was removed by hand",
    Kind.RELEASE_DUE: "inventory did not answer since, or recovery is not running",
    Kind.NO_RESERVATION: "inventory was restored from before the reservation, or its row was deleted by hand",
    Kind.RESERVATION_CANCELLED: "CancelReserve was called by another program, or MongoDB was restored from before the cancellation; "
    "inventory refuses the id for good",
    Kind.OTHER_ITEMS: "the order or the reservation was changed by hand",
    Kind.EVENT_DUE: "Kafka does not answer, or no relay is running",
    Kind.EVENT_REFUSED: "Kafka refused the event: its reason is in the outbox, most often the topic's max.message.bytes",
    Kind.EVENT_MISSING: "the topic was made anew or lost data",
    Kind.EVENT_ORDER: "the topic had lost order.created, and it was sent again after order.cancelled; consumers know it by `sequence`",
    Kind.EVENT_STRANGE: "MongoDB was restored from before the order, or another program wrote to the topic",
    Kind.EVENT_UNTRUE: "MongoDB was restored from before the order was confirmed or cancelled, or another program wrote to the topic",
    Kind.EVENT_DIFFERS: "the order was changed by hand after it was published, or another program wrote to the topic",
    Kind.EVENT_UNREADABLE: "another program wrote to the topic; notifications put it among the dead letters",
    Kind.NO_STOCK_ROW: "inventory's table was changed by hand",
    Kind.BELOW_ZERO: "inventory's table was changed by hand, its CHECK included",
}


class Ages(Struct, frozen=True):
    """What is old enough to be looked at, by the server's time."""

    ids: datetime
    # Recovery comes by at intervals: overdue is what it has missed more than once.
    overdue: datetime
    # An event may wait for its acknowledgement, and then for the claim on it to run out, before another relay sends it.
    events: datetime
    kept: datetime


def compare(order: Order | None, held: Held | None, seen: int | None, ages: Ages) -> Iterable[tuple[Kind, str]]:
    """What differs between an order, its reservation and its events (None: the topic was not read)."""
    if order is None:
        if held is not None and held.live and held.created_at < ages.ids:
            yield Kind.NO_ORDER, f"holds {len(held.items)} products since {held.created_at.isoformat()}"
        if seen:
            yield Kind.EVENT_STRANGE, "the topic has events of it"
        return
    if order.status is Status.PENDING:
        if minted(order.id) < ages.overdue:
            yield Kind.PENDING, f"since {order.created_at.isoformat()}"
        return
    yield from _compare_goods(order, held, ages)
    yield from _compare_events(order, seen, ages)


def _compare_goods(order: Order, held: Held | None, ages: Ages) -> Iterable[tuple[Kind, str]]:
    if order.status is Status.CONFIRMED:
        if held is None:
            yield Kind.NO_RESERVATION, f"{len(order.lines)} products"
        elif not held.live:
            yield Kind.RESERVATION_CANCELLED, f"{len(order.lines)} products"
        elif held.items != tuple(sorted((line.product_id, line.quantity) for line in order.lines)):
            yield Kind.OTHER_ITEMS, f"the order has {len(order.lines)} products, the reservation {len(held.items)}"
    elif order.release_due:
        if order.ended_at is None or order.ended_at < ages.overdue:
            yield Kind.RELEASE_DUE, f"the order is {order.status}"
    elif held is not None and held.live:
        yield Kind.NOT_GIVEN_BACK, f"the order is {order.status}"


def _compare_events(order: Order, seen: int | None, ages: Ages) -> Iterable[tuple[Kind, str]]:
    waiting = {entry.type for entry in order.outbox}
    for entry in order.outbox:
        if entry.refused is not None:
            yield Kind.EVENT_REFUSED, f"{entry.type}: {entry.refused}"
        elif entry.at < ages.events and not any(e.refused for e in order.outbox):
            yield Kind.EVENT_DUE, f"{entry.type} of {entry.at.isoformat()}"
    # What the world may have been told of it, and when.
    told: dict[str, datetime] = {}
    if order.status is Status.CONFIRMED or order.confirmed_at is not None:
        told[events.CREATED] = order.confirmed_at or order.created_at
        if order.status is Status.CANCELLED:
            told[events.CANCELLED] = order.ended_at or order.created_at
    for type in waiting - told.keys():
        yield Kind.EVENT_UNTRUE, f"{type} waits in the outbox, the order is {order.status}"
    if seen is None:
        return
    for type, bit in EVENT_BITS.items():
        if seen & bit and type not in told:
            yield Kind.EVENT_UNTRUE, f"{type} is in the topic, the order is {order.status}"
        elif type in told and told[type] >= ages.kept and type not in waiting and not seen & bit:
            yield Kind.EVENT_MISSING, type
    if seen & WRONG_ORDER:
        yield Kind.EVENT_ORDER, "order.cancelled came first"
    if seen & FOREIGN:
        yield Kind.EVENT_DIFFERS, "the event's id or key is not the one of the order"
    if seen & TWO_CONTENTS:
        yield Kind.EVENT_DIFFERS, "its events in the topic say different things"
    elif seen and seen >> CONTENT != content_of(as_contract(order)):
        yield Kind.EVENT_DIFFERS, "the event tells of another user, other products, prices or times"


_BEGINNING = datetime.fromtimestamp(0, UTC)
_YEAR_9999 = 253_370_764_800_000


def minted(id: UUID) -> datetime:
    """When an id of version 7 was made; for others, and where no calendar has the time, the beginning of time."""
    milliseconds = id.int >> 80
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        if id.version == 7 and milliseconds < _YEAR_9999
        else _BEGINNING
    )
