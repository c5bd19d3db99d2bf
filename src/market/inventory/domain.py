"""Stock and reservations: plain data, limits and errors."""

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
MAX_VERSION = 2**63 - 1
# Lines of a reservation: one per product.
MAX_LINES = 1_000
# Items of a request, before those of the same product are merged into one line.
MAX_ITEMS = 10_000
# Product ids in one request.
MAX_IDS = 1_000
# Reservations in one ReserveMany.
MAX_RESERVATIONS = 512
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
# A page of reservations ends early at this number of lines, which makes a message of about 2 MiB.
MAX_PAGE_LINES = 50_000

# The failure points (kit/faults.py), in the order in which a call passes them.
FAILURE_POINTS = (
    "inventory.inside-reserve",  # all rows written and locked, nothing committed
    "inventory.after-commit",  # reservations committed, no caller has its response
    "inventory.inside-cancel",
    "inventory.after-cancel",
)


class Reservation(Struct, frozen=True, gc=False):
    """The units of each product that one order requests.

    Line n is `quantities[n]` units of `product_ids[n]`. The lines are sorted by product, one per product.
    """

    id: UUID
    product_ids: list[UUID]
    quantities: list[int]


class Shortage(Struct, frozen=True, gc=False):
    """A line that requests more units than are available."""

    product_id: UUID
    requested: int
    available: int


# The lines of a reservation for which there is not enough stock; empty if all lines were reserved.
Shortages = list[Shortage]


class Movement(Struct, frozen=True):
    """Units that are added (delta > 0) or lost (delta < 0), no matter which version the product has."""

    id: UUID
    product_id: UUID
    delta: int


class StockWrite(Struct, frozen=True, gc=False):
    """A quantity that replaces the product's stock.

    product_version: the version of the product to which it belongs; the stock of a newer version is not replaced.
        None: the stock of any version is replaced.
    """

    product_id: UUID
    quantity: int
    product_version: int | None = None


class Delivery(Struct, frozen=True):
    """Units that have arrived. Deliveries of a product with the same id are one delivery.

    product_version: the version of the product to which it belongs; it is not added to the stock of a newer version.
    """

    id: UUID
    product_id: UUID
    quantity: int
    product_version: int


class DeliveryResult(Struct, frozen=True):
    """The outcome of a delivery, and the stock that is in force afterwards."""

    outcome: Outcome
    in_force: StockInForce


class StockInForce(Struct, frozen=True, gc=False):
    """A product's stock after a write, and the version to which it belongs.

    product_version: the highest version that has set the stock or added a delivery to it; 0: none has.
    """

    quantity: int
    product_version: int


class StockChange(Struct, frozen=True, gc=False):
    """The result of a StockWrite.

    before: the stock when its transaction began; None: the product had none.
    applied: False if a newer version had set the stock. If True, `in_force` may nevertheless have a newer version:
        that of a delivery, whose units are kept.
    """

    before: int | None
    in_force: StockInForce
    applied: bool


class StoredReservation(Struct, frozen=True):
    """A reservation as it is stored."""

    reservation: Reservation
    status: Literal["reserved", "cancelled"]
    created_at: datetime


class Outcome(IntEnum):
    """How a reservation, a movement or a delivery was decided. The numbers are those of the SQL functions."""

    ROW_DELETED = 0  # the row was deleted between two statements: try again
    DONE = 1
    REPEATED = 2
    REJECTED = 3
    MISMATCH = 4
    CANCELLED = 5
    SUPERSEDED = 6


class ReservationMismatch(AlreadyExists):
    """The id has been used for a reservation with other lines."""

    def __init__(self, reservation_id: UUID) -> None:
        super().__init__(f"reservation {reservation_id} already exists with different items")


class ReservationCancelled(Conflict):
    """The reservation was cancelled, perhaps before it arrived; its id stays unusable."""

    def __init__(self, reservation_id: UUID) -> None:
        super().__init__(f"reservation {reservation_id} was cancelled")


class MovementMismatch(AlreadyExists):
    """The id has been used for another movement."""

    def __init__(self, movement_id: UUID) -> None:
        super().__init__(f"movement {movement_id} already exists with a different product or delta")


class StockOutOfRange(Conflict):
    """The movement would make the stock negative, or larger than MAX_STOCK."""

    def __init__(self, movement: Movement, quantity: int) -> None:
        super().__init__(
            f"product {movement.product_id}: stock must stay between 0 and {MAX_STOCK}, "
            f"got {quantity} with a change of {movement.delta:+d}"
        )


def merge_lines(reservation_id: UUID, lines: Iterable[tuple[UUID, int]]) -> Reservation:
    """Return the reservation of these lines (product id, quantity), merged and sorted by product.

    Raises BadInput if there are too few or too many products, or too many units of one.
    """
    requested: dict[UUID, int] = {}
    for product_id, quantity in lines:
        requested[product_id] = requested.get(product_id, 0) + quantity
    if not 1 <= len(requested) <= MAX_LINES:
        raise BadInput("items", f"number of different products must be between 1 and {MAX_LINES}, got {len(requested)}")
    if max(requested.values()) > MAX_QUANTITY:
        product_id, quantity = next((p, q) for p, q in requested.items() if q > MAX_QUANTITY)
        raise BadInput(
            "items", f"total quantity of product {product_id} must be at most {MAX_QUANTITY}, got {quantity}"
        )
    product_ids = sorted(requested)
    return Reservation(reservation_id, product_ids, [requested[p] for p in product_ids])
