"""The same reads from a catalogue of a million products and from one of 20,000."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import asyncpg

from benchmarks.catalogue import fill_searchable_up_to, read_retail_words
from benchmarks.explain_pages import position_at
from benchmarks.measurements import Measurement, Row, Spread
from benchmarks.scenario import Contestants, Measurements, Scenario, compare_costs, values
from benchmarks.testbed import Testbed
from market.kit.paging import write_cursor
from market.products.domain import DEFAULT_SORT
from market.products.search import matching
from market.products.search.language import parse
from market.products.search.pages import SETTINGS

MAX_RATIO = 1.5
MAX_SEARCH_P99_MS = 50
_SMALL = "small_catalogue"
# Without availability, which costs the same in both.
_PAGE = "/api/product?limit=20&availability=false"
_PATHS = 40
_CANDIDATES = 250
# Searches of a kind in one round. With fewer, the p99 would be the longest one.
_SEARCHES = 320


class Size(NamedTuple):
    name: str
    products: int


SIZES = (Size("million", 1_000_000), Size("20,000", 20_000))
SMOKE_SIZES = (Size("million", 2_000), Size("20,000", 200))
READS = (
    "first page of 20",
    "page of 20 after half of the products",
    "search that finds one product",
    "search that finds about 1,000 products",
    "search that finds all products",
    "GET one product",
)


async def prepare(testbed: Testbed) -> Contestants:
    large, small = SMOKE_SIZES if testbed.smoke else SIZES
    uri = testbed.urls["postgres_products"]
    ports = {large.name: testbed.port("products"), small.name: await _start_small(testbed, uri)}
    uris = {large.name: uri, small.name: _small(uri)}
    contestants: dict[str, Callable[[], Any]] = {}
    for size in (large, small):
        await fill_searchable_up_to(uris[size.name], size.products)
        paths = await _paths(uris[size.name], size.products)
        for read in READS:
            await testbed.get(f"http://127.0.0.1:{ports[size.name]}{paths[read][0]}")
            # The requests above are enough for a smoke run.
            if not testbed.smoke or read == READS[2]:
                searches = _SEARCHES if read.startswith("search") and not testbed.smoke else None
                contestants[f"{read}, {size.name}"] = _contestant(testbed, ports[size.name], paths[read], searches)
    testbed.pin("products", _SMALL)
    return contestants


def _small(uri: str) -> str:
    return uri.rpartition("/")[0] + f"/{_SMALL}"


async def _start_small(testbed: Testbed, uri: str) -> int:
    """Start a second service of products with a database of its own, and return its port."""
    url = urlsplit(uri)
    conn = await asyncpg.connect(
        host=url.hostname, port=url.port, user="postgres", password=url.password, database="postgres"
    )
    try:
        if not await conn.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", _SMALL):
            await conn.execute(f"CREATE DATABASE {_SMALL} OWNER products")
    finally:
        await conn.close()
    return await testbed.start_service("products", _SMALL, 19, database=_SMALL)


async def _paths(uri: str, products: int) -> dict[str, list[str]]:
    """Return the paths of each read, for a catalogue of so many products."""
    rng = random.Random(7)
    conn = await asyncpg.connect(uri, server_settings=SETTINGS)
    try:
        position = await position_at(conn, DEFAULT_SORT, products // 2)
        rows = await conn.fetch(f"SELECT id FROM products TABLESAMPLE BERNOULLI ({min(100, 100_000 / products)})")
        words = await _words_that_find(conn, min(1_000, products // 10), _words_of(1_000 / products))
    finally:
        await conn.close()
    texts = {
        READS[2]: [f"KL-{n}" for n in rng.sample(range(products), _PATHS)],
        READS[3]: words,
        # Every article number begins with it.
        READS[4]: ["kl"],
    }
    return {
        READS[0]: [_PAGE],
        READS[1]: [f"{_PAGE}&after={quote(write_cursor(position, 'products', DEFAULT_SORT, None))}"],
        **{read: [f"{_PAGE}&q={quote(text)}" for text in found] for read, found in texts.items()},
        READS[5]: [f"/api/product/{row['id']}" for row in rows],
    }


def _words_of(share: float) -> list[str]:
    """Return words that occur in about this share of the products, each of which has ten words."""
    words, totals = read_retail_words()
    weights = dict(
        zip(words, (total - before for total, before in zip(totals, [0, *totals], strict=False)), strict=True)
    )
    words = [word for word in words if word.isalpha() and len(word) > 3]
    return sorted(words, key=lambda word: abs(weights[word] - share * totals[-1] / 10))[:_CANDIDATES]


async def _words_that_find(conn: asyncpg.Connection[asyncpg.Record], wanted: int, words: list[str]) -> list[str]:
    """Return the words whose searches find numbers of products nearest to the wanted one.

    A search finds more than the word: also other forms of it, and longer words that begin with it.
    """
    found = {}
    for word in words:
        matches = await matching.compile_search(conn, parse(word))
        found[word] = await matching.count(conn, "all_words", matches.found, 10 * wanted)
    return sorted(words, key=lambda word: abs(found[word] - wanted))[:_PATHS]


def _contestant(testbed: Testbed, port: int, paths: list[str], count: int | None) -> Any:
    """Return the contestant. count: of requests, instead of a duration."""

    async def measure() -> Measurement:
        load = {"workload": "get_any", "params": {"paths": paths}, "connections": 1, "count": count}
        measured = await testbed.closed_loop(port=port, **load)
        assert measured.latency is not None
        measured.value = measured.latency.p50
        return measured

    return measure


def judge(measurements: Measurements) -> list[Row]:
    return [_row(measurements, read) for read in READS if f"{read}, {SIZES[0].name}" in measurements]


def _row(measurements: Measurements, read: str) -> Row:
    large, small = (measurements[f"{read}, {size.name}"] for size in SIZES)
    met = True
    goal, remark = (
        f"<= {MAX_RATIO:g}x the same among 20,000",
        "one caller; the limit is the same read among 20,000 products",
    )
    if read.startswith("search"):
        p99 = Spread.of([m.latency.p99 for m in large if m.latency]).median
        met = p99 <= MAX_SEARCH_P99_MS
        goal += f", p99 <= {MAX_SEARCH_P99_MS} ms"
        remark += f"; p99 {p99:.1f} ms"
    return compare_costs(
        f"{read}, among a million",
        "ms (p50)",
        goal,
        ours=values(large),
        limit=values(small),
        max_ratio=MAX_RATIO,
        other_goals_met=met,
        remark=remark,
    )


SCENARIOS = [
    Scenario(
        name="catalogue-size",
        title="Reads among a million products and among 20,000",
        unit="ms (p50)",
        goal=f"none slower than {MAX_RATIO:g} times the same among 20,000; search p99 <= {MAX_SEARCH_P99_MS} ms",
        prepare=prepare,
        judge=judge,
        group="million",
    )
]
