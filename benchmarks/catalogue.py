"""A large catalogue, written to the database of products directly."""

from __future__ import annotations

import asyncpg

BATCH = 50_000

_INSERT = """
    INSERT INTO products (id, name, description, price, currency, created_at)
    SELECT gen_random_uuid(), word || ' ' || n, 'A ' || word || ' for the house and the garden.',
        (random() * 10000)::int / 100.0, 'GBP', now() - random() * interval '900 days'
    FROM generate_series($1::int, $2::int) n,
        LATERAL (SELECT ($3::text[])[1 + n % array_length($3::text[], 1)] AS word) words
"""
_WORDS = ["Apple corer", "Äpfel", "banana stand", "Daisy teapot", "Émile", "lantern", "Łódź", "Zebra", "Лампа", "Йод"]


async def fill_up_to(uri: str, count: int) -> None:
    """Insert products until there are `count`, and analyze the table. They have no stock."""
    conn = await asyncpg.connect(uri, command_timeout=600)
    try:
        existing = await conn.fetchval("SELECT count(*) FROM products")
        for first in range(existing, count, BATCH):
            await conn.execute(_INSERT, first, min(first + BATCH, count) - 1, _WORDS)
        await conn.execute("VACUUM ANALYZE products")
    finally:
        await conn.close()
