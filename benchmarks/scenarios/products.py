"""Reads of products alone: it has one core, the stores and the generator have the other."""

from __future__ import annotations

import statistics
from typing import Any

import httpx

from benchmarks import requirements
from benchmarks.measurements import Measurement, Row
from benchmarks.pgbench import pgbench
from benchmarks.scenario import Contestants, Measurements, Scenario, compare, compare_costs, values
from benchmarks.testbed import Testbed, assert_same, read_pages

MAX_CPU_RATIO = 2.0
# How many different lists are read in turn.
PAGES = 50
# What a list with availability needs.
_PROCESSES = ("products", "postgres", "redis", "inventory")
COLUMNS = "id, name, description, price, currency, image_url, version, created_at, updated_at"


async def start_peer(testbed: Testbed) -> int:
    """Start the peer of products, with the same table and cache, and return its port."""
    return await _start_peer(testbed, "peer products", "products_fastapi:app", testbed.peer_port(1))


async def start_litestar(testbed: Testbed) -> int:
    """Start the second peer of products, and return its port."""
    return await _start_peer(testbed, "litestar products", "products_litestar:app", testbed.peer_port(21))


async def _start_peer(testbed: Testbed, name: str, app: str, port: int) -> int:
    env = {
        "DATABASE_URL": testbed.urls["postgres_products"].replace("postgresql://", "postgresql+asyncpg://"),
        "REDIS_URL": testbed.urls["redis"],
        "INVENTORY": testbed.urls["inventory"],
    }
    await testbed.start_asgi(name, app, port, env)
    return port


async def _prepare(testbed: Testbed, path: str, workload: dict[str, Any], scripts: list[str]) -> Contestants:
    ours = testbed.port("products")
    peers: dict[str, int] = {}
    if requirements.is_installed(requirements.PYTHON):
        peers = {"peer": await start_peer(testbed), "litestar": await start_litestar(testbed)}
        response = await testbed.get(f"http://127.0.0.1:{ours}{path}")
        # The peers have neither cursors nor suggestions.
        for member in ("next", "total_exact", "suggested"):
            response.pop(member, None)
        for name, port in peers.items():
            assert_same(f"{name} of products", response, await testbed.get(f"http://127.0.0.1:{port}{path}"))
    body = testbed.directory / "static.json"
    body.write_bytes(httpx.get(f"http://127.0.0.1:{ours}{path}").content)
    testbed.stop("static")
    static = testbed.peer_port(2)
    await testbed.start_asgi("static", "benchmarks.limits.static_asgi:app", static, {"BODY_FILE": str(body)})
    testbed.pin("products", "peer products", "litestar products", "static")

    def contestant(port: int) -> Any:
        async def measure() -> Measurement:
            return await testbed.both_loops(port=port, **workload)

        return measure

    async def measure_static() -> Measurement:
        return await testbed.closed_loop(port=static, **workload)

    async def measure_select() -> Measurement:
        return await pgbench(testbed, "products", scripts, clients=16)

    return {
        "ours": contestant(ours),
        **{name: contestant(port) for name, port in peers.items()},
        "limit": measure_static,
        "pgbench": measure_select,
    }


async def prepare_one(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    scripts = [f"SELECT {COLUMNS} FROM products WHERE id = '{product_id}';" for product_id in ids[:50]]
    workload = {"workload": "products", "params": {"ids": ids}}
    return await _prepare(testbed, f"/api/product/{ids[0]}", workload, scripts)


async def prepare_list(testbed: Testbed) -> Contestants:
    await testbed.fill()
    path = "/api/product?limit=20"
    contestants = await _prepare(testbed, path, {"workload": "get", "params": {"path": path}}, [_page_script("")])
    pages = await read_pages(testbed.urls["products"], PAGES)
    ends = [page["items"][-1] for page in pages.values()]
    # Each page is after the end of the one before.
    scripts = [_page_script(""), *(_page_script(_after(end)) for end in ends[:-1])]

    async def measure_pages() -> Measurement:
        load = {"workload": "get_any", "params": {"paths": list(pages)}}
        return await testbed.closed_loop(port=testbed.port("products"), **load)

    async def measure_selects() -> Measurement:
        return await pgbench(testbed, "products", scripts, clients=16)

    return {**contestants, "different pages": measure_pages, "pgbench, different pages": measure_selects}


def _page_script(condition: str) -> str:
    return f"SELECT {COLUMNS} FROM products {condition} ORDER BY created_at DESC, id DESC LIMIT 20;"


def _after(product: dict[str, Any]) -> str:
    return f"WHERE (created_at, id) < ('{product['created_at']}', '{product['id']}')"


def _judge(title: str) -> Any:
    def judge(measurements: Measurements) -> list[Row]:
        remark = f"the SELECT alone in pgbench: {statistics.median(values(measurements['pgbench'])):,.0f}/s"
        fastapi = compare(measurements, title, "requests/s", ">= 2x the peer", min_ratio_to_peer=2, remark=remark)
        litestar = compare(
            measurements,
            f"{title}, compared with Litestar",
            "requests/s",
            ">= 2x the peer",
            peer="litestar",
            limit=None,
            min_ratio_to_peer=2,
        )
        return [fastapi, litestar]

    return judge


def judge_list(measurements: Measurements) -> list[Row]:
    return [
        *_judge("GET a list of 20 products with availability")(measurements),
        _compare_cpu(measurements, "CPU of a list of 20 products with availability", "ours", "pgbench"),
        _compare_cpu(
            measurements, f"the same, {PAGES} different lists in turn", "different pages", "pgbench, different pages"
        ),
    ]


def _compare_cpu(measurements: Measurements, title: str, ours: str, select: str) -> Row:
    """Compare the CPU time of a request with that of the select in pgbench plus the bytes from a bare app."""
    own = [sum(m.cpu_ms.get(name, 0) for name in _PROCESSES) for m in measurements[ours]]
    selects = [sum(m.cpu_ms.values()) for m in measurements[select]]
    apps = [m.cpu_ms["static"] for m in measurements["limit"]]
    limit = [select_ms + app_ms for select_ms, app_ms in zip(selects, apps, strict=True)]
    return compare_costs(
        title,
        "ms of CPU",
        f"<= {MAX_CPU_RATIO:g}x the select in pgbench plus the bytes from a bare ASGI app",
        ours=own,
        limit=limit,
        max_ratio=MAX_CPU_RATIO,
        remark=f"the select {statistics.median(selects):.3f} ms, PostgreSQL and pgbench; "
        f"the app {statistics.median(apps):.3f} ms",
    )


SCENARIOS = [
    Scenario(
        name="product-one",
        title="GET one product",
        goal=">= 2x the peer",
        prepare=prepare_one,
        judge=_judge("GET one product"),
        requires=(requirements.PYTHON,),
    ),
    Scenario(
        name="product-list",
        title="GET a list of 20 products with availability",
        goal=">= 2x the peer",
        prepare=prepare_list,
        judge=judge_list,
        requires=(requirements.PYTHON,),
    ),
]
