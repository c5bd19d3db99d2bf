"""All SQL of products."""

# ruff: noqa: S608 -- the texts of the statements are made of this service's own field names, and a checked number.

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from asyncpg import Record
from msgspec import Struct

from market.contracts import money
from market.kit.postgres import Pool, acquire
from market.products.domain import Draft, Position, Product, Sort, Summary

# The columns are named like the fields. `stock` is inventory's, and unset.
_FIELDS = tuple(f for f in Product.__struct_fields__ if f != "stock")
COLUMNS = ", ".join("NULL::boolean AS available" if f == "available" else f for f in _FIELDS)
_PRICE, _CURRENCY = _FIELDS.index("price"), _FIELDS.index("currency")
# The columns that a request writes. The stock is inventory's.
_WRITTEN = tuple(f for f in Draft.__struct_fields__ if f != "stock")

_INSERTED = f"id, idempotency_key, request_hash, caller, caller_key, {', '.join(_WRITTEN)}"
_VALUES = ", ".join(f"${n}" for n in range(1, 6 + len(_WRITTEN)))
# Either unique index may contain the key already.
_INSERT = f"""
    INSERT INTO products ({_INSERTED}) VALUES ({_VALUES}) ON CONFLICT DO NOTHING RETURNING {COLUMNS}
"""
# The lock keeps the other caller's row from being deleted before this row is there, to which its key would pass on.
_INSERT_BESIDE = f"""
    WITH other AS (
        SELECT id FROM products
        WHERE idempotency_key = $5 AND (caller <> $4 OR (caller IS NULL AND ${6 + len(_WRITTEN)}::boolean))
        FOR KEY SHARE
    )
    INSERT INTO products ({_INSERTED}) SELECT {_VALUES} FROM other ON CONFLICT DO NOTHING
    RETURNING {COLUMNS}
"""
_SELECT_BY_KEY = f"""
    SELECT {COLUMNS}, request_hash FROM products
    WHERE (caller_key = $1 AND caller = $2) OR (idempotency_key = $1 AND caller IS NULL AND NOT $3::boolean)
"""
# The lock of the subquery makes its values those that the update replaces.
_UPDATE = f"""
    WITH replaced AS (
        SELECT id AS replaced_id, {", ".join(f"{f} AS replaced_{f}" for f in Summary.__struct_fields__)} FROM products
        WHERE id = $1 AND ($2::bigint[] IS NULL OR version = ANY($2)) FOR NO KEY UPDATE
    )
    UPDATE products SET {", ".join(f"{column} = ${n}" for n, column in enumerate(_WRITTEN, 3))},
        version = version + 1, updated_at = greatest(now(), updated_at)
    FROM replaced WHERE id = replaced_id
    RETURNING {COLUMNS}, {", ".join(f"replaced_{f}" for f in Summary.__struct_fields__)}
"""
_DELETE = f"""
    DELETE FROM products WHERE id = $1 AND ($2::bigint[] IS NULL OR version = ANY($2))
    RETURNING {", ".join(Summary.__struct_fields__)}
"""
_RAISE_VERSION = f"UPDATE products SET version = $3 WHERE id = $1 AND version = $2 RETURNING {COLUMNS}"


# The sort expression of each column, applied to a column or a value. Each has an index, together with the id.
_SORT_KEYS = {"created_at": "{}", "price": "{}", "name": 'name_sort_key({}) COLLATE "C"'}


class PageQuery(Struct, frozen=True):
    """A page of the list that is requested.

    after: the position at which the previous page ends, instead of an offset.
    """

    limit: int
    offset: int
    sort: Sort
    after: Position | None = None


class Page(Struct, frozen=True):
    """A page of the list, whether another one follows, and the number of products in the whole list."""

    products: list[Product]
    has_next: bool
    total: int


class CallerKey(NamedTuple):
    """An Idempotency-Key with the caller to whom it belongs.

    signed_in: whether the caller has a token. Then a row without a caller, of an earlier version, is another's.
    """

    caller: str
    key: str
    signed_in: bool = False

    @property
    def scoped(self) -> str:
        """What the column of earlier versions has if another caller's row has the key there: no key begins so."""
        return f" {sha256(f'{self.caller} {self.key}'.encode()).hexdigest()}"


class ProductOfKey(Struct, frozen=True):
    """The product that was created with an Idempotency-Key, and the fingerprint of the request that created it."""

    product: Product
    request_hash: bytes


class Replacement(Struct, frozen=True):
    """A product after a change, and what it was before."""

    product: Product
    before: Summary


class Statement(NamedTuple):
    text: str
    arguments: list[object]


