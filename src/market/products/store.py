"""All SQL of products. Errors of the database are Unavailable (kit/postgres.py)."""

# ruff: noqa: S608 -- what is put into the statements' text are constants of this file, and a checked number.

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from asyncpg import Record
from msgspec import Struct

from market.kit.postgres import Pool, acquire
from market.products.domain import Draft, Product, Sort, Stored

_COLUMNS = "id, name, description, price, currency, image_url, NULL::boolean AS available, created_at, updated_at"

_ORDERS: dict[Sort, str] = {
    "created_at": "created_at, id",
    "-created_at": "created_at DESC, id DESC",
    "price": "price, id",
    "-price": "price DESC, id DESC",
    "name": "name, id",
    "-name": "name DESC, id DESC",
}
_MATCHES = "search @@ (websearch_to_tsquery('english', translate($3, '/', ' ')) || websearch_to_tsquery('simple', translate($3, '/', ' ')))"


class Page(Struct, frozen=True):
    """A part of the list: `q` None is the whole list."""

    limit: int
    offset: int
    sort: Sort
    q: str | None


def page_statement(page: Page) -> tuple[str, list[object]]:
    """The statement and its arguments. Each row starts with the total, and there is always one, past the end too."""
    order = _ORDERS[page.sort]
    if page.q is None:
        # The limit is part of the text: with a parameter the planner guesses a tenth of the table, and sorts it.
        total, limit = "SELECT sum(n)::bigint FROM product_counts", f"LIMIT {page.limit}"
        arguments: list[object] = []
        if page.offset:
            limit, arguments = f"{limit} OFFSET $1", [page.offset]
        part = f"SELECT {_COLUMNS} FROM products ORDER BY {order} {limit}"
        return (
            f"SELECT ({total}), part.* FROM (VALUES (1)) one LEFT JOIN ({part}) part ON true ORDER BY {order}",
            arguments,
        )
    statement = f"""
        WITH found AS MATERIALIZED (SELECT id, created_at, price, name FROM products WHERE {_MATCHES}),
             part AS MATERIALIZED (SELECT id FROM found ORDER BY {order} LIMIT $1 OFFSET $2)
        SELECT (SELECT count(*) FROM found), part.* FROM (VALUES (1)) one
        LEFT JOIN (SELECT {_COLUMNS} FROM products WHERE id IN (SELECT id FROM part)) part ON true ORDER BY {order}
    """
    return statement, [page.limit, page.offset, page.q]


async def list_page(db: Pool, page: Page) -> tuple[list[Product], int]:
    """The products of the page, and how many there are in all."""
    statement, arguments = page_statement(page)
    async with acquire(db) as conn:
        rows = await conn.fetch(statement, *arguments)
    return [Product(*row[1:]) for row in rows if row[1] is not None], rows[0][0]


async def find(db: Pool, ids: Sequence[UUID]) -> list[Stored | None]:
    """One for each id, in their order; None where there is no such product."""
    async with acquire(db) as conn:
        rows = await conn.fetch(f"SELECT {_COLUMNS}, version FROM products WHERE id = ANY($1::uuid[])", ids)
    by_id = {row[0]: _stored(row) for row in rows}
    return [by_id.get(id) for id in ids]


async def find_by_key(db: Pool, key: str) -> tuple[Stored, bytes] | None:
    """The product that was made under the key, and the hash of the request that made it."""
    async with acquire(db) as conn:
        row = await conn.fetchrow(
            f"SELECT {_COLUMNS}, version, request_hash FROM products WHERE idempotency_key = $1", key
        )
    return None if row is None else (_stored(row), row["request_hash"])


async def insert(db: Pool, id: UUID, draft: Draft, key: str | None) -> Stored | None:
    """The new product; None where the key has one already."""
    async with acquire(db) as conn:
        row = await conn.fetchrow(
            f"""
            INSERT INTO products (id, name, description, price, currency, image_url, idempotency_key, request_hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
            RETURNING {_COLUMNS}, version
            """,
            id,
            draft.name,
            draft.description,
            draft.price,
            draft.currency,
            draft.image_url,
            key,
            draft.fingerprint() if key is not None else None,
        )
    return None if row is None else _stored(row)


async def update(db: Pool, id: UUID, draft: Draft, versions: Sequence[int] | None) -> Stored | None:
    """The product after the change; None where there is none in one of these versions (None: in any)."""
    async with acquire(db) as conn:
        row = await conn.fetchrow(
            f"""
            UPDATE products SET name = $2, description = $3, price = $4, currency = $5, image_url = $6,
                version = version + 1, updated_at = greatest(now(), updated_at)
            WHERE id = $1 AND ($7::bigint[] IS NULL OR version = ANY($7))
            RETURNING {_COLUMNS}, version
            """,
            id,
            draft.name,
            draft.description,
            draft.price,
            draft.currency,
            draft.image_url,
            versions,
        )
    return None if row is None else _stored(row)


async def delete(db: Pool, id: UUID) -> bool:
    """Whether there was such a product."""
    async with acquire(db) as conn:
        return await conn.fetchval("DELETE FROM products WHERE id = $1 RETURNING true", id) is True


def _stored(row: Record) -> Stored:
    return Stored(Product(*row[:9]), row[9])
