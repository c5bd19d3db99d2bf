"""How common a search is, by a sample of the products.

To count a word that a fifth of a million products have, PostgreSQL's index reads 200,000 entries, although it is enough
to know that there are more than MAX_COUNT. Of a large table a sample shows that in a tenth of the time.
"""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

from msgspec import Struct

from market.kit.paging import MAX_COUNT
from market.kit.postgres import Connection
from market.products.search.matching import Column, Matches, count

# Fewer products are counted: the index is fast enough.
_MIN_PRODUCTS = 100_000
_SAMPLED_PRODUCTS = 2000
# PostgreSQL samples pages of the table, and products of one kind are often stored side by side: of each page only one
# product in so many counts.
_THINNING = 4
# How far the estimate has to be above the bound, so that chance cannot make it so high.
_CERTAINTY = 3


class Sample(Struct, frozen=True):
    """How many products have words in the column that match the query, for each of some pairs: estimates."""

    estimates: dict[tuple[Column, str], float]

    def is_above(self, column: Column, query: str, bound: int) -> bool:
        """Return whether more products than the bound match with certainty. If not, they have to be counted."""
        return self.estimates.get((column, query), 0) >= _CERTAINTY * bound


async def take_sample(conn: Connection, matches: Matches, *, min_products: int = _MIN_PRODUCTS) -> Sample:
    """Return a sample, always the same of an unchanged table; an empty one if there are fewer products."""
    total = await conn.fetchval("SELECT sum(n)::bigint FROM product_counts")
    if total < min_products or not matches.part:
        return Sample({})
    pairs: list[tuple[Column, str]] = [
        ("all_words", matches.found),
        ("name_words", matches.whole),
        ("name_words", matches.part),
        ("all_words", matches.whole),
        ("all_words", matches.part),
    ]
    counts = ", ".join(f"count(*) FILTER (WHERE {column} @@ ${n}::tsquery)" for n, (column, _) in enumerate(pairs, 2))
    row = await conn.fetchrow(
        f"SELECT count(*), {counts} FROM product_search TABLESAMPLE SYSTEM ($1::real) REPEATABLE (1) "
        f"WHERE uuid_hash(id) % {_THINNING} = 0",
        min(100, 100 * _THINNING * _SAMPLED_PRODUCTS / total),
        *(query for _, query in pairs),
    )
    assert row is not None
    return Sample({pair: n * total / max(row[0], 1) for pair, n in zip(pairs, row[1:], strict=True)})


async def is_common(conn: Connection, sample: Sample, matches: Matches) -> bool:
    """Return whether more products than MAX_COUNT are known to be found. If not, there may be more."""
    if sample.is_above("all_words", matches.found, MAX_COUNT):
        return True
    # Counting them takes less than beginning to sort them.
    seems_common = sample.estimates.get(("all_words", matches.found), 0) > 1.5 * MAX_COUNT
    return seems_common and await count(conn, "all_words", matches.found, MAX_COUNT) > MAX_COUNT
