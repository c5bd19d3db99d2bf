"""Estimates how many products a search finds, by a sample of the products.

To count a word that a fifth of a million products contain, PostgreSQL's index reads 200,000 entries, although it is
enough to know that there are more than MAX_COUNT. For a large table, a sample shows that in a tenth of the time.
"""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from msgspec import Struct

from market.kit.paging import MAX_COUNT
from market.kit.postgres import Connection
from market.products.search.matching import Column, Matches, condition, count
from market.products.search.ranks import ranks_of

# Smaller tables are not sampled, because counting by the index is fast enough.
_MIN_PRODUCTS = 100_000
_SAMPLED_PRODUCTS = 2000
# A smaller sample is taken before. If it shows much less than MAX_COUNT, as one or none of 500 products does for a
# million, a search probably finds less, and the sample above would take longer than the search itself.
_SMALL_SAMPLE = 500
_FEW = MAX_COUNT / 3
# PostgreSQL samples pages of the table, and products of one kind are often stored side by side: so only one
# in this many products of a page counts.
_THINNING = 4
# An estimate that exceeds the bound by this factor is not due to chance. If the first sample exceeds it by less, but by
# more than _DOUBT, a larger sample is taken, for which a lower factor is enough.
_CERTAINTY = 3
_DOUBT = 2
_LARGER_SAMPLE, _ITS_CERTAINTY = 8000, 1.7
# See Sample.max_read.
_MIN_READ, _UNEVENNESS = 10_000, 5


class Sample(Struct, frozen=True):
    """Estimates of how many products match.

    products: the number of all products, which is exact
    found: of those that are found; None if nothing was sampled
    ranks: of those of each rank, by its number; empty if nothing was sampled, or few are found
    """

    products: int
    found: float | None = None
    ranks: dict[int, float] = {}

    def max_sorted(self, wanted: int) -> int:
        """Return how many matching products, at most, are read by the index and sorted.

        If more match, the first `wanted` are found faster by reading products in the order of the list: about
        products * wanted / matching of them.
        """
        return isqrt(self.products * wanted)

    def max_read(self, wanted: int, matching: float | None) -> int:
        """Return how many products are read in the order of the list, before the index is tried after all.

        That is several times the number that suffices if the matching products are evenly distributed, and not, for
        example, all among the oldest ones.
        """
        if matching is None:
            return self.products
        return _MIN_READ + _UNEVENNESS * int(self.products * wanted / max(matching, 1))

    def max_found(self, wanted: int) -> int:
        """Return the same for all products that are found, which are read anyway as long as they have to be counted."""
        return max(MAX_COUNT, self.max_sorted(wanted))


async def take_sample(
    conn: Connection, matches: Matches, *, min_products: int = _MIN_PRODUCTS, few: float = _FEW
) -> Sample:
    """Return a sample, always the same of an unchanged table; one without estimates if there are fewer products.

    few: if less are estimated to be found, the ranks are not estimated.
    """
    total = await conn.fetchval("SELECT coalesce(sum(n), 0)::bigint FROM product_counts")
    if total < min_products or not matches.part:
        return Sample(total)
    arguments: list[object] = [matches.found]
    conditions = [condition("all_words", 1, by_index=False)]
    [found] = await _estimate(conn, total, _SMALL_SAMPLE, conditions, arguments)
    if found < few:
        return Sample(total, found)
    ranks = ranks_of(matches)
    conditions += [rank.condition(arguments, by_index=False) for rank in ranks]
    found, *of_ranks = await _estimate(conn, total, _SAMPLED_PRODUCTS, conditions, arguments)
    return Sample(total, found, {rank.number: n for rank, n in zip(ranks, of_ranks, strict=True)})


async def count_each(
    conn: Connection, sample: Sample, column: Column, queries: Sequence[str], max_count: int
) -> list[float]:
    """Return how many products match each query: estimates if there is a sample, otherwise results of `count`."""
    if sample.found is None:
        return [await count(conn, column, query, max_count) for query in queries]
    conditions = [condition(column, n, by_index=False) for n in range(1, len(queries) + 1)]
    return await _estimate(conn, sample.products, _SAMPLED_PRODUCTS, conditions, queries)


async def _estimate(
    conn: Connection, total: int, size: int, conditions: Sequence[str], arguments: Sequence[object]
) -> list[float]:
    """Return estimates of how many of `total` products meet each condition, by a sample of `size` products."""
    percent = min(100, 100 * _THINNING * size / total)
    counts = ", ".join(f"count(*) FILTER (WHERE {text})" for text in conditions)
    row = await conn.fetchrow(
        f"SELECT count(*), {counts} FROM product_search TABLESAMPLE SYSTEM ({percent:f}) REPEATABLE (1) "
        f"WHERE uuid_hash(id) % {_THINNING} = 0",
        *arguments,
    )
    assert row is not None
    return [n * total / max(row[0], 1) for n in row[1:]]


async def is_common(conn: Connection, sample: Sample, matches: Matches, wanted: int) -> bool:
    """Return whether more than MAX_COUNT are found, and probably more than max_found. If not, there may be more."""
    if sample.found is None or sample.found <= sample.max_found(wanted):
        return False
    if sample.found > _CERTAINTY * MAX_COUNT:
        return True
    if sample.found > _DOUBT * MAX_COUNT:
        conditions = [condition("all_words", 1, by_index=False)]
        [found] = await _estimate(conn, sample.products, _LARGER_SAMPLE, conditions, [matches.found])
        if found > _ITS_CERTAINTY * MAX_COUNT:
            return True
    # Counting them takes less than beginning to sort them.
    return await count(conn, "all_words", matches.found, MAX_COUNT) > MAX_COUNT
