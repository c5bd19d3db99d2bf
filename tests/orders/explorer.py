"""A model checker for the models of an order's lifecycle, and inventory modelled after its contract."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from market.orders.domain import InsufficientStock, ReservationRejected, ReservationResult, Reserved, Shortage

State = TypeVar("State", bound=Hashable)


def reserve(reservation: str, stock: int) -> tuple[str, int, ReservationResult]:
    """Return the reservation (none, reserved, cancelled) and the stock after a Reserve of one unit, and its response."""
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
