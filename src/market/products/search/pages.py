"""Pages of search results: by relevance, or in one of the sorts of the list."""

# ruff: noqa: S608 -- the texts of the statements are made of column names and numbers.

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from asyncpg import Record
from msgspec import Struct

from market.kit.paging import MAX_COUNT
from market.kit.postgres import Connection, Pool, acquire
from market.products.domain import Position, Product, Sort, position_type
from market.products.search.language import parse
from market.products.search.matching import Matches, compile_search, condition
from market.products.search.ranking import RankPosition, read_positions
from market.products.search.sampling import Sample, is_common, take_sample
from market.products.search.suggestions import find_suggestions
from market.products.store import COLUMNS, PageQuery, page_clauses, page_order, read_product, sort_key

# Run-time parameters of the connections (kit/postgres.py). For words that it expects to be common, the planner would
# read the table instead of the index.
SETTINGS = {"enable_seqscan": "off"}

_MAX_NAMED = 100


class SearchQuery(Struct, frozen=True):
    """A page of search results that is requested. sort: None for relevance.

    after: the position at which the previous page ends, instead of an offset.
    """

    words: str
    limit: int
    offset: int
    sort: Sort | None
    after: Position | RankPosition | None = None

    @property
    def position_type(self) -> type[Position] | type[RankPosition]:
        """The type of the positions in this list."""
        return RankPosition if self.sort is None else position_type(self.sort)


class FoundPage(Struct, frozen=True):
    """A page of search results.

    end: the position at which it ends; None if nothing follows
    total_exact: whether `total` is the number of products that are found; otherwise a lower bound
    suggested: the search found nothing, and these products match similar words
    """

    products: list[Product]
    end: Position | RankPosition | None
    total: int
    total_exact: bool = True
    suggested: bool = False