def page_clauses(query: PageQuery, arguments: list[object]) -> str:
    """Return the clauses WHERE, ORDER BY and LIMIT of a page, whose arguments are added to those of the statement.

    They read one product more than the page has, to find out whether another page follows.
    """

    def parameter(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    beyond = ""
    if query.after is not None:
        column = query.sort.removeprefix("-")
        position = f"{_SORT_KEYS[column].format(parameter(query.after.key))}, {parameter(query.after.id)}"
        beyond = f"WHERE ({sort_key(query)}, id) {'<' if query.sort.startswith('-') else '>'} ({position})"
    # The limit is part of the text: for a parameter the planner assumes a tenth of the table, and sorts that.
    limit = f"LIMIT {query.limit + 1}"
    if query.offset:
        limit += f" OFFSET {parameter(query.offset)}"
    return f"{beyond} ORDER BY {page_order(query)} {limit}"


def sort_key(query: PageQuery) -> str:
    """Return the expression by which the page is sorted, before the id."""
    column = query.sort.removeprefix("-")
    return _SORT_KEYS[column].format(column)


def page_order(query: PageQuery) -> str:
    """Return the expressions of ORDER BY."""
    key = sort_key(query)
    return f"{key} DESC, id DESC" if query.sort.startswith("-") else f"{key}, id"


def page_statement(query: PageQuery) -> Statement:
    """Return the statement of a page. Each row begins with the total; there is always one row, beyond the end too."""
    arguments: list[object] = []
    part = f"SELECT {COLUMNS} FROM products {page_clauses(query, arguments)}"
    total = "SELECT sum(n)::bigint FROM product_counts"
    return Statement(
        f"SELECT ({total}), part.* FROM (VALUES (1)) one LEFT JOIN ({part}) part ON true ORDER BY {page_order(query)}",
        arguments,
    )


class ProductRepository:
    """The table of products. Its methods raise DeadlineExceeded and Unavailable, as kit/postgres.py says.

    timeout_seconds: the limit of one statement, unless the caller's deadline is nearer.
    """

    def __init__(self, pool: Pool, *, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds

    async def get_page(self, query: PageQuery) -> Page:
        """Return a page of the list."""
        statement = page_statement(query)
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            rows = await conn.fetch(statement.text, *statement.arguments)
        found = [read_product(row, 1) for row in rows if row["id"] is not None]
        return Page(found[: query.limit], len(found) > query.limit, rows[0][0])

    async def get(self, product_id: UUID) -> Product | None:
        """Return the product, or None if there is none."""
        [product] = await self.get_many([product_id])
        return product

    async def get_many(self, product_ids: Sequence[UUID]) -> list[Product | None]:
        """Return the product of each id, in the order of the ids; None if there is none."""
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            rows = await conn.fetch(f"SELECT {COLUMNS} FROM products WHERE id = ANY($1::uuid[])", product_ids)
        by_id = {row["id"]: read_product(row) for row in rows}
        return [by_id.get(product_id) for product_id in product_ids]

    async def get_by_key(self, key: CallerKey) -> ProductOfKey | None:
        """Return the product that was created with the caller's Idempotency-Key, or None if there is none.

        One that an earlier version has created belongs to every caller that has not signed in.
        """
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            row = await conn.fetchrow(_SELECT_BY_KEY, key.key, key.caller, key.signed_in)
        return None if row is None else ProductOfKey(read_product(row), row["request_hash"])

    async def insert(self, product_id: UUID, draft: Draft, key: CallerKey | None) -> Product | None:
        """Insert and return the new product; None if the Idempotency-Key has a product already, of any caller."""
        if key is None:
            return await self._insert(_INSERT, product_id, None, None, None, None, *_written(draft))
        values = (product_id, key.key, draft.fingerprint(), key.caller, key.key, *_written(draft))
        return await self._insert(_INSERT, *values)

    async def insert_beside(self, product_id: UUID, draft: Draft, key: CallerKey) -> Product | None:
        """Insert and return the new product if the Idempotency-Key has one of another caller, but none of this one."""
        values = (product_id, key.scoped, draft.fingerprint(), key.caller, key.key, *_written(draft))
        return await self._insert(_INSERT_BESIDE, *values, key.signed_in)

    async def _insert(self, statement: str, *values: object) -> Product | None:
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            row = await conn.fetchrow(statement, *values)
        return None if row is None else read_product(row)

    async def update(self, product_id: UUID, draft: Draft, versions: Sequence[int] | None) -> Replacement | None:
        """Update and return the product; None if there is none in one of these versions (`versions` None: in any)."""
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            row = await conn.fetchrow(_UPDATE, product_id, versions, *_written(draft))
        return None if row is None else Replacement(read_product(row), _summary(row, "replaced_"))

    async def raise_version(self, product_id: UUID, version: int, new_version: int) -> Product | None:
        """Replace the product's version by `new_version`, and return it; None if it no longer has `version`."""
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            row = await conn.fetchrow(_RAISE_VERSION, product_id, version, new_version)
        return None if row is None else read_product(row)

    async def delete(self, product_id: UUID, versions: Sequence[int] | None) -> Summary | None:
        """Delete the product if it has one of the versions (None: any), and return its last state; otherwise None."""
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            row = await conn.fetchrow(_DELETE, product_id, versions)
        return None if row is None else _summary(row)


def _written(draft: Draft) -> list[object]:
    return [getattr(draft, column) for column in _WRITTEN]


def _summary(row: Record, prefix: str = "") -> Summary:
    values = {field: row[prefix + field] for field in Summary.__struct_fields__}
    values["price"] = money.in_currency(values["price"], values["currency"])
    return Summary(**values)


def read_product(row: Record, first: int = 0) -> Product:
    """Return the product in a row that has `COLUMNS` from the column number `first` on."""
    # By their positions: reading values by their names would take three times as long.
    values = list(row[first : first + len(_FIELDS)])
    values[_PRICE] = money.in_currency(values[_PRICE], values[_CURRENCY])
    return Product(*values)
