"""The verdict: eight statements about a run, decided from the history and the stores alone.

Each check takes plain Facts and answers its violations as sentences; none means that it holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from market_dev.chaos.history import Call

Violations = Iterator[str]


@dataclass(frozen=True, slots=True)
class OrderFact:
    """An order's document. `items`: product id -> quantity."""

    id: str
    status: str
    items: dict[str, int]
    key: str | None
    # Seconds since it was created, when the stores were read.
    age: float
    unsent: int
    release_due: bool


@dataclass(frozen=True, slots=True)
class ReservationFact:
    id: str
    status: str
    items: dict[str, int]


@dataclass(frozen=True, slots=True)
class EventFact:
    """A message of topic `orders`, in the order of its partition."""

    id: str
    type: str
    order_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class MailFact:
    message_id: str
    to: str


@dataclass
class Facts:
    """Everything that was read after the shop had settled. Quantities are units."""

    calls: list[Call]
    orders: dict[str, OrderFact]
    reservations: dict[str, ReservationFact]
    # product id -> what it started with, what came later, what is left now
    start: dict[str, int]
    restocked: dict[str, int]
    left: dict[str, int]
    # Stock as it was read now and then during the run: (second, product id, quantity).
    samples: list[tuple[float, str, int]]
    events: list[EventFact]
    # Ids of events that were put aside as dead letters on purpose of a fault.
    dead_letters: set[str]
    mails: list[MailFact]
    # Message-IDs may come twice only if something was killed, paused or cut off.
    disturbed: bool
    recovery_seconds: float
    differences: list[str] = field(default_factory=list)


def no_unit_sold_twice(facts: Facts) -> Violations:
    """Start + restocked = left + held by confirmed orders; never below zero at any moment that was read."""
    held: Counter[str] = Counter()
    for order in facts.orders.values():
        if order.status == "confirmed":
            held.update(order.items)
    for product, start in facts.start.items():
        had = start + facts.restocked.get(product, 0)
        left = facts.left.get(product, 0)
        if had != left + held[product]:
            yield f"product {product}: had {had}, {left} left and {held[product]} held by confirmed orders: {had - left - held[product]:+d}"
    for second, product, quantity in facts.samples:
        if quantity < 0:
            yield f"product {product}: {quantity} at second {second:.1f}"


def every_answer_was_true(facts: Facts) -> Violations:
    """Every order answered 201 exists, confirmed or cancelled as the client asked; none answered 409 or 422 holds stock."""
    asked_to_cancel = {c.order_id for c in facts.calls if c.operation == "cancel"}
    cancelled = {c.order_id for c in facts.calls if c.operation == "cancel" and c.status in (200, 202, 204)}
    for call in facts.calls:
        if call.operation != "place" or call.status not in (200, 201):
            continue
        order = facts.orders.get(call.order_id)
        if order is None:
            yield f"order {call.order_id} was answered {call.status} and is not there"
        elif order.status == "cancelled" and order.id not in asked_to_cancel:
            yield f"order {order.id} is cancelled, and nobody asked for it"
        elif order.status not in ("confirmed", "cancelled"):
            yield f"order {order.id} was answered {call.status} and is {order.status}"
        elif order.items != call.items:
            yield f"order {order.id} holds other goods than were ordered"
    for id in sorted(cancelled):
        order = facts.orders.get(id)
        if order is not None and order.status != "cancelled":
            yield f"order {id} was answered as cancelled and is {order.status}"
    by_key = {o.key: o for o in facts.orders.values() if o.key}
    last: dict[str, Call] = {}
    for call in facts.calls:
        if (
            call.operation == "place"
            and call.status
            and call.status < 500
            and call.ended > getattr(last.get(call.key), "ended", -1.0)
        ):
            last[call.key] = call
    for key, call in last.items():
        if call.status in (409, 422) and (order := by_key.get(key)) is not None and order.status == "confirmed":
            yield f"key {key} was answered {call.status}, and order {order.id} holds stock"


