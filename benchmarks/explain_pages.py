"""`python -m benchmarks.explain_pages URI`: the plan of each kind of page of products, the first one and one far on.

URI: of a database of products that may be filled, such as that of `market up --empty`: it gets a million products.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any, get_args

import asyncpg

from benchmarks import plans
from benchmarks.catalogue import fill_up_to
from market.products.domain import Position, Product, Sort, position_type
from market.products.store import PageQuery, page_statement

LIMIT = 20
_TIMES = 100


async def position_at(conn: Any, sort: Sort, offset: int) -> Position:
    """Return the position of the product at this offset."""
    statement, arguments = page_statement(PageQuery(1, offset, sort))
    rows = await conn.fetch(statement, *arguments)
    return position_type(sort).of(Product(*rows[0][1:]))


async def explain(conn: Any, query: PageQuery) -> list[str]:
    """Return the median time of a page that has been read before, and its plan."""
    statement, arguments = page_statement(query)
    times = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        await conn.fetch(statement, *arguments)
        times.append(1000 * (time.perf_counter() - started))
    return [f"p50 {statistics.median(times):.2f} ms", *await plans.explain(conn, statement, arguments)]


async def run(uri: str, count: int) -> None:
    await fill_up_to(uri, count)
    conn = await asyncpg.connect(uri, command_timeout=600)
    for sort in get_args(Sort):
        for depth in (0, count // 2):
            after = await position_at(conn, sort, depth) if depth else None
            print(
                f"\nsort={sort}, after {depth} products",
                *await explain(conn, PageQuery(LIMIT, 0, sort, after)),
                sep="\n",
            )
    print("\noffset=10000", *await explain(conn, PageQuery(LIMIT, 10_000, "-created_at")), sep="\n")
    await conn.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.uri, arguments.count))
