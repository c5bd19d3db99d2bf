"""All SQL of inventory. The functions that write reservations are in migrations/."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import asyncpg
from msgspec import Struct

from market.inventory import metrics
from market.inventory.domain import (
    MAX_PAGE_LINES,
    MAX_STOCK,
    Delivery,
    DeliveryResult,
    Movement,
    Outcome,
    Reservation,
    Shortage,
    Shortages,
    StockChange,
    StockInForce,
    StockWrite,
    StoredReservation,
)
from market.kit import context
from market.kit.errors import Unavailable
from market.kit.faults import Faults
from market.kit.postgres import CONNECTION_ERRORS
from market.kit.process import logs
from market.kit.resilience import backoff

if TYPE_CHECKING:
    from market.kit.postgres import Connection, Pool

T = TypeVar("T")
log = logs.get_logger("inventory")

# Attempts of a transaction that PostgreSQL aborts because of a deadlock with a client outside the service.
MAX_ATTEMPTS = 8


class Database:
    """Runs each transaction within its deadline, and maps the driver's errors to the kit's.

    timeout_seconds: the limit of one transaction, unless the caller's deadline is earlier.
    """

    def __init__(self, pool: Pool, *, timeout_seconds: float, faults: Faults | None = None) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._faults = faults

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, inside: str = "", after: str = "") -> T:
        """Return the result of `work`, which executes one statement, after its transaction is committed.

        `inside` and `after` name failure points before and after the commit. A transaction that PostgreSQL aborted is
        repeated. Raises DeadlineExceeded or Unavailable; whether the transaction was committed is then unknown, and the
        caller may repeat it with the same id.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            seconds = context.require_remaining(self._timeout_seconds)
            try:
                async with asyncio.timeout(seconds), self._pool.acquire() as conn:
                    if self._faults is None:
                        return await work(conn)
                    return await self._run_with_failure_points(conn, work, self._faults, inside, after)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as e:
                metrics.TRANSACTION_RETRIES.labels(e.sqlstate).inc()
                await asyncio.sleep(backoff(attempt, base_seconds=0.005, max_seconds=0.1))
            except CONNECTION_ERRORS as e:
                raise Unavailable("the database is unavailable") from e
            except asyncpg.PostgresError as e:
                log.warning("statement failed", sqlstate=e.sqlstate, error=str(e)[:500])
                raise Unavailable("the database reported an error") from e
        raise Unavailable(f"the transaction was aborted {MAX_ATTEMPTS} times")

    @staticmethod
    async def _run_with_failure_points(
        conn: Connection, work: Callable[[Connection], Awaitable[T]], faults: Faults, inside: str, after: str
    ) -> T:
        # An explicit transaction, so that there is a moment between the statement and its commit.
        async with conn.transaction():
            result = await work(conn)
            if inside:
                await faults.fire_if_armed(inside)
        if after:
            await faults.fire_if_armed(after)
        return result


class Booking(Struct, frozen=True):
    """The outcome of a movement, and the product's stock now."""

    outcome: Outcome
    quantity: int


