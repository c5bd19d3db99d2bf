"""The checker is right about a clean run, and catches each kind of lie, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from market_dev.chaos.checker import CHECKS, EventFact, Facts, MailFact, OrderFact, ReservationFact, verdict
from market_dev.chaos.history import Call

P, Q = "product-p", "product-q"


def place(id: str, status: int, key: str, items: dict[str, int], ended: float = 1.0) -> Call:
    return Call(operation="place", via="rest", began=0.5, ended=ended, status=status, key=key, order_id=id, items=items)


def order(id: str, status: str, items: dict[str, int], key: str | None) -> OrderFact:
    return OrderFact(id=id, status=status, items=items, key=key, age=100, unsent=0, release_due=False)


def clean() -> Facts:
    """Three orders: one sold, one cancelled by its client, one refused."""
    return Facts(
        calls=[
            place("sold", 201, "k1", {P: 2}),
            place("sold", 200, "k1", {P: 2}, ended=2),
            place("gone", 201, "k2", {Q: 1}),
            Call(operation="cancel", via="graphql", began=3, ended=3.5, status=200, order_id="gone"),
            place("", 409, "k3", {P: 99}),
        ],
        orders={
            "sold": order("sold", "confirmed", {P: 2}, "k1"),
            "gone": order("gone", "cancelled", {Q: 1}, "k2"),
            "short": order("short", "rejected", {P: 99}, None),
        },
        reservations={
            "sold": ReservationFact("sold", "reserved", {P: 2}),
            "gone": ReservationFact("gone", "cancelled", {Q: 1}),
        },
        start={P: 10, Q: 5},
        restocked={P: 3},
        left={P: 11, Q: 5},
        samples=[(1.0, P, 8), (2.0, Q, 5)],
        events=[
            EventFact("e1", "order.created", "sold", 0, 0),
            EventFact("e2", "order.created", "gone", 1, 0),
            EventFact("e3", "order.cancelled", "gone", 1, 1),
            EventFact("e1", "order.created", "sold", 0, 1),
        ],
        dead_letters=set(),
        mails=[MailFact(f"<{e}@shop>", "x") for e in ("e1", "e2", "e3", "e1")],
        disturbed=True,
        recovery_seconds=10,
    )


def test_a_clean_run_has_no_violations() -> None:
    assert verdict(clean()) == {check.__name__: [] for check in CHECKS}


def with_order(facts: Facts, id: str, **changes: object) -> None:
    facts.orders[id] = replace(facts.orders[id], **changes)  # type: ignore[arg-type]


LIES: dict[str, tuple[str, Callable[[Facts], object]]] = {
    "a unit was sold twice": ("no_unit_sold_twice", lambda f: f.left.update({P: 12})),
    "a unit leaked": ("no_unit_sold_twice", lambda f: f.left.update({Q: 4})),
    "stock was below zero for a moment": ("no_unit_sold_twice", lambda f: f.samples.append((1.5, P, -1))),
    "an order that was answered 201 is lost": ("every_answer_was_true", lambda f: f.orders.pop("sold")),
    "an order that was answered 201 is pending": (
        "every_answer_was_true",
        lambda f: with_order(f, "sold", status="pending"),
    ),
    "an order was cancelled by nobody": ("every_answer_was_true", lambda f: with_order(f, "sold", status="cancelled")),
    "a cancelled order lives": ("every_answer_was_true", lambda f: with_order(f, "gone", status="confirmed")),
    "an order holds other goods than were ordered": (
        "every_answer_was_true",
        lambda f: with_order(f, "sold", items={P: 1}),
    ),
    "an order that was refused holds stock": (
        "every_answer_was_true",
        lambda f: f.orders.update({"short": order("short", "confirmed", {P: 99}, "k3")}),
    ),
    "one key made two orders": (
        "one_key_one_order",
        lambda f: f.orders.update({"twin": order("twin", "confirmed", {P: 2}, "k1")}),
    ),
    "one key was answered with two orders": (
        "one_key_one_order",
        lambda f: f.calls.append(place("twin", 200, "k1", {P: 2})),
    ),
    "a reservation has no order": (
        "reservations_match_orders",
        lambda f: f.reservations.update({"ghost": ReservationFact("ghost", "reserved", {P: 1})}),
    ),
    "a rejected order still holds goods": (
        "reservations_match_orders",
        lambda f: f.reservations.update({"short": ReservationFact("short", "reserved", {P: 99})}),
    ),
    "a confirmed order has no reservation": ("reservations_match_orders", lambda f: f.reservations.pop("sold")),
    "a reservation holds less than its order": (
        "reservations_match_orders",
        lambda f: f.reservations.update({"sold": ReservationFact("sold", "reserved", {P: 1})}),
    ),
    "a confirmed order has no event": (
        "every_event_was_sent",
        lambda f: f.events.__setitem__(slice(None), [e for e in f.events if e.id != "e1"]),
    ),
    "a cancelled order has only its first event": ("every_event_was_sent", lambda f: f.events.pop(2)),
    "the events are in the wrong order": (
        "every_event_was_sent",
        lambda f: f.events.__setitem__(
            slice(1, 3),
            [EventFact("e3", "order.cancelled", "gone", 1, 0), EventFact("e2", "order.created", "gone", 1, 1)],
        ),
    ),
    "one event was sent under two ids": (
        "every_event_was_sent",
        lambda f: f.events.append(EventFact("e9", "order.created", "sold", 0, 2)),
    ),
    "an event waits for ever": ("every_event_was_sent", lambda f: with_order(f, "sold", unsent=1)),
    "an event is of no order": (
        "every_event_was_sent",
        lambda f: f.events.append(EventFact("e8", "order.created", "nobody", 0, 3)),
    ),
    "a mail was lost": ("every_mail_was_taken", lambda f: f.mails.pop(1)),
    "a mail is of no event": ("every_mail_was_taken", lambda f: f.mails.append(MailFact("<e7@shop>", "x"))),
    "a mail came twice for no reason": ("every_mail_was_taken", lambda f: setattr(f, "disturbed", False)),
    "an order is pending for ever": (
        "nothing_stays_pending",
        lambda f: f.orders.update({"p": order("p", "pending", {P: 1}, "k9")}),
    ),
    "goods wait for ever to be given back": (
        "nothing_stays_pending",
        lambda f: with_order(f, "gone", release_due=True),
    ),
    "reconcile disagrees": ("reconcile_agrees", lambda f: f.differences.append("a reservation without an order")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_caught(lie: str) -> None:
    statement, tell = LIES[lie]
    facts = clean()
    tell(facts)
    assert verdict(facts)[statement], f"{statement} did not notice that {lie}"


def test_every_statement_has_a_lie_that_breaks_it() -> None:
    assert {statement for statement, _ in LIES.values()} == {check.__name__ for check in CHECKS}
