"""The same calls of orders with ten million orders in MongoDB and with 10,000, and the memory of reconciling them."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any, NamedTuple

from market_dev.stack.topology import config_directory

from benchmarks import order_history
from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import Contestants, Measurements, Scenario, compare_costs, values
from benchmarks.testbed import Testbed

MAX_RATIO = 1.2
# By which factor the memory of a reconciliation may grow from 10,000 orders to all.
MAX_MEMORY_RATIO = 1.1
# What the goals are for; fewer with --orders.
ORDERS = 10_000_000
_SMALL = "orders_small"
_SMALL_COUNT, _HEAVY_COUNT = 10_000, 100_000
_SMOKE_COUNT = 1_000
COMPARED = ("POST order", "GET order")
LIST = "list of a user with 5 orders"
HEAVY_LIST = "list of a user with 100,000 orders"
# Prints the peak of the process itself, such as VmHWM: 1234 kB. What wait4 reports would include that of the process
# that has started it. Differences are no failure: the two services share the reservations.
_RECONCILE = """
import runpy, sys
sys.argv = ["market.orders", "reconcile"]
try:
    runpy.run_module("market.orders", run_name="__main__", alter_sys=True)
except SystemExit as e:
    print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
    sys.exit(e.code == 2)
"""


class Shop(NamedTuple):
    """A service of orders, and how many orders its database has."""

    port: int
    database: str
    config: str
    count: int


async def _shops(testbed: Testbed) -> dict[str, Shop]:
    """Start the service with few orders beside the stack's, and write the orders of both."""
    small = await testbed.start_service("orders", _SMALL, 17, database=_SMALL)
    count = _SMOKE_COUNT if testbed.smoke else testbed.orders
    heavy = _SMOKE_COUNT if testbed.smoke else _HEAVY_COUNT
    shops = {
        "all": Shop(testbed.port("orders"), "orders", str(config_directory() / "orders.yaml"), count),
        "few": Shop(small, _SMALL, str(testbed.directory / f"{_SMALL}.yaml"), min(_SMALL_COUNT, count)),
    }
    for name, shop in shops.items():
        await asyncio.to_thread(
            order_history.fill,
            testbed.urls["mongodb"],
            shop.database,
            shop.count,
            heavy=heavy if name == "all" else 0,
        )
    return shops


async def prepare(testbed: Testbed) -> Contestants:
    product_ids = await testbed.fill()
    contestants: dict[str, Any] = {}
    rng = random.Random(7)
    for name, shop in (await _shops(testbed)).items():
        numbers = [rng.randrange(shop.count) for _ in range(400)]
        paths = {
            "GET order": [f"/api/order/{order_history.order_id(n)}" for n in numbers],
            LIST: [f"/api/order?user={order_history.user(n)}&limit=20" for n in numbers],
        }
        if name == "all":
            paths[HEAVY_LIST] = [f"/api/order?user={order_history.HEAVY_USER}&limit=20"]
        for call, found in paths.items():
            await testbed.get(f"http://127.0.0.1:{shop.port}{found[0]}")
            contestants[f"{call}, {name}"] = _contestant(testbed, shop, "get_any", {"paths": found})
        contestants[f"POST order, {name}"] = _contestant(testbed, shop, "orders", {"ids": product_ids})
    testbed.pin()
    return contestants


def _contestant(testbed: Testbed, shop: Shop, workload: str, params: dict[str, Any]) -> Any:
    async def measure() -> Measurement:
        measured = await testbed.closed_loop(port=shop.port, workload=workload, params=params, connections=1)
        assert measured.latency is not None
        measured.value = measured.latency.p50
        measured.notes["orders"] = shop.count
        return measured

    return measure


def judge(measurements: Measurements) -> list[Row]:
    rows = [
        _row(f"{call}, with very many orders", measurements[f"{call}, all"], measurements[f"{call}, few"])
        for call in (*COMPARED, LIST)
    ]
    heavy = _row(
        f"{HEAVY_LIST}, with very many orders", measurements[f"{HEAVY_LIST}, all"], measurements[f"{LIST}, few"]
    )
    heavy.remark += ", of a user with 5"
    for row in (rows[-1], heavy):
        row.goal, row.met = "none", None
    return [*rows, heavy]


def _row(title: str, ours: list[Measurement], limit: list[Measurement]) -> Row:
    return compare_costs(
        title,
        "ms (p50)",
        f"<= {MAX_RATIO:g}x the same with 10,000",
        ours=values(ours),
        limit=values(limit),
        max_ratio=MAX_RATIO,
        remark=f"{_orders(ours)}; one caller; the limit is the same call with 10,000 orders",
    )


def _orders(rounds: list[Measurement]) -> str:
    """Return how many orders there were, and how many the goal is for if those were fewer."""
    count = rounds[0].notes["orders"]
    return f"{count:,} orders" + (f" instead of {ORDERS:,}" if count < ORDERS else "")


async def prepare_reconciliation(testbed: Testbed) -> Contestants:
    return {name: _reconciliation(testbed, shop) for name, shop in (await _shops(testbed)).items()}


def _reconciliation(testbed: Testbed, shop: Shop) -> Any:
    async def measure() -> Measurement:
        env = {**testbed.stack.environment("orders"), "CONFIG_PATH": shop.config}
        print(f"  reconciling {shop.count:,} orders", flush=True)
        output = await testbed.run([sys.executable, "-c", _RECONCILE], env)
        return Measurement(value=int(output.split()[-2]) / 1024, operations=shop.count, notes={"orders": shop.count})

    return measure


def judge_reconciliation(measurements: Measurements) -> list[Row]:
    row = _row("memory of a reconciliation of very many orders", measurements["all"], measurements["few"])
    row.unit, row.goal = "MiB, max", f"<= {MAX_MEMORY_RATIO:g}x that of 10,000 orders"
    row.remark = f"{_orders(measurements['all'])}; the limit is the same with 10,000"
    row.met = row.ratio_to_limit is not None and row.ratio_to_limit <= MAX_MEMORY_RATIO
    return [row]


SCENARIOS = [
    Scenario(
        name="order-count",
        title="Calls of orders with very many orders and with 10,000",
        unit="ms (p50)",
        goal=f"POST and GET <= {MAX_RATIO:g}x the same with 10,000 orders",
        prepare=prepare,
        judge=judge,
        group="history",
    ),
    Scenario(
        name="order-count-reconcile",
        title="Reconciling very many orders and 10,000",
        unit="MiB, max",
        goal=f"<= {MAX_MEMORY_RATIO:g}x the memory with 10,000 orders",
        prepare=prepare_reconciliation,
        judge=judge_reconciliation,
        group="history",
        # Takes minutes, and its memory differs by less than a hundredth.
        rounds=1,
        timeout_seconds=3600,
    ),
]