def one_key_one_order(facts: Facts) -> Violations:
    """One key, one order, one reservation."""
    orders: defaultdict[str, set[str]] = defaultdict(set)
    for order in facts.orders.values():
        if order.key:
            orders[order.key].add(order.id)
    for call in facts.calls:
        if call.operation == "place" and call.status in (200, 201):
            orders[call.key].add(call.order_id)
    for key, ids in orders.items():
        if len(ids) > 1:
            yield f"key {key} has {len(ids)} orders: {', '.join(sorted(ids))}"


def reservations_match_orders(facts: Facts) -> Violations:
    """No reservation without an order, no confirmed order without its reservation."""
    for reservation in facts.reservations.values():
        if reservation.status != "reserved":
            continue
        order = facts.orders.get(reservation.id)
        if order is None:
            yield f"reservation {reservation.id} has no order"
        elif order.status != "confirmed":
            yield f"reservation {reservation.id} is held for an order that is {order.status}"
    for order in facts.orders.values():
        if order.status != "confirmed":
            continue
        held = facts.reservations.get(order.id)
        if held is None or held.status != "reserved":
            yield f"order {order.id} is confirmed and has no reservation"
        elif held.items != order.items:
            yield f"order {order.id} and its reservation hold different goods"


def every_event_was_sent(facts: Facts) -> Violations:
    """Each confirmed order's order.created is in the topic, before its order.cancelled; repeats have the same id."""
    first: dict[tuple[str, str], EventFact] = {}
    for event in facts.events:
        known = first.setdefault((event.order_id, event.type), event)
        if known.id != event.id:
            yield f"order {event.order_id}: {event.type} was sent with two ids, {known.id} and {event.id}"
    for order in facts.orders.values():
        created = first.get((order.id, "order.created"))
        cancelled = first.get((order.id, "order.cancelled"))
        if order.status == "confirmed" and created is None:
            yield f"order {order.id} is confirmed and its order.created is not in the topic"
        if order.status == "confirmed" and cancelled is not None:
            yield f"order {order.id} is confirmed and its order.cancelled is in the topic"
        if order.status == "cancelled" and (created is None) != (cancelled is None):
            yield f"order {order.id} is cancelled and only one of its two events is in the topic"
        if order.status == "rejected" and (created or cancelled):
            yield f"order {order.id} is rejected and has events"
        if created and cancelled and (created.partition != cancelled.partition or created.offset > cancelled.offset):
            yield f"order {order.id}: order.cancelled comes before order.created"
        if order.unsent:
            yield f"order {order.id} has {order.unsent} events that were not sent"
    known_orders = facts.orders.keys()
    for event in facts.events:
        if event.order_id not in known_orders:
            yield f"event {event.id} is of an order {event.order_id} that is not there"


def every_mail_was_taken(facts: Facts) -> Violations:
    """Each event's mail was taken at least once; repeats only where something was disturbed, with the same Message-ID."""
    taken = Counter(mail.message_id.strip("<>").partition("@")[0] for mail in facts.mails)
    events = {event.id for event in facts.events}
    for id in sorted(events - taken.keys() - facts.dead_letters):
        yield f"event {id} has no mail"
    for id in sorted(taken.keys() - events):
        yield f"mail {id} is of no event in the topic"
    if not facts.disturbed:
        for id, times in taken.items():
            if times > 1:
                yield f"event {id} was mailed {times} times, and nothing was disturbed"


def nothing_stays_pending(facts: Facts) -> Violations:
    """No order stays pending longer than the recovery deadline, and no goods wait to be given back."""
    for order in facts.orders.values():
        if order.status == "pending" and order.age > facts.recovery_seconds:
            yield f"order {order.id} is pending for {order.age:.0f} s"
        if order.release_due:
            yield f"order {order.id} is {order.status} and its goods still wait to be given back"


def reconcile_agrees(facts: Facts) -> Violations:
    """`market reconcile` finds nothing to repair."""
    yield from facts.differences


CHECKS: tuple[Callable[[Facts], Violations], ...] = (
    no_unit_sold_twice,
    every_answer_was_true,
    one_key_one_order,
    reservations_match_orders,
    every_event_was_sent,
    every_mail_was_taken,
    nothing_stays_pending,
    reconcile_agrees,
)


def verdict(facts: Facts) -> dict[str, list[str]]:
    """Violations by check; all empty: the run is clean."""
    return {check.__name__: list(check(facts)) for check in CHECKS}
