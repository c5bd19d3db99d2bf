"""The checker accepts a clean run and detects each kind of violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from market_dev.chaos.checker import CHECKS, check_invariants
from market_dev.chaos.history import Call, Operation
from market_dev.chaos.observations import (
    EventRecord,
    MailRecord,
    Observations,
    OrderRecord,
    ReservationRecord,
    StockSample,
)

P, Q = "product-p", "product-q"


def place_call(order_id: str, status: int, key: str, items: dict[str, int], ended_at: float = 1.0) -> Call:
    return Call(
        operation="place",
        via="rest",
        started_at=0.5,
        ended_at=ended_at,
        status=status,
        key=key,
        user="ada",
        order_id=order_id,
        items=items,
    )


def call(operation: Operation, user: str, status: int, **fields: Any) -> Call:
    return Call(operation=operation, via="rest", started_at=4, ended_at=5, status=status, user=user, **fields)


def order(order_id: str, status: str, items: dict[str, int], key: str | None) -> OrderRecord:
    return OrderRecord(
        id=order_id,
        status=status,
        items=items,
        user="ada",
        key=key,
        age_seconds=100,
        unpublished_events=0,
        release_due=False,
    )


def clean_run() -> Observations:
    """Three orders: one confirmed, one cancelled by its client, one rejected."""
    return Observations(
        calls=[
            place_call("sold", 201, "k1", {P: 2}),
            place_call("sold", 200, "k1", {P: 2}, ended_at=2),
            place_call("gone", 201, "k2", {Q: 1}),
            Call(
                operation="cancel",
                via="graphql",
                started_at=3,
                ended_at=3.5,
                status=200,
                user="ada",
                order_id="gone",
                shown_users=["ada"],
            ),
            call("read", "bea", 404, order_id="sold"),
            place_call("", 409, "k3", {P: 99}),
        ],
        orders={
            "sold": order("sold", "confirmed", {P: 2}, "k1"),
            "gone": order("gone", "cancelled", {Q: 1}, "k2"),
            "short": order("short", "rejected", {P: 99}, None),
        },
        reservations={
            "sold": ReservationRecord("sold", "reserved", {P: 2}),
            "gone": ReservationRecord("gone", "cancelled", {Q: 1}),
        },
        initial_stock={P: 10, Q: 5},
        restocked={P: 3},
        final_stock={P: 11, Q: 5},
        stock_samples=[StockSample(1.0, P, 8), StockSample(2.0, Q, 5)],
        events=[
            EventRecord("e1", "order.created", "sold", 0, 0),
            EventRecord("e2", "order.created", "gone", 1, 0),
            EventRecord("e3", "order.cancelled", "gone", 1, 1),
            EventRecord("e1", "order.created", "sold", 0, 1),
        ],
        dead_letters=set(),
        mails=[MailRecord(f"<{e}@shop>", "x") for e in ("e1", "e2", "e3", "e1")],
        faults_injected=True,
        recovery_seconds=10,
    )


def test_a_clean_run_has_no_violations() -> None:
    assert check_invariants(clean_run()) == {check.__name__: [] for check in CHECKS}


def change_order(observed: Observations, order_id: str, **changes: object) -> None:
    observed.orders[order_id] = replace(observed.orders[order_id], **changes)  # type: ignore[arg-type]


def swap_events_of_cancelled_order(observed: Observations) -> None:
    observed.events[1:3] = [
        EventRecord("e3", "order.cancelled", "gone", 1, 0),
        EventRecord("e2", "order.created", "gone", 1, 1),
    ]


def remove_event(observed: Observations, event_id: str) -> None:
    observed.events[:] = [event for event in observed.events if event.id != event_id]


# description: (the check that must detect it, how it gets into the observations)
VIOLATIONS: dict[str, tuple[str, Callable[[Observations], object]]] = {
    "a unit was sold twice": ("no_unit_sold_twice", lambda o: o.final_stock.update({P: 12})),
    "a unit leaked": ("no_unit_sold_twice", lambda o: o.final_stock.update({Q: 4})),
    "stock was negative during the run": (
        "no_unit_sold_twice",
        lambda o: o.stock_samples.append(StockSample(1.5, P, -1)),
    ),
    "an order with a response of 201 is lost": ("responses_match_orders", lambda o: o.orders.pop("sold")),
    "an order with a response of 201 is pending": (
        "responses_match_orders",
        lambda o: change_order(o, "sold", status="pending"),
    ),
    "an order is cancelled without a request": (
        "responses_match_orders",
        lambda o: change_order(o, "sold", status="cancelled"),
    ),
    "a cancelled order is confirmed": (
        "responses_match_orders",
        lambda o: change_order(o, "gone", status="confirmed"),
    ),
    "an order has other items than ordered": (
        "responses_match_orders",
        lambda o: change_order(o, "sold", items={P: 1}),
    ),
    "an order with a response of 409 holds stock": (
        "responses_match_orders",
        lambda o: o.orders.update({"short": order("short", "confirmed", {P: 99}, "k3")}),
    ),
    "one key made two orders": (
        "one_order_per_key",
        lambda o: o.orders.update({"twin": order("twin", "confirmed", {P: 2}, "k1")}),
    ),
    "one key has two orders in its responses": (
        "one_order_per_key",
        lambda o: o.calls.append(place_call("twin", 200, "k1", {P: 2})),
    ),
    "a key has the order of another user in its response": (
        "one_order_per_key",
        lambda o: change_order(o, "sold", user="bea"),
    ),
    "an order is of somebody who sent no such request": (
        "no_request_ran_as_somebody_else",
        lambda o: change_order(o, "gone", user="bea"),
    ),
    "an order of one user has the items of another's request": (
        "no_request_ran_as_somebody_else",
        lambda o: change_order(o, "sold", items={Q: 3}),
    ),
    "somebody is shown an order of another user": (
        "no_request_ran_as_somebody_else",
        lambda o: o.calls.append(call("list", "bea", 200, shown_users=["ada", "bea"])),
    ),
    "somebody has read an order of another user": (
        "no_request_ran_as_somebody_else",
        lambda o: o.calls.append(call("read", "bea", 200, order_id="sold")),
    ),
    "somebody has cancelled an order of another user": (
        "no_request_ran_as_somebody_else",
        lambda o: o.calls.append(call("cancel", "bea", 200, order_id="gone")),
    ),
    "somebody who signed in is not recognised": (
        "no_request_ran_as_somebody_else",
        lambda o: o.calls.append(call("browse", "bea", 401)),
    ),
    "a reservation has no order": (
        "reservations_match_orders",
        lambda o: o.reservations.update({"ghost": ReservationRecord("ghost", "reserved", {P: 1})}),
    ),
    "a rejected order still holds stock": (
        "reservations_match_orders",
        lambda o: o.reservations.update({"short": ReservationRecord("short", "reserved", {P: 99})}),
    ),
    "a confirmed order has no reservation": ("reservations_match_orders", lambda o: o.reservations.pop("sold")),
    "a reservation holds less than its order": (
        "reservations_match_orders",
        lambda o: o.reservations.update({"sold": ReservationRecord("sold", "reserved", {P: 1})}),
    ),
    "a confirmed order has no event": ("every_event_published", lambda o: remove_event(o, "e1")),
    "a cancelled order has only its first event": ("every_event_published", lambda o: o.events.pop(2)),
    "the events are in the wrong order": ("every_event_published", swap_events_of_cancelled_order),
    "one event was published with two ids": (
        "every_event_published",
        lambda o: o.events.append(EventRecord("e9", "order.created", "sold", 0, 2)),
    ),
    "an event stays unpublished": ("every_event_published", lambda o: change_order(o, "sold", unpublished_events=1)),
    "an event has no order": (
        "every_event_published",
        lambda o: o.events.append(EventRecord("e8", "order.created", "nobody", 0, 3)),
    ),
    "a mail was lost": ("every_mail_delivered", lambda o: o.mails.pop(1)),
    "a mail has no event": ("every_mail_delivered", lambda o: o.mails.append(MailRecord("<e7@shop>", "x"))),
    "a mail was repeated without a fault": (
        "every_mail_delivered",
        lambda o: setattr(o, "faults_injected", False),
    ),
    "an order stays pending": (
        "every_order_settled",
        lambda o: o.orders.update({"p": order("p", "pending", {P: 1}, "k9")}),
    ),
    "stock is never released": ("every_order_settled", lambda o: change_order(o, "gone", release_due=True)),
    "reconcile reports a difference": (
        "reconcile_finds_nothing",
        lambda o: o.differences.append("a reservation without an order"),
    ),
}


@pytest.mark.parametrize("description", VIOLATIONS)
def test_each_violation_is_detected(description: str) -> None:
    check, violate = VIOLATIONS[description]
    observed = clean_run()
    violate(observed)
    assert check_invariants(observed)[check], f"{check} did not detect that {description}"


def test_every_check_has_a_violation_that_it_detects() -> None:
    assert {check for check, _ in VIOLATIONS.values()} == {check.__name__ for check in CHECKS}
