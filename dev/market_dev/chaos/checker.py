"""The checker: nine invariants of a run, decided from the history and the final state of the stores alone.

Each check takes plain `Observations` and yields one sentence per violation. No sentence: the invariant holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from market_dev.chaos.history import Call
from market_dev.chaos.observations import EventRecord, Observations, event_id_of_mail

Violations = Iterator[str]


def no_unit_sold_twice(observed: Observations) -> Violations:
    """Initial + restocked = final + held by confirmed orders; no stock that was read was negative."""
    held: Counter[str] = Counter()
    for order in observed.orders.values():
        if order.status == "confirmed":
            held.update(order.items)
    for product, initial in observed.initial_stock.items():
        total = initial + observed.restocked.get(product, 0)
        final = observed.final_stock.get(product, 0)
        if total != final + held[product]:
            yield (
                f"product {product}: supplied {total}, in stock {final}, held by confirmed orders {held[product]}: "
                f"difference {total - final - held[product]:+d}"
            )
    for sample in observed.stock_samples:
        if sample.quantity < 0:
            yield f"product {sample.product_id}: stock {sample.quantity} at second {sample.second:.1f}"


def responses_match_orders(observed: Observations) -> Violations:
    """An order with a response of 201 exists as its client left it; one with a 409 or 422 holds no stock."""
    cancel_requested = {(c.order_id, c.user) for c in observed.calls if c.operation == "cancel"}
    cancelled = {c.order_id for c in observed.calls if c.operation == "cancel" and c.status in (200, 202, 204)}
    for call in observed.calls:
        if call.operation != "place" or call.status not in (200, 201):
            continue
        order = observed.orders.get(call.order_id)
        if order is None:
            yield f"order {call.order_id}: the response was {call.status}, but the order does not exist"
        elif order.status == "cancelled" and (order.id, order.user) not in cancel_requested:
            yield f"order {order.id}: cancelled, but no client requested it"
        elif order.status not in ("confirmed", "cancelled"):
            yield f"order {order.id}: the response was {call.status}, but the order is {order.status}"
        elif order.items != call.items:
            yield f"order {order.id}: its items differ from those that were ordered"
    for order_id in sorted(cancelled):
        order = observed.orders.get(order_id)
        if order is not None and order.status != "cancelled":
            yield f"order {order_id}: the cancellation succeeded, but the order is {order.status}"
    by_key = {(o.user, o.key): o for o in observed.orders.values() if o.key}
    for user_key, call in _last_decisions(observed.calls).items():
        if call.status in (409, 422) and (order := by_key.get(user_key)) is not None and order.status == "confirmed":
            yield f"key {call.key} of {call.user}: the response was {call.status}, but order {order.id} holds stock"


def _last_decisions(calls: list[Call]) -> dict[tuple[str, str], Call]:
    """Return, by user and key, the call with the latest response, ignoring calls without a decision (none, or 5xx)."""
    last: dict[tuple[str, str], Call] = {}
    for call in calls:
        if call.operation == "place" and not call.failed:
            known = last.get((call.user, call.key))
            if known is None or call.ended_at > known.ended_at:
                last[call.user, call.key] = call
    return last


def one_order_per_key(observed: Observations) -> Violations:
    """One idempotency key of a user makes one order, and that of another user makes another one."""
    orders: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for order in observed.orders.values():
        if order.key:
            orders[order.user, order.key].add(order.id)
    for call in observed.calls:
        if call.operation == "place" and call.status in (200, 201):
            orders[call.user, call.key].add(call.order_id)
            if (found := observed.orders.get(call.order_id)) is not None and found.user != call.user:
                yield f"key {call.key} of {call.user} returned order {found.id} of {found.user}"
    for (user, key), ids in orders.items():
        if len(ids) > 1:
            yield f"key {key} of {user} has {len(ids)} orders: {', '.join(sorted(ids))}"


def no_request_ran_as_somebody_else(observed: Observations) -> Violations:
    """Each order belongs to the user who sent the request; users only see their own orders, and are never refused."""
    sent = {(c.user, c.key, *sorted(c.items.items())) for c in observed.calls if c.operation == "place"}
    for order in observed.orders.values():
        if order.key and (order.user, order.key, *sorted(order.items.items())) not in sent:
            yield f"order {order.id} of {order.user}: {order.user} sent no such request with the key {order.key}"
    for call in observed.calls:
        others = [user for user in call.shown_users if user != call.user]
        if others:
            yield f"{call.operation} by {call.user} showed an order of {', '.join(others)}"
        found = observed.orders.get(call.order_id) if call.operation in ("read", "cancel") else None
        if found is not None and found.user != call.user and call.status in (200, 202, 204):
            yield f"{call.operation} by {call.user} succeeded for order {found.id} of {found.user}"
        if call.status in (401, 403):
            yield f"{call.operation} by {call.user} was refused with {call.status}: {call.detail}"


def reservations_match_orders(observed: Observations) -> Violations:
    """Every open reservation belongs to a confirmed order, and every confirmed order has its reservation."""
    for reservation in observed.reservations.values():
        if reservation.status != "reserved":
            continue
        order = observed.orders.get(reservation.id)
        if order is None:
            yield f"reservation {reservation.id} has no order"
        elif order.status != "confirmed":
            yield f"reservation {reservation.id} is open, but its order is {order.status}"
    for order in observed.orders.values():
        if order.status != "confirmed":
            continue
        held = observed.reservations.get(order.id)
        if held is None or held.status != "reserved":
            yield f"order {order.id} is confirmed, but has no reservation"
        elif held.items != order.items:
            yield f"order {order.id} and its reservation have different items"


def every_event_published(observed: Observations) -> Violations:
    """The topic has each confirmed order's order.created, before its order.cancelled; duplicates have the same id."""
    first: dict[tuple[str, str], EventRecord] = {}
    for event in observed.events:
        known = first.setdefault((event.order_id, event.type), event)
        if known.id != event.id:
            yield f"order {event.order_id}: {event.type} was published with two ids, {known.id} and {event.id}"
    for order in observed.orders.values():
        created = first.get((order.id, "order.created"))
        cancelled = first.get((order.id, "order.cancelled"))
        if order.status == "confirmed" and created is None:
            yield f"order {order.id} is confirmed, but its order.created is not in the topic"
        if order.status == "confirmed" and cancelled is not None:
            yield f"order {order.id} is confirmed, but its order.cancelled is in the topic"
        if order.status == "cancelled" and (created is None) != (cancelled is None):
            yield f"order {order.id} is cancelled, but only one of its two events is in the topic"
        if order.status == "rejected" and (created or cancelled):
            yield f"order {order.id} is rejected, but has events"
        if created and cancelled and (created.partition != cancelled.partition or created.offset > cancelled.offset):
            yield f"order {order.id}: order.cancelled comes before order.created"
        if order.unpublished_events:
            yield f"order {order.id}: unpublished events in its outbox: {order.unpublished_events}"
    for event in observed.events:
        if event.order_id not in observed.orders:
            yield f"event {event.id} belongs to order {event.order_id}, which does not exist"


