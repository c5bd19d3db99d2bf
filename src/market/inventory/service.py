"""The use cases of inventory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from market.inventory import metrics
from market.inventory.batching.transactions import MAX_ATTEMPTS, TransactionBatcher
from market.inventory.config import Retention
from market.inventory.domain import (
    Delivery,
    DeliveryResult,
    Movement,
    MovementMismatch,
    Outcome,
    Reservation,
    Shortages,
    StockChange,
    StockOutOfRange,
    StockWrite,
    StoredReservation,
)
from market.inventory.store import ReservationRepository, StockRepository
from market.kit.auth import audit
from market.kit.errors import Overloaded, Unavailable


@dataclass(frozen=True)
class Deps:
    """The dependencies of the use cases. `max_pending`: how many reservations may wait for a transaction."""

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
    """Cancel the reservation, even if it has not arrived yet; return whether units returned to stock.

    Raises DeadlineExceeded, Unavailable.
    """
    released = await deps.batcher.cancellations(reservation_id)
    metrics.cancellations[released].inc()
    return released


async def set_stock(deps: Deps, write: StockWrite) -> StockChange:
    """Replace the units that are free to sell, unless a newer version of the product has set them. Deliveries of later
    versions are kept.

    Return the stock before and what is in force afterwards. Raises DeadlineExceeded, Unavailable.
    """
    change = await deps.batcher.stock_writes(write)
    in_force = change.in_force
    if change.applied:
        # Recorded here, in the caller's context, because the transaction may contain writes of other callers, too.
        audit.record(
            "stock set",
            target=f"product {write.product_id}",
            before=None if change.before is None else {"stock": change.before},
            after={"stock": in_force.quantity, "product_version": in_force.product_version},
        )
    elif write.product_version is not None and in_force.product_version > write.product_version:
        metrics.STOCK_WRITES_SUPERSEDED.inc()
    return change


async def add_delivery(deps: Deps, delivery: Delivery) -> DeliveryResult:
    """Add the units of the delivery to the stock, once for each id of the product; return the outcome.

    Nothing is added if a newer version of the product has set the stock (SUPERSEDED), if the stock would be larger than
    MAX_STOCK (REJECTED), or if the id has been used for another quantity (MISMATCH). Raises DeadlineExceeded,
    Unavailable; the delivery may be repeated, with any version.
    """
    result = await deps.stock.add_delivery(delivery)
    metrics.deliveries[result.outcome].inc()
    if result.outcome is Outcome.DONE:
        audit.record(
            "delivery added",
            target=f"product {delivery.product_id}",
            before={"stock": result.in_force.quantity - delivery.quantity},
            after={
                "stock": result.in_force.quantity,
                "product_version": result.in_force.product_version,
                "delivery": str(delivery.id),
            },
        )
    return result


async def check_delivery(deps: Deps, delivery: Delivery) -> DeliveryResult:
    """Return what the outcome of the delivery would be now if its version were the newest. Raises as `add_delivery`."""
    return await deps.stock.add_delivery(delivery, check_only=True)


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


async def get_stock(deps: Deps, product_ids: Sequence[str]) -> list[int | None]:
    """Return the stock of each product, in the order of the ids; None for an unknown product.

    product_ids: UUIDs in lower case. Raises DeadlineExceeded, Unavailable.
    """
    return await deps.batcher.stock_reads(product_ids)


async def list_reservations(deps: Deps, after: UUID | None, limit: int) -> list[StoredReservation]:
    """Return a page of reservations by ascending id, starting after the id `after`.

    Raises DeadlineExceeded, Unavailable.
    """
    return await deps.reservations.list_page(after, limit)


async def delete_expired(deps: Deps, retention: Retention) -> float:
    """Delete one batch of reservations whose cancellation has expired, and one of deliveries; return the seconds until
    the next pass."""
    reservations = await deps.reservations.delete_cancelled(retention.cancelled_days, retention.batch_size)
    metrics.RESERVATIONS_DELETED.inc(reservations)
    deliveries = await deps.stock.delete_deliveries(retention.deliveries_days, retention.batch_size)
    metrics.DELIVERIES_DELETED.inc(deliveries)
    # A pause between two full batches leaves the disk to the other transactions.
    return retention.interval_seconds if max(reservations, deliveries) < retention.batch_size else 0.05


def _check_capacity(deps: Deps) -> None:
    if deps.batcher.reservations.pending > deps.max_pending:
        raise Overloaded("too many reservations are pending")
