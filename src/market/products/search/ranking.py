"""The order of relevance: by rank (ranks.py), then the product with the shorter name, then the newer one."""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

from typing import Annotated, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct

from market.kit.paging import MAX_COUNT
from market.kit.postgres import Connection
from market.products.search.matching import Matches, condition
from market.products.search.ranks import Rank, ranks_of
from market.products.search.sampling import Sample, is_common


class RankPosition(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A product's place in the order of relevance: its rank, the number of words in its name, and its id.

    Stored in cursors that clients have: its fields are not changed.
    """

    rank: Annotated[int, Meta(ge=0, le=3)]
    name_size: Annotated[int, Meta(ge=0, le=10_000)]
    id: UUID


class Ranked(NamedTuple):
    """The positions of a page, and how many products are found: exact up to MAX_COUNT, otherwise a lower bound."""

    positions: list[RankPosition]
    total: int


async def read_positions(
    conn: Connection, matches: Matches, sample: Sample, after: RankPosition | None, limit: int
) -> Ranked:
    """Return the first positions, or those after the given one."""
    if not await is_common(conn, sample, matches, limit):
        max_found = sample.max_found(limit)
        ranked = await _read_sorted(conn, matches, after, limit, max_found)
        if ranked.total <= max_found:
            return ranked
    return Ranked(await _read_by_rank(conn, matches, sample, after, limit), MAX_COUNT + 1)


async def read_first_positions(conn: Connection, matches: Matches, sample: Sample, limit: int) -> list[RankPosition]:
    """Return the first positions, without counting what is found."""
    # Without estimates of the ranks, few are found. Then sorting all of them takes less time than reading each rank,
    # which might be at the end of the list.
    if sample.ranks and sample.found is not None and sample.found > sample.max_sorted(limit):
        return await _read_by_rank(conn, matches, sample, None, limit)
    return (await read_positions(conn, matches, sample, None, limit)).positions


async def _read_sorted(
    conn: Connection, matches: Matches, after: RankPosition | None, limit: int, max_found: int
) -> Ranked:
    """Find the products by the index of words, and sort them, unless they are more than `max_found`."""
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
            FROM product_search WHERE {condition("all_words", 1, by_index=bool(matches.part))} LIMIT {max_found + 1}
        ), counted AS MATERIALIZED (SELECT count(*) AS total FROM found)
        SELECT total, part.* FROM counted LEFT JOIN LATERAL (
            SELECT rank, name_size, id FROM found WHERE total <= {max_found} {beyond}
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
    for rank in ranks_of(matches):
        if len(positions) < limit and (after is None or rank.number >= after.rank):
            start = after if after is not None and rank.number == after.rank else None
            wanted = limit - len(positions)
            if matches.part and await _has_few(conn, rank, sample, wanted):
                positions += await _read_by_index(conn, rank, start, wanted)
            else:
                max_read = sample.max_read(wanted, sample.ranks.get(rank.number))
                found = await _read_in_order(conn, rank, start, wanted, max_read)
                if len(found) < wanted and matches.part and await _has_more_than(conn, start, max_read):
                    found = await _read_by_index(conn, rank, start, wanted)
                positions += found
    return positions


async def _has_few(conn: Connection, rank: Rank, sample: Sample, wanted: int) -> bool:
    """Return whether the rank has so few products that they are read by the index of words and sorted."""
    max_sorted = sample.max_sorted(wanted)
    if sample.ranks:
        return sample.ranks[rank.number] <= max_sorted
    arguments: list[object] = []
    text = f"SELECT FROM product_search WHERE {rank.condition(arguments, by_index=True)} OFFSET {max_sorted} LIMIT 1"
    return not await conn.fetch(text, *arguments)


async def _read_by_index(conn: Connection, rank: Rank, after: RankPosition | None, limit: int) -> list[RankPosition]:
    arguments: list[object] = []
    conditions = f"{rank.condition(arguments, by_index=True)} {_beyond('AND', after, arguments)}"
    text = f"""
        WITH found AS MATERIALIZED (SELECT name_size, id FROM product_search WHERE {conditions})
        SELECT name_size, id FROM found ORDER BY name_size, id DESC LIMIT {limit}
    """
    return [RankPosition(rank.number, *row) for row in await conn.fetch(text, *arguments)]


async def _read_in_order(
    conn: Connection, rank: Rank, after: RankPosition | None, limit: int, max_read: int
) -> list[RankPosition]:
    """Read products in the order within a rank, until there are `limit` positions or `max_read` have been read."""
    arguments: list[object] = []
    conditions = rank.condition(arguments, by_index=False)
    text = f"""
        SELECT name_size, id FROM (
            SELECT *, -name_size AS sort_key FROM product_search {_beyond("WHERE", after, arguments)}
            ORDER BY -name_size DESC, id DESC LIMIT {max_read}
        ) AS product_search WHERE {conditions} ORDER BY sort_key DESC, id DESC LIMIT {limit}
    """
    return [RankPosition(rank.number, *row) for row in await conn.fetch(text, *arguments)]


async def _has_more_than(conn: Connection, after: RankPosition | None, max_read: int) -> bool:
    """Return whether there are more than `max_read` products after the position in the order within a rank."""
    arguments: list[object] = []
    text = f"""
        SELECT FROM product_search {_beyond("WHERE", after, arguments)}
        ORDER BY -name_size DESC, id DESC OFFSET {max_read} LIMIT 1
    """
    return bool(await conn.fetch(text, *arguments))


def _beyond(keyword: str, after: RankPosition | None, arguments: list[object]) -> str:
    """Return the clause for products after the position, whose arguments are added to those of the statement."""
    if after is None:
        return ""
    arguments += [after.name_size, after.id]
    return f"{keyword} (-name_size, id) < (-${len(arguments) - 1}::integer, ${len(arguments)}::uuid)"