def every_mail_delivered(observed: Observations) -> Violations:
    """Each event's mail was accepted at least once; duplicates only after faults, with the same Message-ID."""
    delivered = Counter(event_id_of_mail(mail.message_id) for mail in observed.mails)
    events = {event.id for event in observed.events}
    for event_id in sorted(events - delivered.keys() - observed.dead_letters):
        yield f"event {event_id} has no mail"
    for event_id in sorted(delivered.keys() - events):
        yield f"mail {event_id} belongs to no event in the topic"
    if not observed.faults_injected:
        for event_id, times in delivered.items():
            if times > 1:
                yield f"event {event_id} was mailed {times} times without any fault"


def every_order_settled(observed: Observations) -> Violations:
    """No order stays pending beyond the recovery deadline, and no stock release is outstanding."""
    for order in observed.orders.values():
        if order.status == "pending" and order.age_seconds > observed.recovery_seconds:
            yield f"order {order.id} has been pending for {order.age_seconds:.0f} s"
        if order.release_due:
            yield f"order {order.id} is {order.status}, but its stock was not released"


def reconcile_finds_nothing(observed: Observations) -> Violations:
    """`market reconcile` finds no difference."""
    yield from observed.differences


CHECKS: tuple[Callable[[Observations], Violations], ...] = (
    no_unit_sold_twice,
    responses_match_orders,
    one_order_per_key,
    no_request_ran_as_somebody_else,
    reservations_match_orders,
    every_event_published,
    every_mail_delivered,
    every_order_settled,
    reconcile_finds_nothing,
)


def check_invariants(observed: Observations) -> dict[str, list[str]]:
    """Return the violations by name of the check. All lists empty: the run is clean."""
    return {check.__name__: list(check(observed)) for check in CHECKS}
