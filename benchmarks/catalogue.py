"""A large catalogue, written to the database of products directly."""

from __future__ import annotations

import asyncpg

_INSERT = """
    INSERT INTO products (id, name, description, price, currency, created_at)
    SELECT gen_random_uuid(), word || ' ' || n, 'A ' || word || ' for the house and the garden.',
        ((random() * 10000)::int / 100.0)::numeric(8, 2), 'GBP', now() - random() * interval '900 days'
    FROM generate_series($1::int, $2::int) n,
        LATERAL (SELECT ($3::text[])[1 + n % array_length($3::text[], 1)] AS word) words
"""
_WORDS = ["Apple corer", "Äpfel", "banana stand", "Daisy teapot", "Émile", "lantern", "Łódź", "Zebra", "Лампа", "Йод"]

# The words of searchable products: the first ones are frequent, as in a real catalogue (a Zipf distribution).
_SEARCHABLE_WORDS = """
    set pink red of blue heart bag christmas box retrospot vintage design metal white glass holder small cake rose
    polkadot 3 candle black sign green hanging card decoration mug t-light pack paper in and garden with large
    tree assorted 6 silver bird flower lunch wooden ceramic wall kitchen party tea hook door bottle water hot star
    light drawer ring necklace frame cover mirror cushion bowl tin jar apple strawberry spotty doormat umbrella
    children's purse clock 12 ivory cream french home sweet bakelike alarm cutter tissue napkins ribbon spaceboy
    dolly girl union jack flag teapot kettle lantern apron bracelet earrings wreath garland parasol notebook
    pencil sticker charm plate tray basket bucket cabinet shelf ladder lamp chair table stool rug quilt blanket
    towel soap incense
""".split()  # noqa: SIM905
_INSERT_SEARCHABLE = """
    INSERT INTO products (id, name, description, price, currency, created_at)
    SELECT gen_random_uuid(), initcap(name) || ' KL-' || n, name || ' for the ' || other,
        (n % 9973 / 100.0)::numeric(8, 2), 'GBP', now() - n * interval '1 minute'
    FROM generate_series($1::int, $2::int) AS n,
        LATERAL (
            SELECT string_agg(words[(power(random(), 2) * 149)::int + 1], ' ') FILTER (WHERE i <= 3 + n % 4) AS name,
                string_agg(words[(power(random(), 2) * 149)::int + 1], ' ') FILTER (WHERE i > 6) AS other
            FROM generate_series(1, 12) AS i, (SELECT $3::text[] AS words) AS w
        ) AS texts
"""


async def fill_up_to(uri: str, count: int) -> None:
    """Insert products until there are `count`, and analyze the table. They have no stock."""
    await _fill_up_to(uri, count, _INSERT, _WORDS, batch=50_000, tables=("products",))


async def fill_searchable_up_to(uri: str, count: int) -> None:
    """Insert products with different words until there are `count`, and analyze the tables. They have no stock."""
    tables = ("products", "product_search", "search_vocabulary")
    await _fill_up_to(uri, count, _INSERT_SEARCHABLE, _SEARCHABLE_WORDS, batch=5_000, tables=tables)


async def _fill_up_to(
    uri: str, count: int, statement: str, words: list[str], *, batch: int, tables: tuple[str, ...]
) -> None:
    conn = await asyncpg.connect(uri, command_timeout=3600)
    try:
        existing = await conn.fetchval("SELECT count(*) FROM products")
        for first in range(existing, count, batch):
            await conn.execute(statement, first, min(first + batch, count) - 1, words)
        for table in tables:
            await conn.execute(f"VACUUM ANALYZE {table}")
    finally:
        await conn.close()
