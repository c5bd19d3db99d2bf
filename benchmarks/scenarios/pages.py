"""Pages of products deep inside a list of a million, compared with the first page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import asyncpg

from benchmarks.catalogue import fill_searchable_up_to
from benchmarks.explain_pages import position_at
from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import Contestants, Measurements, Scenario, compare
from benchmarks.testbed import Testbed
from market.kit.paging import write_cursor
from market.products.domain import DEFAULT_SORT

COUNT, SMOKE_COUNT = 1_000_000, 2_000


async def prepare(testbed: Testbed) -> Contestants:
    uri = testbed.urls["postgres_products"]
    count = SMOKE_COUNT if testbed.smoke else COUNT
    # The same catalogue as in the scenario of searches.
    await fill_searchable_up_to(uri, count)
    conn = await asyncpg.connect(uri)
    try:
        position = await position_at(conn, DEFAULT_SORT, count // 2)
    finally:
        await conn.close()
    port = testbed.port("products")
    # Without availability, which costs the same at any depth.
    first = "/api/product?limit=20&availability=false"
    deep = f"{first}&after={quote(write_cursor(position, 'products', DEFAULT_SORT, None))}"
    page = await testbed.get(f"http://127.0.0.1:{port}{deep}")
    if len(page["items"]) != 20 or page["next"] is None:
        raise RuntimeError(f"the page after half of the products is not full: {page}")
    testbed.pin("products")

    def contestant(path: str) -> Any:
        async def measure() -> Measurement:
            return await testbed.closed_loop(port=port, workload="get", params={"path": path})

        return measure

    return {"ours": contestant(deep), "limit": contestant(first)}


def judge(measurements: Measurements) -> list[Row]:
    title = "GET a page of 20 products after 500,000 of a million; limit: the first page"
    return [compare(measurements, title, "requests/s", ">= 0.8x the first page", peer=None, min_ratio_to_limit=0.8)]


SCENARIOS = [
    Scenario(
        name="page-depth",
        title="GET a page of 20 products after 500,000 of a million",
        goal=">= 0.8x the first page",
        prepare=prepare,
        judge=judge,
        group="million",
        timeout_seconds=900,
    )
]
