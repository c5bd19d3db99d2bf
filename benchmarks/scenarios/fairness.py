"""A one-line order alone and beside 200 callers of orders with 1,000 lines, by REST and by GraphQL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from benchmarks.measurements import Measurement, Row, Spread
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare_costs, format_ms, values
from benchmarks.testbed import Testbed, outbox_drained

CALLERS = 200
LINES = 1000
MAX_RATIO = 10
# Of the documentation's networks. The testbed's load comes from a trusted proxy.
ADDRESSES = [f"198.51.100.{n}" for n in range(CALLERS)]
EDGES = {"REST": ("orders", "orders", "/api/order"), "GraphQL": ("graphql", "graphql_orders", "/graphql")}
BESIDE = {"many addresses": ADDRESSES, "one address": ADDRESSES[:1]}


async def prepare(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    testbed.stack.pause("notifications")
    testbed.pin()
    callers = 8 if testbed.smoke else CALLERS
    contestants: Any = {}
    for edge, (service, workload, path) in EDGES.items():
        small = {
            "port": testbed.port(service),
            "workload": workload,
            "params": {"ids": ids, "lines": 1},
            "connections": 1,
        }
        contestants[f"{edge} alone"] = _alone(testbed, small)
        for name, addresses in BESIDE.items():
            large = {
                "port": testbed.port(service),
                "workload": "large_orders",
                "params": {"ids": ids, "addresses": addresses, "lines": min(LINES, len(ids)), "path": path},
                "connections": callers,
                "retries_refused": True,
            }
            contestants[f"{edge} beside {name}"] = _beside(testbed, small, large)
    return contestants


def _alone(testbed: Testbed, small: dict[str, Any]) -> Any:
    async def measure() -> Measurement:
        return _of_latency(await testbed.closed_loop(**small))

    return measure


def _beside(testbed: Testbed, small: dict[str, Any], large: dict[str, Any]) -> Any:
    async def measure() -> Measurement:
        # The others fill the queues before the measurement, and go on until it has ended.
        fill_seconds = 0.5 if testbed.smoke else 4.0
        load = testbed.load(**large, warmup=fill_seconds, seconds=testbed.warmup + testbed.seconds)
        others = asyncio.create_task(load)
        try:
            await asyncio.wait([others], timeout=fill_seconds + 1)
            measured = _of_latency(await testbed.closed_loop(**small))
            result = await others
        finally:
            others.cancel()
            with suppress(asyncio.CancelledError):
                await others
        measured.notes["large orders per second"] = round(result.rate, 1)
        measured.notes["large orders' p50 and p99 in ms"] = [result.latency.p50, result.latency.p99]
        measured.notes["responses to large orders"] = result.statuses
        measured.notes["outbox_drained_after_seconds"] = round(await outbox_drained(testbed.urls["mongodb"]), 3)
        return measured

    return measure


def _of_latency(measured: Measurement) -> Measurement:
    assert measured.latency is not None
    measured.value = measured.latency.p50
    return measured


def judge(measurements: Measurements) -> list[Row]:
    rows = []
    for edge in EDGES:
        alone = measurements[f"{edge} alone"]
        for name in BESIDE:
            beside = measurements[f"{edge} beside {name}"]
            notes = beside[-1].notes
            p99 = Spread.of([m.latency.p99 for m in beside if m.latency]).median
            rows.append(
                compare_costs(
                    f"one-line order by {edge} beside {CALLERS} callers of {LINES} lines, {name}",
                    "ms (p50)",
                    f"p50 <= {MAX_RATIO}x the p50 alone",
                    ours=values(beside),
                    limit=values(alone),
                    max_ratio=MAX_RATIO,
                    remark=f"the limit is the same alone; p99 {format_ms(p99)}; meanwhile "
                    f"{notes['large orders per second']} large orders/s, "
                    f"responses {notes['responses to large orders']}",
                )
            )
    return rows


SCENARIOS = [
    Scenario(
        name="fairness",
        title=f"One-line order beside {CALLERS} callers of {LINES} lines",
        unit="ms (p50)",
        prepare=prepare,
        judge=judge,
        group="orders",
        goal=f"p50 <= {MAX_RATIO}x the p50 alone",
        rounds=FEWER_ROUNDS,
    )
]
