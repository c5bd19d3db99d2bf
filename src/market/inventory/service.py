"""The use cases of inventory. What arrives from all callers at once is gathered into one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import asyncpg
from prometheus_client import Counter

from market.inventory import store
from market.inventory.config import Gathering, Retention
from market.inventory.domain import (
    Movement,
    OtherLines,
    OtherMovement,
    Outcome,
    Reservation,
    ReservationCancelled,
    Shortages,
    StockOutOfRange,
)
from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import DeadlineExceeded, Overloaded, Unavailable
from market.kit.faults import Faults
from market.kit.postgres import CONNECTION_ERRORS
from market.kit.process import logs
from market.kit.resilience import backoff

if TYPE_CHECKING:
    from market.kit.postgres import Connection, Pool

T = TypeVar("T")
log = logs.get_logger("inventory")

RESERVATIONS = Counter("market_inventory_reservations_total", "Reservations decided.", ["outcome"])
STOCK_OUTS = Counter("market_inventory_stock_outs_total", "Lines that could not be taken.")
CANCELLATIONS = Counter("market_inventory_cancellations_total", "Cancellations.", ["released"])
MOVEMENTS = Counter("market_inventory_movements_total", "Deliveries and losses.", ["outcome"])
RETRIED = Counter("market_inventory_retried_total", "Transactions made again inside.", ["sqlstate"])
FORGOTTEN = Counter("market_inventory_forgotten_total", "Cancelled reservations deleted by retention.")

# Transactions made again after a deadlock; asks after a row that went away.
ATTEMPTS = 8
# Lines in one transaction, so that none holds up everybody for long.
MOST_LINES = 4096

_decided = {outcome: RESERVATIONS.labels(outcome.name.lower()) for outcome in Outcome}
_booked = {outcome: MOVEMENTS.labels(outcome.name.lower()) for outcome in Outcome}
_released = {released: CANCELLATIONS.labels(str(released).lower()) for released in (True, False)}


class Inventory:
    """Owns the queues in front of the database."""

    def __init__(
        self,
        db: Pool,
        *,
        timeout: float,
        gathering: Gathering | None = None,
        max_waiting: int = 16_384,
        faults: Faults | None = None,
    ) -> None:
        gathering = gathering or Gathering()
        self._db = db
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._faults = faults
        self._reserve: Batcher[Reservation, Shortages] = Batcher(
            self._decide,
            max_batch_size=gathering.most,
            max_concurrency=gathering.under_way,
            name="inventory.reserve",
            cost=lambda r: len(r.product_ids),
            max_cost=MOST_LINES,
        )
        self._cancel: Batcher[UUID, bool] = Batcher(
            self._release, max_batch_size=gathering.most, name="inventory.cancel"
        )
        # One at a time: of two stock-takes of a product the later one counts.
        self._set: Batcher[tuple[UUID, int], None] = Batcher(self._replace, max_batch_size=1024, name="inventory.set")
        self._look: Batcher[Sequence[UUID], list[int | None]] = Batcher(
            self._read, max_batch_size=32, max_concurrency=4, name="inventory.look"
        )

    async def reserve(self, wanted: Reservation) -> Shortages:
        """What is short; nothing: all was taken. Raises OtherLines, ReservationCancelled, Unavailable."""
        self._make_room()
        return await self._reserve(wanted)

    async def reserve_many(self, wanted: Sequence[Reservation]) -> list[Shortages | BaseException]:
        """For each reservation what `reserve` answers or raises."""
        self._make_room()
        return await self._reserve.map_settled(wanted)

    async def cancel(self, id: UUID) -> bool:
        """Whether something was given back. An id never seen is remembered as cancelled."""
        released = await self._cancel(id)
        _released[released].inc()
        return released

    async def set_stock(self, product_id: UUID, quantity: int) -> int:
        """Replaces what is free to sell."""
        await self._set((product_id, quantity))
        return quantity

    async def add_stock(self, movement: Movement) -> int:
        """Books it once, and answers the quantity now. Raises OtherMovement, StockOutOfRange."""
        for _ in range(ATTEMPTS):
            outcome, quantity = await self._transaction(lambda conn: store.add_stock(conn, movement))
            _booked[outcome].inc()
            if outcome is Outcome.DIFFERS:
                raise OtherMovement(movement.id)
            if outcome is Outcome.REFUSED:
                raise StockOutOfRange(movement, quantity)
            if outcome is not Outcome.GONE:
                return quantity
        raise Unavailable("the movement's row keeps going away")

    async def stock(self, product_ids: Sequence[UUID]) -> list[int | None]:
        """The quantity of each product asked for, in that order; None: never heard of."""
        return await self._look(product_ids)

    async def read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """The result of one read of the store. Raises Unavailable."""
        return await self._transaction(work)

    async def forget_cancelled(self, retention: Retention) -> float:
        """Deletes one batch of what was cancelled long ago; answers the seconds until the next."""
        count = await self._transaction(
            lambda conn: store.forget_cancelled(conn, retention.cancelled_days, retention.batch)
        )
        FORGOTTEN.inc(count)
        # A pause, so that the shop has the disk in between.
        return retention.every_seconds if count < retention.batch else 0.05

    def _make_room(self) -> None:
        if self._reserve.pending > self._max_waiting:
            raise Overloaded("too many reservations wait")

    async def _decide(self, batch: list[Reservation]) -> list[Shortages | BaseException]:
        """Each id goes out once at a time: the same reservation again rides along, one with other lines waits for the next turn."""
        answers: list[Shortages | BaseException | None] = [None] * len(batch)
        waiting = list(range(len(batch)))
        gone = 0
        while waiting:
            turn: dict[UUID, Reservation] = {}
            for n in waiting:
                turn.setdefault(batch[n].id, batch[n])
            decided = await self._ask(list(turn.values()))
            later = []
            for n in waiting:
                wanted = batch[n]
                asked = turn[wanted.id]
                if asked is not wanted and asked != wanted:
                    later.append(n)
                    continue
                answer = decided[wanted.id]
                if answer is None and (gone := gone + 1) <= ATTEMPTS:
                    later.append(n)
                else:
                    answers[n] = answer if answer is not None else Unavailable("the reservation's row keeps going away")
            waiting = later
        return answers  # type: ignore[return-value]

    async def _ask(self, wanted: list[Reservation]) -> dict[UUID, Shortages | BaseException | None]:
        """Each id's answer; None: ask again. Distinct ids."""
        answers: dict[UUID, Shortages | BaseException | None] = {}
        for r, (outcome, shortages) in zip(wanted, await self._take(wanted), strict=True):
            _decided[outcome].inc()
            if outcome is Outcome.DONE or outcome is Outcome.REPEATED:
                answers[r.id] = shortages
            elif outcome is Outcome.REFUSED:
                STOCK_OUTS.inc(len(shortages))
                answers[r.id] = shortages
            elif outcome is Outcome.DIFFERS:
                answers[r.id] = OtherLines(r.id)
            elif outcome is Outcome.CANCELLED:
                answers[r.id] = ReservationCancelled(r.id)
            else:
                answers[r.id] = None
        return answers

    async def _take(self, wanted: list[Reservation]) -> list[store.Decided]:
        async def take(conn: Connection) -> list[store.Decided]:
            if len(wanted) == 1:
                return [await store.reserve(conn, wanted[0])]
            return await store.reserve_many(conn, wanted)

        return await self._transaction(take, inside="inventory.inside-reserve", after="inventory.after-commit")

    async def _release(self, ids: list[UUID]) -> list[bool | BaseException]:
        released: set[UUID] = set()
        waiting = set(ids)
        for _ in range(ATTEMPTS):
            asked = sorted(waiting)
            done, waiting = await self._transaction(
                lambda conn, asked=asked: store.cancel_many(conn, asked),  # type: ignore[misc]
                inside="inventory.inside-cancel",
                after="inventory.after-cancel",
            )
            released |= done
            if not waiting:
                break
        answers: list[bool | BaseException] = []
        for id in ids:
            answers.append(Unavailable("the reservation's row keeps going away") if id in waiting else id in released)
            # The same id twice: the goods are given back once.
            released.discard(id)
        return answers

    async def _replace(self, wanted: list[tuple[UUID, int]]) -> list[BaseException | None]:
        await self._transaction(lambda conn: store.set_stock(conn, dict(wanted)))
        return [None] * len(wanted)

    async def _read(self, asked: list[Sequence[UUID]]) -> list[list[int | None] | BaseException]:
        everything = asked[0] if len(asked) == 1 else [id for ids in asked for id in ids]
        quantities = await self._transaction(lambda conn: store.stock(conn, everything))
        answers: list[list[int | None] | BaseException] = []
        start = 0
        for ids in asked:
            answers.append(quantities[start : start + len(ids)])
            start += len(ids)
        return answers

    async def _transaction(self, work: Callable[[Connection], Awaitable[T]], *, inside: str = "", after: str = "") -> T:
        """The work's result once it is committed. A deadlock is nobody's answer: it is tried again.

        Whatever else the database says leaves open what happened: Unavailable, and the caller asks again with the same id.
        """
        for attempt in range(1, ATTEMPTS + 1):
            left = context.remaining(self._timeout)
            if left <= 0:
                raise DeadlineExceeded("the caller's time is over")
            try:
                async with asyncio.timeout(left), self._db.acquire() as conn:
                    if self._faults is None:
                        return await work(conn)
                    return await self._with_failure_points(conn, work, inside, after)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as e:
                RETRIED.labels(e.sqlstate).inc()
                await asyncio.sleep(backoff(attempt, base=0.005, max_seconds=0.1))
            except CONNECTION_ERRORS as e:
                raise Unavailable("the database does not answer") from e
            except asyncpg.PostgresError as e:
                log.warning("the database refused", sqlstate=e.sqlstate, error=str(e)[:500])
                raise Unavailable("the database refused") from e
        raise Unavailable("the database gave up on it too often")

    async def _with_failure_points(
        self, conn: Connection, work: Callable[[Connection], Awaitable[T]], inside: str, after: str
    ) -> T:
        assert self._faults is not None
        # A transaction of several statements, so that there is an inside to die in.
        async with conn.transaction():
            result = await work(conn)
            if inside:
                await self._faults.reach(inside)
        if after:
            await self._faults.reach(after)
        return result
