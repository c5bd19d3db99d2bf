"""Stock and reservations: plain data, the bounds, the errors."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import IntEnum
from typing import Literal
from uuid import UUID

from msgspec import Struct

from market.kit.errors import AlreadyExists, BadInput, Conflict

MAX_STOCK = 2_147_483_647
MAX_QUANTITY = 1_000_000
MAX_LINES = 1_000
# Lines as they come, before the same product's are merged.
MAX_RAW_LINES = 10_000
MAX_IDS = 1_000
MAX_RESERVATIONS = 512
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
# A page of reservations ends early here: a message of some 2 MiB.
MAX_PAGE_LINES = 50_000

# The failure points, in the order in which a call passes them.
POINTS = (
    "inventory.inside-reserve",  # all rows written and locked, nothing committed
    "inventory.after-commit",  # reservations committed, nobody answered
    "inventory.inside-cancel",
    "inventory.after-cancel",
)


class Reservation(Struct, frozen=True, gc=False):
    """What an order wants. Lines are merged and sorted by product; the two lists go together."""

    id: UUID
    product_ids: list[UUID]
    quantities: list[int]


class Shortage(Struct, frozen=True, gc=False):
    product_id: UUID
    wanted: int
    left: int


# What is short; empty: all was taken.
Shortages = list[Shortage]


class Movement(Struct, frozen=True):
    """A delivery (delta > 0) or a loss (delta < 0)."""

    id: UUID
    product_id: UUID
    delta: int


class Kept(Struct, frozen=True):
    """A reservation as it is kept."""

    reservation: Reservation
    status: Literal["reserved", "cancelled"]
    created_at: datetime


class Outcome(IntEnum):
    """What became of a reservation or a movement. The numbers are those of the functions in migrations/."""

    GONE = 0  # its row was deleted while we looked: ask again
    DONE = 1
    REPEATED = 2
    REFUSED = 3
    DIFFERS = 4
    CANCELLED = 5


class OtherLines(AlreadyExists):
    def __init__(self, id: UUID) -> None:
        super().__init__(f"reservation {id} exists with other items")


class ReservationCancelled(Conflict):
    def __init__(self, id: UUID) -> None:
        super().__init__(f"reservation {id} was cancelled")


class OtherMovement(AlreadyExists):
    def __init__(self, id: UUID) -> None:
        super().__init__(f"movement {id} exists with another product or delta")


class StockOutOfRange(Conflict):
    """The movement would leave less than nothing, or more than can be counted."""

    def __init__(self, movement: Movement, quantity: int) -> None:
        super().__init__(
            f"product {movement.product_id} has {quantity}: {movement.delta:+d} would leave 0..{MAX_STOCK}"
        )


def merged(id: UUID, lines: Iterable[tuple[UUID, int]]) -> Reservation:
    """The reservation with each product once, sorted. Raises BadInput where that is out of bounds."""
    wanted: dict[UUID, int] = {}
    for product_id, quantity in lines:
        wanted[product_id] = wanted.get(product_id, 0) + quantity
    if not 1 <= len(wanted) <= MAX_LINES:
        raise BadInput("items", f"must have 1 to {MAX_LINES} different products")
    if max(wanted.values()) > MAX_QUANTITY:
        too_many = next(p for p, q in wanted.items() if q > MAX_QUANTITY)
        raise BadInput("items", f"product {too_many} must be wanted at most {MAX_QUANTITY} times in all")
    product_ids = sorted(wanted)
    return Reservation(id, product_ids, [wanted[p] for p in product_ids])
