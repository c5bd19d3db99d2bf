"""The order of relevance: by rank, then the product with the shorter name, then the newer one.

Rank 0: all words of the search are in the name. Rank 1: they are, but the last one is the beginning of a longer word.
Ranks 2 and 3: the same in name and description together.
"""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

from typing import Annotated, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct

from market.kit.paging import MAX_COUNT
from market.kit.postgres import Connection
from market.products.search.matching import Column, Matches, condition, count
from market.products.search.sampling import Sample, is_common

# So many products of a rank are read by the index of words and sorted. If there are more, all products are read in the
# order of the list until the page is full; of a million, at least one in 200 then belongs to it.
_MAX_SORTED = 5000
# So many products that are found are sorted, whatever their ranks: somewhat more than MAX_COUNT, because finding out
# that they are too many is expensive.
_MAX_FOUND = 15_000


class RankPosition(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A product's place in the order of relevance: its rank, the number of words in its name, and its id.

    Stored in cursors that clients have: its fields are not changed.
    """

    rank: Annotated[int, Meta(ge=0, le=3)]
    name_size: Annotated[int, Meta(ge=0, le=10_000)]
    id: UUID


class _Rank(NamedTuple):
    """The products whose words in the column match the query, and none of the others, which are pairs like it."""

    number: int
    column: Column
    query: str
    others: list[tuple[Column, str]]


class Ranked(NamedTuple):
    """The positions of a page, and how many products are found: exact up to MAX_COUNT, otherwise a lower bound."""

    positions: list[RankPosition]
    total: int


async def read_positions(
    conn: Connection, matches: Matches, sample: Sample, after: RankPosition | None, limit: int
) -> Ranked:
    """Return the first positions, or those after the given one."""
    if not await is_common(conn, sample, matches):
        ranked = await _read_sorted(conn, matches, after, limit)
        if ranked.total <= _MAX_FOUND:
            return ranked
    return Ranked(await _read_by_rank(conn, matches, sample, after, limit), MAX_COUNT + 1)


async def _read_sorted(conn: Connection, matches: Matches, after: RankPosition | None, limit: int) -> Ranked:
    arguments: list[object] = [matches.found, matches.whole, matches.part]
    beyond = ""
    if after is not None:
        beyond = "AND (-rank, -name_size, id) < (-$4::integer, -$5::integer, $6::uuid)"
        arguments += [after.rank, after.name_size, after.id]
    text = f"""
        WITH found AS MATERIALIZED (
            SELECT id, name_size, CASE
                WHEN name_words @@ $2::tsquery THEN 0
                WHEN name_words @@ $3::tsquery THEN 1
                WHEN all_words @@ $2::tsquery THEN 2
                ELSE 3 END AS rank
            FROM product_search WHERE {condition("all_words", 1, by_index=bool(matches.part))} LIMIT {_MAX_FOUND + 1}
        ), counted AS MATERIALIZED (SELECT count(*) AS total FROM found)
        SELECT total, part.* FROM counted LEFT JOIN LATERAL (
            SELECT rank, name_size, id FROM found WHERE total <= {_MAX_FOUND} {beyond}
            ORDER BY rank, name_size, id DESC LIMIT {limit}
        ) AS part ON true ORDER BY rank, name_size, id DESC
    """
    rows = await conn.fetch(text, *arguments)
    return Ranked([RankPosition(*row[1:]) for row in rows if row["id"] is not None], rows[0]["total"])


async def _read_by_rank(
    conn: Connection, matches: Matches, sample: Sample, after: RankPosition | None, limit: int
) -> list[RankPosition]:
    # Most pages end in the first rank that has any products.
    positions: list[RankPosition] = []
    for rank in _ranks(matches):
        if len(positions) < limit and (after is None or rank.number >= after.rank):
            start = after if after is not None and rank.number == after.rank else None
            by_index = bool(matches.part) and await _has_few(conn, rank, sample)
            positions += await _read_rank(conn, rank, start, limit - len(positions), by_index=by_index)
    return positions


async def _has_few(conn: Connection, rank: _Rank, sample: Sample) -> bool:
    if sample.is_above(rank.column, rank.query, _MAX_SORTED):
        return False
    return await count(conn, rank.column, rank.query, _MAX_SORTED) <= _MAX_SORTED


async def _read_rank(
    conn: Connection, rank: _Rank, after: RankPosition | None, limit: int, *, by_index: bool
) -> list[RankPosition]:
    arguments: list[object] = [rank.query]
    conditions = [condition(rank.column, 1, by_index=by_index)]
    for column, query in rank.others:
        arguments.append(query)
        conditions.append(f"NOT {condition(column, len(arguments), by_index=False)}")
    if after is not None:
        arguments += [after.name_size, after.id]
        conditions.append(f"(-name_size, id) < (-${len(arguments) - 1}::integer, ${len(arguments)}::uuid)")
    order = "ORDER BY -name_size DESC, id DESC"
    rows = f"SELECT name_size, id FROM product_search WHERE {' AND '.join(conditions)}"
    if by_index:
        text = f"WITH found AS MATERIALIZED ({rows}) SELECT name_size, id FROM found {order} LIMIT {limit}"
    else:
        text = f"{rows} {order} LIMIT {limit}"
    return [RankPosition(rank.number, *row) for row in await conn.fetch(text, *arguments)]


def _ranks(matches: Matches) -> list[_Rank]:
    if not matches.part:
        return [_Rank(0, "all_words", matches.found, [])]
    ranks: list[_Rank] = []
    others: list[tuple[Column, str]] = [("all_words", matches.excluded)] if matches.excluded else []
    columns: tuple[Column, ...] = ("name_words", "name_words", "all_words", "all_words")
    for number, column in enumerate(columns):
        query = matches.part if number % 2 else matches.whole
        # Without a last word that may go on there are two ranks only.
        if (column, query) not in others:
            ranks.append(_Rank(number, column, query, others))
            others = [*others, (column, query)]
    return ranks
