"""Concurrent calls share transactions: calls that arrive while one is in flight go into the next (kit/batching.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from uuid import UUID

from market.inventory import metrics
from market.inventory.config import Batching
from market.inventory.domain import (
    Outcome,
    Reservation,
    ReservationCancelled,
    ReservationMismatch,
    Shortages,
    StockChange,
    StockWrite,
)
from market.inventory.store import Decision, ReservationRepository, StockRepository
from market.kit.batching import Batcher, BatcherBySize
from market.kit.errors import Unavailable

# Lines in one transaction.
MAX_BATCH_LINES = 4096
# Larger reservations have transactions of their own, with at most this many lines, so that others do not wait for them.
SMALL_RESERVATION_LINES = 100
MAX_LARGE_BATCH_LINES = 1000
# Product ids in one query of the stock, before duplicates are removed.
MAX_BATCH_IDS = 8192
# Attempts of a reservation whose row was deleted by retention in the middle of the transaction.
MAX_ATTEMPTS = 8


class TransactionBatcher:
    """Batches the calls of all callers into few transactions. Owns one queue for each kind of call.

    reservations: takes a Reservation, returns its Shortages. Raises ReservationMismatch, ReservationCancelled.
    cancellations: takes a reservation id, returns whether units were released.
    stock_writes: takes a StockWrite, returns its StockChange.
    stock_reads: takes product ids in lower case, returns their quantities in the same order; None for an unknown
        product.

    All raise DeadlineExceeded and Unavailable.
    """

    def __init__(
        self, stock: StockRepository, reservations: ReservationRepository, settings: Batching | None = None
    ) -> None:
        settings = settings or Batching()
        self._stock = stock
        self._reservations = reservations
        self.reservations: BatcherBySize[Reservation, Shortages] = BatcherBySize(
            self.reserve_batch,
            name="inventory.reserve",
            max_batch_size=settings.max_batch_size,
            max_concurrency=settings.max_concurrency,
            cost=lambda r: len(r.product_ids),
            small_cost=SMALL_RESERVATION_LINES,
            max_cost=MAX_BATCH_LINES,
            max_large_cost=MAX_LARGE_BATCH_LINES,
        )
        self.cancellations: Batcher[UUID, bool] = Batcher(
            self._cancel_batch, name="inventory.cancel", max_batch_size=settings.max_batch_size
        )
        # One transaction at a time, so that the last of several writes to a product wins.
        self.stock_writes: Batcher[StockWrite, StockChange] = Batcher(
            self._write_batch, name="inventory.set-stock", max_batch_size=1024
        )
        self.stock_reads: Batcher[Sequence[str], list[int | None]] = Batcher(
            self._read_batch,
            name="inventory.get-stock",
            max_batch_size=64,
            # One query at a time: PostgreSQL responds faster than gRPC delivers calls, so with more concurrency each
            # batch would have one call.
            max_concurrency=1,
            cost=len,
            max_cost=MAX_BATCH_IDS,
        )

    async def reserve_batch(self, batch: list[Reservation]) -> list[Shortages | BaseException]:
        """Decide the reservations in rounds; return the shortages or the exception of each.

        A round contains each id once. An equal reservation with the same id shares the result; one with other lines is
        decided in a later round.
        """
        results: list[Shortages | BaseException | None] = [None] * len(batch)
        undecided = list(range(len(batch)))
        retries = 0
        while undecided:
            round_: dict[UUID, Reservation] = {}
            for n in undecided:
                round_.setdefault(batch[n].id, batch[n])
            decided = await self._decide(list(round_.values()))
            later = []
            for n in undecided:
                reservation = batch[n]
                first = round_[reservation.id]
                if first is not reservation and first != reservation:
                    later.append(n)
                    continue
                result = decided[reservation.id]
                if result is None and (retries := retries + 1) <= MAX_ATTEMPTS:
                    later.append(n)
                else:
                    results[n] = result if result is not None else _row_deleted(reservation.id)
            undecided = later
        return results  # type: ignore[return-value]

    async def _decide(self, reservations: list[Reservation]) -> dict[UUID, Shortages | BaseException | None]:
        """Return the result of each reservation by id; None: its row was deleted, try again. The ids are distinct."""
        results: dict[UUID, Shortages | BaseException | None] = {}
        decisions: list[Decision]
        if len(reservations) == 1:
            decisions = [await self._reservations.reserve(reservations[0])]
        else:
            decisions = await self._reservations.reserve_many(reservations)
        for r, decision in zip(reservations, decisions, strict=True):
            outcome = decision.outcome
            metrics.reservations[outcome].inc()
            if outcome is Outcome.DONE or outcome is Outcome.REPEATED:
                results[r.id] = decision.shortages
            elif outcome is Outcome.REJECTED:
                metrics.SHORTAGES.inc(len(decision.shortages))
                results[r.id] = decision.shortages
            elif outcome is Outcome.MISMATCH:
                results[r.id] = ReservationMismatch(r.id)
            elif outcome is Outcome.CANCELLED:
                results[r.id] = ReservationCancelled(r.id)
            else:
                results[r.id] = None
        return results

    async def _cancel_batch(self, reservation_ids: list[UUID]) -> list[bool | BaseException]:
        released: set[UUID] = set()
        undecided = set(reservation_ids)
        for _ in range(MAX_ATTEMPTS):
            cancelled = await self._reservations.cancel_many(sorted(undecided))
            released |= cancelled.released
            undecided = cancelled.deleted
            if not undecided:
                break
        results: list[bool | BaseException] = []
        for reservation_id in reservation_ids:
            results.append(_row_deleted(reservation_id) if reservation_id in undecided else reservation_id in released)
            # A second call with the same id has released nothing.
            released.discard(reservation_id)
        return results

    async def _write_batch(self, batch: list[StockWrite]) -> list[StockChange | BaseException]:
        return [*await self._stock.set_many(batch)]

    async def _read_batch(self, batch: list[Sequence[str]]) -> list[list[int | None] | BaseException]:
        # Concurrent callers often request the same products; each is read once.
        product_ids = list(dict.fromkeys(chain.from_iterable(batch)))
        quantities = dict(zip(product_ids, await self._stock.get_quantities(product_ids), strict=True))
        return [list(map(quantities.__getitem__, ids)) for ids in batch]


def _row_deleted(reservation_id: UUID) -> Unavailable:
    return Unavailable(f"reservation {reservation_id} was deleted while it was being decided")
