"""Pages of a shop with 20 products: the storefront's, and those of django-oscar."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
import httpx

from benchmarks import requirements
from benchmarks.measurements import Measurement, Row, Spread, ratio
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare, rounded
from benchmarks.testbed import Testbed, fetch

TITLE = "a page of the shop with 20 products"
PEER = "shop oscar"
MIN_RATIO_TO_PEER = 5
MIN_PAGES_PER_SECOND = 200
MAX_RENDERING_MS = 3
_PRODUCTS = 200
_PER_PAGE = 20
# Whose CPU time a page costs.
_PROCESSES = ("storefront", "graphql", "products", "inventory", "postgres", "redis", PEER)


async def prepare(testbed: Testbed) -> Contestants:
    await testbed.fill()
    ours = testbed.port("storefront")
    _check_page(f"http://127.0.0.1:{ours}/", "/products/")
    testbed.pin("storefront", PEER)
    contestants = {"ours": _contestant(testbed, ours, "/")}
    if requirements.is_installed(requirements.PYTHON):
        peer = await _start_peer(testbed)
        _check_page(f"http://127.0.0.1:{peer}/browse/", "product_pod")
        contestants["peer"] = _contestant(testbed, peer, "/browse/")
        testbed.pin("storefront", PEER)
    return contestants


def _contestant(testbed: Testbed, port: int, path: str) -> Any:
    async def measure() -> Measurement:
        return await testbed.closed_loop(port=port, workload="get", params={"path": path}, connections=16)

    return measure


async def _start_peer(testbed: Testbed) -> int:
    """Start django-oscar with a catalogue of ours in a schema of its own, and return its port."""
    port = testbed.peer_port(7)
    database_url = testbed.urls["postgres_products"]
    env = {"DATABASE_URL": database_url, "REDIS_URL": testbed.urls["redis"]}
    connection = await asyncpg.connect(database_url)
    try:
        exists = await connection.fetchval("SELECT to_regnamespace('oscar') IS NOT NULL")
        await connection.execute("CREATE SCHEMA IF NOT EXISTS oscar")
    finally:
        await connection.close()
    if not exists:
        found: list[Any] = []
        for offset in range(0, _PRODUCTS, 100):
            page = await fetch("GET", f"{testbed.urls['products']}/api/product?limit=100&offset={offset}")
            found += page["items"]
        catalogue = testbed.directory / "oscar.json"
        catalogue.write_text(json.dumps(found))
        await testbed.run([sys.executable, "benchmarks/peers/shop_oscar/fill.py", catalogue], env)
    gunicorn = [
        sys.executable,
        "-m",
        "gunicorn",
        "--workers",
        "1",
        "--threads",
        "4",
        "--keep-alive",
        "60",
        "--bind",
        f"127.0.0.1:{port}",
    ]
    await testbed.start(PEER, [*gunicorn, "shop_oscar.wsgi"], port, env)
    return port


def _check_page(url: str, mark: str) -> None:
    """Raise RuntimeError unless the page shows at least 20 products."""
    page = httpx.get(url, timeout=60).raise_for_status().text
    if page.count(mark) < _PER_PAGE:
        raise RuntimeError(f"{url} shows {page.count(mark)} products, not {_PER_PAGE}")


def _pages_per_cpu_second(rounds: Sequence[Measurement]) -> list[float]:
    """Return how many pages a second of one core makes, with everything that a page needs: services and stores."""
    return [1000 / sum(m.cpu_ms.get(name, 0.0) for name in _PROCESSES) for m in rounds]


def judge(measurements: Measurements) -> list[Row]:
    own = measurements["ours"]
    rendering = Spread.of([m.cpu_ms["storefront"] for m in own])
    rows = [
        compare(
            measurements,
            f"{TITLE}, the storefront on one core",
            "pages/s",
            f">= {MIN_PAGES_PER_SECOND}/s, <= {MAX_RENDERING_MS} ms of the storefront's CPU per page",
            peer=None,
            limit=None,
            other_goals_met=rendering.median <= MAX_RENDERING_MS
            and Spread.of([m.value for m in own]).median >= MIN_PAGES_PER_SECOND,
            remark=f"{rendering.median:.2f} ms ({rendering.low:.2f} - {rendering.high:.2f}) of its CPU per page",
        )
    ]
    peer = measurements.get("peer")
    ours_per_cpu = _pages_per_cpu_second(own)
    spread = ratio(ours_per_cpu, _pages_per_cpu_second(peer)) if peer else None
    rows.append(
        Row(
            scenario=f"{TITLE}, compared with django-oscar",
            unit="pages per second of CPU",
            goal=f">= {MIN_RATIO_TO_PEER}x django-oscar",
            met=spread is not None and spread.median >= MIN_RATIO_TO_PEER,
            remark="all processes and stores that a page needs" if peer else "not judged: the peer was not run",
            ours=rounded(Spread.of(ours_per_cpu).median),
            peer=rounded(Spread.of(_pages_per_cpu_second(peer)).median) if peer else None,
            limit=None,
            ratio_to_peer=rounded(spread.median) if spread else None,
            ratio_to_limit=None,
            spread_to_peer=[rounded(spread.low), rounded(spread.high)] if spread else None,
        )
    )
    return rows


SCENARIOS = [
    Scenario(
        name="storefront",
        title="A page of the shop with 20 products",
        goal=f">= {MIN_RATIO_TO_PEER}x django-oscar per core",
        prepare=prepare,
        judge=judge,
        unit="pages/s",
        requires=(requirements.PYTHON,),
        rounds=FEWER_ROUNDS,
    ),
]