class StockRepository:
    """The units of each product that are free to sell (table inventory), and the movements and deliveries that changed
    them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_many(self, writes: Sequence[StockWrite]) -> list[StockChange]:
        """Apply the writes one after another, creating rows that are missing; return what each has changed.

        Those of the same product are applied in the order of the list. Raises Unavailable.
        """
        # Sorted, so that two transactions cannot deadlock.
        order = sorted(range(len(writes)), key=lambda n: writes[n].product_id)
        row = await self._database.run(
            lambda conn: conn.fetchrow(
                # The subquery reads the snapshot of this statement, which does not contain the changes of the function.
                """
                SELECT *, ARRAY(
                    SELECT i.quantity
                    FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, n) LEFT JOIN inventory i ON i.product_id = u.id
                    ORDER BY u.n
                ) AS before
                FROM write_stock_many($1, $2, $3)
                """,
                [writes[n].product_id for n in order],
                [writes[n].quantity for n in order],
                [writes[n].product_version for n in order],
            )
        )
        assert row is not None
        changes: dict[int, StockChange] = {}
        # The stock that the writes of this call have left so far, by product.
        left: dict[UUID, int] = {}
        columns = (row["quantities"], row["in_force"], row["applied"], row["before"])
        for n, quantity, version, applied, before in zip(order, *columns, strict=True):
            product_id = writes[n].product_id
            in_force = StockInForce(min(quantity, MAX_STOCK), version)
            changes[n] = StockChange(left.get(product_id, before), in_force, applied)
            left[product_id] = quantity
        return [changes[n] for n in range(len(writes))]

    async def get_quantities(self, product_ids: Sequence[str]) -> list[int | None]:
        """Return the stock of each product, in the order of the ids; None for an unknown product.

        product_ids: UUIDs in their canonical form. Raises Unavailable.
        """
        # The ids are one text, and the quantities one array: for the driver, an id or a record each costs more than all
        # the rest.
        quantities: list[int | None] | None = await self._database.run(
            lambda conn: conn.fetchval(
                """
                SELECT array_agg(CASE WHEN i.quantity > $2::bigint THEN $2 ELSE i.quantity END ORDER BY u.n)
                FROM unnest(string_to_array($1, ',')::uuid[]) WITH ORDINALITY AS u (id, n)
                    LEFT JOIN inventory i ON i.product_id = u.id
                """,
                ",".join(product_ids),
                MAX_STOCK,
            )
        )
        return quantities or []

    async def book(self, movement: Movement) -> Booking:
        """Add the movement's delta to the stock, unless the movement has been booked before. Raises Unavailable."""
        row = await self._database.run(
            lambda conn: conn.fetchrow(
                "SELECT * FROM add_stock($1, $2, $3, $4)", movement.id, movement.product_id, movement.delta, MAX_STOCK
            )
        )
        assert row is not None
        return Booking(Outcome(row["outcome"]), min(row["available"] or 0, MAX_STOCK))

    async def add_delivery(self, delivery: Delivery, *, check_only: bool = False) -> DeliveryResult:
        """Add the units to the stock, unless the delivery has been added before or belongs to an older version.

        check_only: change nothing; return what would happen if no newer version had set the stock. Raises Unavailable.
        """
        version = None if check_only else delivery.product_version
        row = await self._database.run(
            lambda conn: conn.fetchrow(
                "SELECT * FROM add_delivery($1, $2, $3, $4, $5)",
                delivery.id,
                delivery.product_id,
                delivery.quantity,
                version,
                MAX_STOCK,
            )
        )
        assert row is not None
        in_force = StockInForce(min(row["available"], MAX_STOCK), row["in_force"])
        return DeliveryResult(Outcome(row["outcome"]), in_force)

    async def delete_deliveries(self, days: float, limit: int) -> int:
        """Delete up to `limit` deliveries that were added more than `days` ago, oldest first; return how many.

        Raises Unavailable.
        """
        status = await self._database.run(
            lambda conn: conn.execute(
                """
                DELETE FROM deliveries WHERE (product_id, id) IN (
                    SELECT product_id, id FROM deliveries
                    WHERE created_at < now() - make_interval(secs => $1 * 86400.0)
                    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
                )
                """,
                days,
                limit,
            )
        )
        return int(status.rpartition(" ")[2])


class Decision(Struct, frozen=True, gc=False):
    """The outcome of a reservation. `shortages`: empty unless it is REJECTED."""

    outcome: Outcome
    shortages: Shortages


class Cancellations(Struct, frozen=True):
    """`released`: the reservations whose units returned to stock.

    `deleted`: those whose rows were deleted between two statements, to be tried again.
    """

    released: set[UUID]
    deleted: set[UUID]


_OUTCOMES = tuple(Outcome)
_DONE = Decision(Outcome.DONE, [])


