"""The use cases of inventory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from market.inventory import metrics
from market.inventory.batching.transactions import MAX_ATTEMPTS, TransactionBatcher
from market.inventory.config import Retention
from market.inventory.domain import (
    Movement,
    MovementMismatch,
    Outcome,
    Reservation,
    Shortages,
    StockInForce,
    StockOutOfRange,
    StockWrite,
    StoredReservation,
)
from market.inventory.store import ReservationRepository, StockRepository
from market.kit.auth import audit
from market.kit.errors import Overloaded, Unavailable


@dataclass(frozen=True)
class Deps:
    """What the use cases work with. `max_pending`: reservations that may wait for a transaction."""

    stock: StockRepository
    reservations: ReservationRepository
    batcher: TransactionBatcher
    max_pending: int


async def reserve(deps: Deps, reservation: Reservation) -> Shortages:
    """Reserve the units of every line, or none; return the shortages, empty if all were reserved.

    Raises ReservationMismatch, ReservationCancelled, Overloaded, DeadlineExceeded, Unavailable.
    """
    _check_capacity(deps)
    return await deps.batcher.reservations(reservation)


async def reserve_many(deps: Deps, reservations: Sequence[Reservation]) -> list[Shortages | BaseException]:
    """Return for each reservation what `reserve` would return or raise. Raises Overloaded."""
    _check_capacity(deps)
    return await deps.batcher.reservations.map_with_exceptions(reservations)


async def cancel(deps: Deps, reservation_id: UUID) -> bool:
    """Cancel the reservation, now or before it arrives; return whether units returned to stock.

    Raises DeadlineExceeded, Unavailable.
    """
    released = await deps.batcher.cancellations(reservation_id)
    metrics.cancellations[released].inc()
    return released


async def set_stock(deps: Deps, write: StockWrite) -> StockInForce:
    """Replace the units that are free to sell, unless those of a newer version of the product are in force.

    Return what is in force afterwards. Raises DeadlineExceeded, Unavailable.
    """
    change = await deps.batcher.stock_writes(write)
    in_force = change.in_force
    if write.product_version is not None and in_force.product_version > write.product_version:
        metrics.STOCK_WRITES_SUPERSEDED.inc()
    else:
        # In the caller's own context: the transaction may have had the writes of other callers, too.
        audit.record(
            "stock set",
            target=f"product {write.product_id}",
            before=None if change.before is None else {"stock": change.before},
            after={"stock": in_force.quantity, "product_version": in_force.product_version},
        )
    return in_force


async def add_stock(deps: Deps, movement: Movement) -> int:
    """Book the movement, unless it has been booked before; return the product's stock now.

    Raises MovementMismatch, StockOutOfRange, DeadlineExceeded, Unavailable.
    """
    for _ in range(MAX_ATTEMPTS):
        booking = await deps.stock.book(movement)
        metrics.movements[booking.outcome].inc()
        if booking.outcome is Outcome.MISMATCH:
            raise MovementMismatch(movement.id)
        if booking.outcome is Outcome.REJECTED:
            raise StockOutOfRange(movement, booking.quantity)
        if booking.outcome is Outcome.DONE:
            audit.record(
                "stock moved",
                target=f"product {movement.product_id}",
                before={"stock": booking.quantity - movement.delta},
                after={"stock": booking.quantity, "movement": str(movement.id)},
            )
        if booking.outcome is not Outcome.ROW_DELETED:
            return booking.quantity
    raise Unavailable(f"movement {movement.id} was deleted while it was being decided")


async def get_stock(deps: Deps, product_ids: Sequence[UUID]) -> list[int | None]:
    """Return the stock of each product, in the order of the ids; None for an unknown product.

    Raises DeadlineExceeded, Unavailable.
    """
    return await deps.batcher.stock_reads(product_ids)


async def list_reservations(deps: Deps, after: UUID | None, limit: int) -> list[StoredReservation]:
    """Return a page of reservations in order of id, beginning after the id `after`.

    Raises DeadlineExceeded, Unavailable.
    """
    return await deps.reservations.list_page(after, limit)


async def delete_expired(deps: Deps, retention: Retention) -> float:
    """Delete one batch of reservations whose cancellation has expired; return the seconds until the next pass."""
    count = await deps.reservations.delete_cancelled(retention.cancelled_days, retention.batch_size)
    metrics.RESERVATIONS_DELETED.inc(count)
    # A pause between two full batches leaves the disk to the other transactions.
    return retention.interval_seconds if count < retention.batch_size else 0.05


def _check_capacity(deps: Deps) -> None:
    if deps.batcher.reservations.pending > deps.max_pending:
        raise Overloaded("too many reservations are pending")
