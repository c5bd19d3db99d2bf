"""A large catalogue, written to the database of products directly."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

import asyncpg

from market.kit.ids import new_id

# Inserts the products of a range of numbers, of which the last one is excluded.
Insert = Callable[[Any, int, int], Awaitable[None]]
_INSERT = """
    INSERT INTO products (id, name, description, price, currency, created_at)
    SELECT gen_random_uuid(), word || ' ' || n, 'A ' || word || ' for the house and the garden.',
        ((random() * 10000)::int / 100.0)::numeric(8, 2), 'GBP', now() - random() * interval '900 days'
    FROM generate_series($1::int, $2::int) n,
        LATERAL (SELECT ($3::text[])[1 + n % array_length($3::text[], 1)] AS word) words
"""
_WORDS = ["Apple corer", "Äpfel", "banana stand", "Daisy teapot", "Émile", "lantern", "Łódź", "Zebra", "Лампа", "Йод"]

# Lines of a count and the words that occur so often in the names of the Online Retail data set.
_RETAIL_WORDS = Path(__file__).with_name("retail_words.txt")
# Built again after the products are there: an index that grows with each of them takes three times as long.
_INDEXES = (
    *("product_search_words", "product_search_order", "search_vocabulary_trigrams"),
    *("products_created_at", "products_price", "products_name", "products_search", "products_name_sort"),
)
# Products with larger numbers are copies of these, so that their words need not be found again. No other word is such a
# number.
_TEMPLATES = range(10_000, 20_000)
_CREATE_TEMPLATES = f"""
    CREATE TEMPORARY TABLE templates AS
    SELECT number, name, description, price, currency, name_size, name_words::text, all_words::text
    FROM (SELECT substring(name from 'KL-([0-9]+)$')::int AS number, * FROM products) AS p
        JOIN product_search USING (id)
    WHERE number >= {_TEMPLATES.start} AND number < {_TEMPLATES.stop}
"""
_COPY_TEMPLATES = """
    WITH numbered AS (
        SELECT n, md5(n::text) AS random, '2025-01-01 00:00+00'::timestamptz + n * interval '30 seconds' AS created_at,
            t.*
        FROM generate_series($1::int, $2::int) AS n JOIN templates AS t ON t.number = $3 + n % $4
    ), copies AS MATERIALIZED (
        -- Of version 7, as the service makes them.
        SELECT *, (lpad(to_hex((extract(epoch FROM created_at) * 1000)::bigint), 12, '0')
            || '7' || left(random, 3) || '8' || right(random, 15))::uuid AS id
        FROM numbered
    ), inserted AS (
        INSERT INTO products (id, name, description, price, currency, created_at)
        SELECT id, replace(name, 'KL-' || number, 'KL-' || n), description, price, currency, created_at FROM copies
    )
    INSERT INTO product_search (id, name_size, name_words, all_words)
    SELECT id, name_size, replace(replace(name_words, old, new), old_joined, new_joined)::tsvector,
        replace(replace(all_words, old, new), old_joined, new_joined)::tsvector
    FROM copies, LATERAL (
        SELECT quote_literal(number) AS old, quote_literal(n) AS new,
            quote_literal('kl' || number) AS old_joined, quote_literal('kl' || n) AS new_joined
    ) AS words
"""
_COLUMNS = ("id", "name", "description", "price", "currency", "created_at")


async def fill_up_to(uri: str, count: int) -> None:
    """Insert products until there are `count`, and analyze the table. They have no stock."""

    async def insert(conn: Any, first: int, last: int) -> None:
        await conn.execute(_INSERT, first, last - 1, _WORDS)

    await _fill_up_to(uri, count, insert, batch=50_000)


async def fill_searchable_up_to(uri: str, count: int) -> None:
    """Insert products until there are `count`, and analyze the tables. They have no stock.

    Their words are as frequent as in the Online Retail data set.
    """
    words, weights = read_retail_words()
    rng = random.Random(20)
    begin = datetime(2025, 1, 1, tzinfo=UTC)

    def product(n: int) -> tuple[object, ...]:
        chosen = rng.choices(words, cum_weights=weights, k=10)
        size = 3 + n % 4
        name, description = " ".join(chosen[:size]), " ".join(chosen[size:])
        created_at = begin + timedelta(seconds=30 * n)
        return new_id(), f"{name.upper()} KL-{n}", f"For the {description}.", Decimal(n % 9973) / 100, "GBP", created_at

    async def insert(conn: Any, first: int, last: int) -> None:
        if first >= _TEMPLATES.stop:
            await _copy_templates(conn, first, last)
            return
        records = [product(n) for n in range(first, last)]
        await conn.copy_records_to_table("products", records=records, columns=_COLUMNS)

    await _fill_up_to(uri, count, insert, batch=5_000)


async def _copy_templates(conn: Any, first: int, last: int) -> None:
    """Insert the products of a range of numbers, and what the triggers would add for them."""
    async with conn.transaction():
        if await conn.fetchval("SELECT to_regclass('pg_temp.templates')") is None:
            created = await conn.execute(_CREATE_TEMPLATES)
            if created != f"SELECT {len(_TEMPLATES)}":
                raise RuntimeError(f"the catalogue lacks some of the products number {_TEMPLATES}: {created}")
            await conn.execute("ANALYZE templates")
        await conn.execute("ALTER TABLE products DISABLE TRIGGER USER")
        await conn.execute(_COPY_TEMPLATES, first, last - 1, _TEMPLATES.start, len(_TEMPLATES))
        await conn.execute("UPDATE product_counts SET n = n + $1 WHERE shard = 0", last - first)
        await conn.execute("ALTER TABLE products ENABLE TRIGGER USER")


def read_retail_words() -> tuple[list[str], list[int]]:
    """Return the words of the Online Retail data set, and how often they and those before them occur."""
    counts = {
        word: int(line.split()[0])
        for line in _RETAIL_WORDS.read_text("utf-8").splitlines()
        for word in line.split()[1:]
    }
    return list(counts), list(accumulate(counts.values()))


async def _fill_up_to(uri: str, count: int, insert: Insert, *, batch: int) -> None:
    conn = await asyncpg.connect(uri, command_timeout=3600)
    try:
        existing = await conn.fetchval("SELECT count(*) FROM products")
        if existing < count:
            indexes = await conn.fetch("SELECT indexname, indexdef FROM pg_indexes WHERE indexname = ANY($1)", _INDEXES)
            for name, _ in indexes:
                await conn.execute(f"DROP INDEX {name}")
            for first in range(existing, count, batch):
                await insert(conn, first, min(first + batch, count))
            for _, definition in indexes:
                await conn.execute(definition)
        for table in ("products", "product_search", "search_vocabulary"):
            await conn.execute(f"VACUUM ANALYZE {table}")
    finally:
        await conn.close()
