"""The latency of each call while there is no load, compared with that of its operations on the stores."""

from __future__ import annotations

import msgspec

from benchmarks.load import LoadDriver
from benchmarks.lone_calls import CALLS, Result, Spec
from benchmarks.measurements import Measurement, Row, ratio
from benchmarks.scenario import Contestants, Measurements, Scenario, compare_costs
from benchmarks.testbed import Testbed

MAX_RATIO_TO_STORES = 2.5
MAX_RATIO_TO_POST = 1.2
# The calls that are compared with POST.
COMPARED_WITH_POST = ("repeated POST", "DELETE", "second DELETE")
# Each round makes all calls in turn, so it has to be longer than one under load.
_ROUNDS_FACTOR = 3


async def measure_calls(driver: LoadDriver, ports: dict[str, int], product_ids: list[str]) -> Measurement:
    """Measure each call of the shop at these ports, of products, orders and graphql. The value is a POST in ms."""
    spec = Spec(ports=ports, product_ids=product_ids, seconds=_ROUNDS_FACTOR * driver.seconds, warmup=driver.warmup)
    result, cpu_ms = await driver.run_program(
        "benchmarks.lone_calls", msgspec.json.encode(spec), Result, timeout=spec.seconds + 60
    )
    return _measurement(result, "REST POST", cpu_ms)


def _measurement(result: Result, post: str, cpu_ms: dict[str, float]) -> Measurement:
    calls = {name: {"p50": latency.p50, "p95": latency.p95} for name, latency in result.calls.items()}
    latency = result.calls[post]
    return Measurement(value=latency.p50, latency=latency, cpu_ms=cpu_ms, notes={"calls": calls})


def p50(rounds: list[Measurement], call: str) -> list[float]:
    """Return the median latency of the call in each round, in milliseconds."""
    return [measurement.notes["calls"][call]["p50"] for measurement in rounds]


async def prepare(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    ports = {name: testbed.port(name) for name in ("products", "orders", "graphql")}
    stores = {
        "mongodb": testbed.urls["mongodb"],
        "postgres_products": testbed.urls["postgres_products"],
        "postgres_inventory": testbed.urls["postgres_inventory"],
        "product_ids": ids,
        "lines": 3,
        "seconds": _ROUNDS_FACTOR * testbed.seconds,
        "warmup": testbed.warmup,
        "pause_seconds": 0.02,
    }

    async def measure_stores() -> Measurement:
        result, cpu_ms = await testbed.run_program(
            "benchmarks.limits.store_operations", msgspec.json.encode(stores), Result, timeout=testbed.seconds * 3 + 60
        )
        return _measurement(result, "POST", cpu_ms)

    testbed.pin()
    return {"ours": lambda: measure_calls(testbed, ports, ids), "limit": measure_stores}


def judge(measurements: Measurements) -> list[Row]:
    return [_row(measurements, api, call) for api in ("REST", "GraphQL") for call in CALLS]


def _row(measurements: Measurements, api: str, call: str) -> Row:
    ours, limit = p50(measurements["ours"], f"{api} {call}"), p50(measurements["limit"], call)
    met = True
    goal, remark = f"<= {MAX_RATIO_TO_STORES:g}x the operations on the stores", "p50"
    if call in COMPARED_WITH_POST:
        to_post = ratio(ours, p50(measurements["ours"], f"{api} POST"))
        met = to_post.median <= MAX_RATIO_TO_POST
        goal += f", <= {MAX_RATIO_TO_POST:g}x the POST"
        remark += f"; {to_post.median:.2f}x the POST ({to_post.low:.2f} - {to_post.high:.2f})"
    return compare_costs(
        f"lone {call} by {api}",
        "ms",
        goal,
        ours=ours,
        limit=limit,
        max_ratio=MAX_RATIO_TO_STORES,
        other_goals_met=met,
        remark=remark,
    )


SCENARIOS = [
    Scenario(
        name="latency",
        title="each call alone, by REST and by GraphQL",
        unit="ms",
        prepare=prepare,
        judge=judge,
        group="orders",
        goal=f"<= {MAX_RATIO_TO_STORES:g}x its operations on the stores; a repeated POST and a DELETE "
        f"<= {MAX_RATIO_TO_POST:g}x a POST",
    )
]
