"""All SQL of inventory. The functions that write reservations are in migrations/.

Each call is one statement and so one transaction, unless the caller opened one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from market.inventory.domain import MAX_PAGE_LINES, MAX_STOCK, Kept, Movement, Outcome, Reservation, Shortage, Shortages

if TYPE_CHECKING:
    from market.kit.postgres import Connection

Decided = tuple[Outcome, Shortages]


async def reserve(conn: Connection, wanted: Reservation) -> Decided:
    """Takes all lines or none."""
    row = await conn.fetchrow("SELECT * FROM reserve($1, $2, $3)", wanted.id, wanted.product_ids, wanted.quantities)
    assert row is not None
    shortages = [
        Shortage(wanted.product_ids[line - 1], wanted.quantities[line - 1], min(left, MAX_STOCK))
        for line, left in zip(row["short_lines"] or (), row["short_left"] or (), strict=True)
    ]
    return Outcome(row["outcome"]), shortages


_OUTCOMES = tuple(Outcome)
_TAKEN: Decided = (Outcome.DONE, [])


async def reserve_many(conn: Connection, wanted: Sequence[Reservation]) -> list[Decided]:
    """Decides the reservations in turn, each all or nothing on its own. Their ids must be distinct."""
    products = sorted({p for r in wanted for p in r.product_ids})
    index = {p: n for n, p in enumerate(products, 1)}
    firsts: list[int] = []
    lasts: list[int] = []
    line_products: list[UUID] = []
    quantities: list[int] = []
    for r in wanted:
        firsts.append(len(line_products) + 1)
        line_products += r.product_ids
        quantities += r.quantities
        lasts.append(len(line_products))
    row = await conn.fetchrow(
        "SELECT * FROM reserve_many($1, $2, $3, $4, $5, $6, $7)",
        [r.id for r in wanted],
        firsts,
        lasts,
        line_products,
        quantities,
        [index[p] for p in line_products],
        products,
    )
    assert row is not None
    outcomes = row["outcomes"]
    if not row["short_lines"]:
        return [_TAKEN if o == 1 else (_OUTCOMES[o], []) for o in outcomes]
    left = dict(zip(row["short_lines"], row["short_left"], strict=True))
    return [
        (
            _OUTCOMES[outcome],
            [
                Shortage(line_products[n - 1], quantities[n - 1], min(left[n], MAX_STOCK))
                for n in range(first, last + 1)
                if n in left
            ],
        )
        for outcome, first, last in zip(outcomes, firsts, lasts, strict=True)
    ]


async def cancel_many(conn: Connection, ids: Sequence[UUID]) -> tuple[set[UUID], set[UUID]]:
    """The ids that something was given back for, and those whose rows went away meanwhile: ask again."""
    row = await conn.fetchrow("SELECT * FROM cancel_many($1)", ids)
    assert row is not None
    return set(row["released"] or ()), set(row["gone"] or ())


async def set_stock(conn: Connection, quantities: dict[UUID, int]) -> None:
    """Replaces what is free to sell, making rows where there are none."""
    # Sorted, so that two of them cannot deadlock.
    await conn.execute(
        """
        INSERT INTO inventory (product_id, quantity) SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS u (id, quantity) ORDER BY id
        ON CONFLICT (product_id) DO UPDATE SET quantity = excluded.quantity
        """,
        list(quantities),
        list(quantities.values()),
    )


async def add_stock(conn: Connection, movement: Movement) -> tuple[Outcome, int]:
    """What became of it, and the quantity now."""
    row = await conn.fetchrow(
        "SELECT * FROM add_stock($1, $2, $3, $4)", movement.id, movement.product_id, movement.delta, MAX_STOCK
    )
    assert row is not None
    return Outcome(row["outcome"]), min(row["available"] or 0, MAX_STOCK)


async def stock(conn: Connection, product_ids: Sequence[UUID]) -> list[int | None]:
    """The quantity of each product asked for, in that order; None where there is no row."""
    # One array instead of a thousand records: half of the time goes into making them.
    quantities: list[int | None] | None = await conn.fetchval(
        """
        SELECT array_agg(CASE WHEN i.quantity > $2::bigint THEN $2 ELSE i.quantity END ORDER BY u.n)
        FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, n) LEFT JOIN inventory i ON i.product_id = u.id
        """,
        product_ids,
        MAX_STOCK,
    )
    return quantities or []


async def reservations(conn: Connection, after: UUID | None, limit: int) -> list[Kept]:
    """Up to `limit` in order of id, from the first above `after`; fewer where their lines are very many, but at least one."""
    rows = await conn.fetch(
        """
        SELECT id, status, product_ids, quantities, created_at
        FROM (
            SELECT *, sum(cardinality(product_ids)) OVER (ORDER BY id) - cardinality(product_ids) AS lines_before
            FROM (SELECT * FROM reservations WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2) AS page
        ) AS counted
        WHERE lines_before < $3 ORDER BY id
        """,
        after,
        limit,
        MAX_PAGE_LINES,
    )
    return [Kept(Reservation(r["id"], r["product_ids"], r["quantities"]), r["status"], r["created_at"]) for r in rows]


async def forget_cancelled(conn: Connection, days: float, most: int) -> int:
    """Deletes up to `most` reservations that were cancelled more than `days` ago, oldest first; answers how many."""
    # SKIP LOCKED: another pod may be at it, and nobody's cancellation should wait for this.
    status = await conn.execute(
        """
        DELETE FROM reservations WHERE id IN (
            SELECT id FROM reservations WHERE status = 'cancelled' AND cancelled_at < now() - make_interval(secs => $1 * 86400.0)
            ORDER BY cancelled_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        """,
        days,
        most,
    )
    return int(status.rpartition(" ")[2])