class ReservationRepository:
    """The units that orders have reserved (table reservations). Reserving and cancelling change the stock, too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take the units of every line from the stock, or none. Raises Unavailable."""
        row = await self._database.run(
            lambda conn: conn.fetchrow(
                "SELECT * FROM reserve($1, $2, $3)", reservation.id, reservation.product_ids, reservation.quantities
            ),
            inside="inventory.inside-reserve",
            after="inventory.after-commit",
        )
        assert row is not None
        shortages = [
            Shortage(reservation.product_ids[line - 1], reservation.quantities[line - 1], min(available, MAX_STOCK))
            for line, available in zip(row["short_lines"] or (), row["short_left"] or (), strict=True)
        ]
        return Decision(Outcome(row["outcome"]), shortages)

    async def reserve_many(self, reservations: Sequence[Reservation]) -> list[Decision]:
        """Decide the reservations one after another in one transaction, each all or nothing on its own.

        Their ids must be distinct. Raises Unavailable.
        """
        products = sorted({p for r in reservations for p in r.product_ids})
        index = {p: n for n, p in enumerate(products, 1)}
        firsts: list[int] = []
        lasts: list[int] = []
        line_products: list[UUID] = []
        quantities: list[int] = []
        for r in reservations:
            firsts.append(len(line_products) + 1)
            line_products += r.product_ids
            quantities += r.quantities
            lasts.append(len(line_products))
        row = await self._database.run(
            lambda conn: conn.fetchrow(
                "SELECT * FROM reserve_many($1, $2, $3, $4, $5, $6, $7)",
                [r.id for r in reservations],
                firsts,
                lasts,
                line_products,
                quantities,
                [index[p] for p in line_products],
                products,
            ),
            inside="inventory.inside-reserve",
            after="inventory.after-commit",
        )
        assert row is not None
        outcomes = row["outcomes"]
        if not row["short_lines"]:
            return [_DONE if o == 1 else Decision(_OUTCOMES[o], []) for o in outcomes]
        available = dict(zip(row["short_lines"], row["short_left"], strict=True))
        return [
            Decision(
                _OUTCOMES[outcome],
                [
                    Shortage(line_products[n - 1], quantities[n - 1], min(available[n], MAX_STOCK))
                    for n in range(first, last + 1)
                    if n in available
                ],
            )
            for outcome, first, last in zip(outcomes, firsts, lasts, strict=True)
        ]

    async def cancel_many(self, reservation_ids: Sequence[UUID]) -> Cancellations:
        """Return the units of the reservations to stock, and make all the ids unusable. The ids must be distinct.

        Raises Unavailable.
        """
        row = await self._database.run(
            lambda conn: conn.fetchrow("SELECT * FROM cancel_many($1)", reservation_ids),
            inside="inventory.inside-cancel",
            after="inventory.after-cancel",
        )
        assert row is not None
        return Cancellations(set(row["released"] or ()), set(row["gone"] or ()))

    async def list_page(self, after: UUID | None, limit: int) -> list[StoredReservation]:
        """Return up to `limit` reservations by ascending id, starting after the id `after`.

        A page with very many lines ends early, but has at least one reservation. Raises Unavailable.
        """
        rows = await self._database.run(
            lambda conn: conn.fetch(
                """
                SELECT id, status, product_ids, quantities, created_at
                FROM (
                    SELECT *,
                        sum(cardinality(product_ids)) OVER (ORDER BY id) - cardinality(product_ids) AS lines_before
                    FROM (SELECT * FROM reservations WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2) AS page
                ) AS counted
                WHERE lines_before < $3 ORDER BY id
                """,
                after,
                limit,
                MAX_PAGE_LINES,
            )
        )
        return [
            StoredReservation(
                Reservation(row["id"], row["product_ids"], row["quantities"]), row["status"], row["created_at"]
            )
            for row in rows
        ]

    async def delete_cancelled(self, days: float, limit: int) -> int:
        """Delete up to `limit` reservations that were cancelled more than `days` ago, oldest first; return how many.

        Raises Unavailable.
        """
        # SKIP LOCKED: another pod may be deleting the same rows, and no cancellation should have to wait for this.
        status = await self._database.run(
            lambda conn: conn.execute(
                """
                DELETE FROM reservations WHERE id IN (
                    SELECT id FROM reservations
                    WHERE status = 'cancelled' AND cancelled_at < now() - make_interval(secs => $1 * 86400.0)
                    ORDER BY cancelled_at LIMIT $2 FOR UPDATE SKIP LOCKED
                )
                """,
                days,
                limit,
            )
        )
        return int(status.rpartition(" ")[2])
