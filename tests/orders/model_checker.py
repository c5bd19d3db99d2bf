"""A model checker for an order's lifecycle, and what its models share: the rules of orders, and inventory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar
from uuid import UUID

from market.contracts import events
from market.orders import domain
from market.orders.domain import (
    InsufficientStock,
    Order,
    OrderLine,
    OutboxEntry,
    ReservationRejected,
    ReservationResult,
    Reserved,
    Shortage,
    Status,
    Transition,
)

State = TypeVar("State", bound=Hashable)

AT = datetime(2026, 1, 1, tzinfo=UTC)
# The order as its intent is stored.
INTENT = Order(
    UUID(int=1),
    "ada",
    None,
    (OrderLine("p", "Lamp", 1, Decimal(1)),),
    Decimal(1),
    "GBP",
    AT,
    idempotency_key="k",
    digest=b"d",
)
# The result of a step whose response is lost.
UNKNOWN = object()


def make_entry(order: Order, event_type: str) -> OutboxEntry:
    return OutboxEntry(events.event_id(order.id, event_type), event_type, AT)


@dataclass(frozen=True)
class Rules:
    """The rules of `market.orders.domain`. Tests of the checker itself replace one of them with a wrong one."""

    transitions: tuple[Transition, ...] = domain.TRANSITIONS
    reject: Transition = domain.REJECT
    transition_after_reservation: Callable[[ReservationResult], Transition] = domain.transition_after_reservation
    key_holding_statuses: tuple[Status, ...] = domain.KEY_HOLDING_STATUSES
    apply_transition: Callable[[Order, Transition, OutboxEntry | None], Order] = domain.apply_transition

    def transition(self, order: Order, transition: Transition) -> Order:
        """Return the order after the transition, with the transition's event in its outbox."""
        assert transition in self.transitions
        return self.apply_transition(
            order, transition, make_entry(order, transition.event) if transition.event else None
        )


RULES = Rules()


def reserve(reservation: str, stock: int) -> tuple[str, int, ReservationResult]:
    """Reserve one unit. Return the reservation (none, reserved, cancelled), the stock, and the response."""
    if reservation == "cancelled":
        return reservation, stock, ReservationRejected("cancelled")
    if reservation == "reserved":
        return reservation, stock, Reserved()
    if stock == 0:
        return reservation, stock, InsufficientStock((Shortage("p", 1, 0),))
    return "reserved", stock - 1, Reserved()


def explore(
    start: State,
    next_states: Callable[[State], Iterable[State]],
    check_invariants: Callable[[State], None],
    check_final: Callable[[State], None],
    max_states: int,
) -> int:
    """Visit every reachable state once and return how many there are.

    `check_invariants` is called for each, `check_final` for those without a next state.
    """
    seen = {start}
    unvisited = [start]
    while unvisited:
        state = unvisited.pop()
        final = True
        for following in next_states(state):
            final = False
            if following not in seen:
                check_invariants(following)
                seen.add(following)
                unvisited.append(following)
        if final:
            check_final(state)
        assert len(seen) <= max_states, "the model has grown: check that this is intended before raising max_states"
    return len(seen)
