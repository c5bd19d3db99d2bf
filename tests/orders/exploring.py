"""What the models of an order's life share: the explorer, and inventory after its contract."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from market.orders.domain import InsufficientStock, ReservationRejected, ReservationResult, Reserved, Shortage

World = TypeVar("World", bound=Hashable)


def reserve(reservation: str, stock: int) -> tuple[str, int, ReservationResult]:
    """The reservation (none, reserved, cancelled) and the stock after a Reserve of one, and what it answers."""
    if reservation == "cancelled":
        return reservation, stock, ReservationRejected("cancelled")
    if reservation == "reserved":
        return reservation, stock, Reserved()
    if stock == 0:
        return reservation, stock, InsufficientStock((Shortage("p", 1, 0),))
    return "reserved", stock - 1, Reserved()


def explore(
    start: World,
    steps: Callable[[World], Iterable[World]],
    always: Callable[[World], None],
    at_the_end: Callable[[World], None],
    most: int,
) -> int:
    """Visits every world that can be reached; `always` holds in each, `at_the_end` where no step is left.

    Answers how many.
    """
    seen = {start}
    waiting = [start]
    while waiting:
        world = waiting.pop()
        last = True
        for after in steps(world):
            last = False
            if after not in seen:
                always(after)
                seen.add(after)
                waiting.append(after)
        if last:
            at_the_end(world)
        assert len(seen) <= most, "the model has grown; look at it before giving it more room"
    return len(seen)