class ProductSearch:
    """The search for products. Its method raises BadInput, DeadlineExceeded and Unavailable.

    timeout_seconds: the limit of a search, unless the caller's deadline is earlier.
    """

    def __init__(self, pool: Pool, *, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds

    async def get_page(self, query: SearchQuery) -> FoundPage:
        """Return a page of the products that match the words, or of suggestions if there are none."""
        async with acquire(self._pool, seconds=self._timeout_seconds) as conn:
            return await read_page(conn, query)


async def read_page(conn: Connection, query: SearchQuery) -> FoundPage:
    """Return a page as ProductSearch.get_page does. Raises BadInput, and what the driver raises."""
    search = parse(query.words)
    if search.excluded and await _find_named(conn, query.words):
        search = parse(query.words, excludes=False)
    matches = await compile_search(conn, search)
    if not matches.found:
        # Without any word, a name such as "?" is found as it is.
        named = await _find_named(conn, query.words)
        return FoundPage(await _get_products(conn, named[query.offset :][: query.limit]), None, len(named))
    sample = await take_sample(conn, matches)
    if query.sort is None:
        page = await _by_relevance(conn, query, matches, sample)
    else:
        page = await read_page_by_sort(conn, query, query.sort, matches, sample)
    if page.total == 0 and matches.part and query.after is None:
        suggestions = await find_suggestions(conn, search, matches)
        products = await _get_products(conn, suggestions[query.offset :][: query.limit])
        return FoundPage(products, None, len(suggestions), suggested=bool(suggestions))
    return page


async def _find_named(conn: Connection, text: str) -> list[UUID]:
    """Return the ids of products with this name, or one that differs in case only; at most _MAX_NAMED.

    The name is then searched for as a whole, as in "MAGIC TREE -PAPER FLOWERS".
    """
    # By the index of sort=name, whose key is the name in lower case, a separator, and the name as it is. The bounds are
    # expressions of the parameter alone, so that the index is read between them and nowhere else.
    key = "split_part(name_sort_key($1::text), U&'\\0001', 1)"
    sql = f"""
        SELECT id FROM products
        WHERE name_sort_key(name) COLLATE "C" >= ({key} || U&'\\0001') COLLATE "C"
            AND name_sort_key(name) COLLATE "C" < ({key} || U&'\\0002') COLLATE "C"
        ORDER BY name_sort_key(name) COLLATE "C" DESC, id DESC LIMIT {_MAX_NAMED}
    """
    # A name may begin or end with a space; so may a text that is pasted.
    return [row[0] for row in await conn.fetch(sql, text) or await conn.fetch(sql, text.strip())]


async def _by_relevance(conn: Connection, query: SearchQuery, matches: Matches, sample: Sample) -> FoundPage:
    assert query.after is None or isinstance(query.after, RankPosition)
    ranked = await read_positions(conn, matches, sample, query.after, query.offset + query.limit + 1)
    positions = ranked.positions[query.offset :]
    products = await _get_products(conn, [position.id for position in positions[: query.limit]])
    end = positions[query.limit - 1] if len(positions) > query.limit else None
    return FoundPage(products, end, min(ranked.total, MAX_COUNT), total_exact=ranked.total <= MAX_COUNT)


async def _get_products(conn: Connection, product_ids: Sequence[UUID]) -> list[Product]:
    """Return the products in the order of the ids, without those that have just been deleted."""
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM products WHERE id = ANY($1::uuid[])", product_ids)
    products = {row["id"]: read_product(row) for row in rows}
    return [products[product_id] for product_id in product_ids if product_id in products]


async def read_page_by_sort(
    conn: Connection, query: SearchQuery, sort: Sort, matches: Matches, sample: Sample
) -> FoundPage:
    """Return a page in one of the sorts of the list."""
    assert query.after is None or isinstance(query.after, Position)
    page = PageQuery(query.limit, query.offset, sort, query.after)
    rows: list[Record] = []
    total = MAX_COUNT + 1
    wanted = query.offset + query.limit + 1
    max_found = sample.max_found(wanted)
    if not await is_common(conn, sample, matches, wanted):
        rows = await _read_few(conn, page, matches, max_found)
        total = rows[0]["total"]
    if not rows or total > max_found:
        max_read = sample.max_read(wanted, sample.found)
        rows = await _read_in_order(conn, page, matches, max_read)
        if len(rows) <= query.limit and await _has_more_than(conn, page, max_read):
            rows = await _read_few(conn, page, matches, sample.products)
    products = [read_product(row, 1) for row in rows if row["id"] is not None]
    end = position_type(sort).of(products[query.limit - 1]) if len(products) > query.limit else None
    return FoundPage(products[: query.limit], end, min(total, MAX_COUNT), total_exact=total <= MAX_COUNT)


# Both statements return rows of a total, which means nothing in the second one, and the columns of a product. OFFSET 0
# keeps the planner from turning the loop over the outer rows into another join.


async def _read_few(conn: Connection, page: PageQuery, matches: Matches, max_found: int) -> list[Record]:
    """Find the products by the index of words, and sort them, unless they are more than `max_found`."""
    arguments: list[object] = [matches.found]
    clauses, order = page_clauses(page, arguments), page_order(page)
    text = f"""
        WITH found AS MATERIALIZED (
            SELECT id AS found_id FROM product_search
            WHERE {condition("all_words", 1, by_index=bool(matches.part))} LIMIT {max_found + 1}
        ), counted AS MATERIALIZED (SELECT count(*) AS total FROM found)
        SELECT total, part.* FROM counted LEFT JOIN LATERAL (
            SELECT {COLUMNS} FROM (SELECT found_id FROM found WHERE total <= {max_found} OFFSET 0) AS f
            CROSS JOIN LATERAL (SELECT * FROM products WHERE id = found_id OFFSET 0) AS p {clauses}
        ) AS part ON true ORDER BY {order}
    """
    return await conn.fetch(text, *arguments)


async def _read_in_order(conn: Connection, page: PageQuery, matches: Matches, max_read: int) -> list[Record]:
    """Read products in the order of the list, until the page is full or `max_read` have been read."""
    arguments: list[object] = [matches.found]
    read = PageQuery(max_read - 1, 0, page.sort, page.after)
    direction = "DESC" if page.sort.startswith("-") else "ASC"
    text = f"""
        SELECT 0 AS total, {COLUMNS} FROM (
            SELECT *, {sort_key(page)} AS sort_key FROM products {page_clauses(read, arguments)}
        ) AS products CROSS JOIN LATERAL (
            SELECT s.id AS found_id FROM product_search AS s
            WHERE s.id = products.id AND {condition("all_words", 1, by_index=False)} OFFSET 0
        ) AS f ORDER BY sort_key {direction}, id {direction} LIMIT {page.limit + 1} OFFSET {page.offset}
    """
    return await conn.fetch(text, *arguments)


async def _has_more_than(conn: Connection, page: PageQuery, max_read: int) -> bool:
    """Return whether the list has more than `max_read` products after the page's cursor."""
    arguments: list[object] = []
    clauses = page_clauses(PageQuery(0, max_read, page.sort, page.after), arguments)
    return bool(await conn.fetch(f"SELECT FROM products {clauses}", *arguments))
