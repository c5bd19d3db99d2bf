"""From an order to its mail, compared with an earlier build: at a fixed rate, and one order at a time."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.comparisons.builds import Build, pin
from benchmarks.comparisons.tables import HEAD, Rows, render_rows
from benchmarks.cpu import cpu_ms_per_operation
from benchmarks.load import LoadDriver
from benchmarks.market_up import MarketUp
from benchmarks.measurements import Measurement, percentiles
from benchmarks.scenario import Contestants, Measurements
from benchmarks.scenarios.mails import RATE, MailLog
from benchmarks.testbed import outbox_drained

# The contestant whose difference from "ours" is noise.
AGAIN = "ours again"
HEAD_OF_NOISE = ["| what | ours | ours again | ratio |", "|---|---|---|---|"]
# One order every 0.25 s: the mail of the one before has arrived, and its event is removed.
_LONE_RATE = 4.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Orders:
    """How many orders are placed: `lone` ones, one at a time, and then for `seconds` at RATE."""

    lone: int = 20
    seconds: float = 8.0


DEFAULT = Orders()


async def place(
    driver: LoadDriver, shop: MarketUp, product_ids: list[str], *, connections: int, rate: float, seconds: float
) -> list[float]:
    """Place orders, and return the seconds from each request to its mail, when the outbox is empty."""
    prefix = f"b{next(_numbers)}"
    mails = MailLog(shop.data)
    result = await driver.load(
        port=int(shop.urls["orders"].rpartition(":")[2]),
        workload="orders",
        params={"ids": product_ids, "email": prefix},
        connections=connections,
        rate=rate,
        seconds=seconds,
        warmup=0,
    )
    lags = await mails.wait_for(prefix, result.succeeded, 60)
    await outbox_drained(shop.urls["mongodb"])
    return lags


async def prepare(builds: Sequence[Build], orders: Orders = DEFAULT) -> Contestants:
    """Return a contestant for each build, and one that places the lone orders of the first build again: the noise."""

    def contestant(build: Build) -> Callable[[], Awaitable[Measurement]]:
        return lambda: measure(build, build.shop, build.product_ids, orders)

    pin(builds)
    for build in builds:
        build.resume("notifications")
        # Warm up, and consume the events of the scenarios before.
        await place(build, build.shop, build.product_ids, connections=8, rate=50, seconds=min(3.0, orders.seconds))
    first = builds[0]
    again = {AGAIN: lambda: _measure_lone(first, first.shop, first.product_ids, orders)}
    return {**{build.name: contestant(build) for build in builds}, **again}


async def measure(driver: LoadDriver, shop: MarketUp, product_ids: list[str], orders: Orders = DEFAULT) -> Measurement:
    """Place orders one at a time, then at a fixed rate. The value is the p99 from order to mail at that rate, in ms.

    CPU per order is counted until the last mail has arrived and the outbox is empty, so that deferred work counts too.
    """
    alone = await _measure_lone(driver, shop, product_ids, orders)
    before = driver.cpu_seconds()
    lags = await place(driver, shop, product_ids, connections=64, rate=RATE, seconds=orders.seconds)
    cpu_ms = cpu_ms_per_operation(before, driver.cpu_seconds(), len(lags))
    latency = percentiles(lags)
    return Measurement(
        value=latency.p99,
        operations=len(lags),
        latency=latency,
        open_loop_rate=RATE,
        cpu_ms=cpu_ms,
        notes=alone.notes,
    )


async def _measure_lone(driver: LoadDriver, shop: MarketUp, product_ids: list[str], orders: Orders) -> Measurement:
    """Place orders one at a time. The value is the p50 from order to mail, in ms."""
    lags = await place(driver, shop, product_ids, connections=1, rate=_LONE_RATE, seconds=orders.lone / _LONE_RATE)
    latency = percentiles(lags)
    notes = {"lone": {"p50": latency.p50, "p95": latency.p95}}
    return Measurement(value=latency.p50, operations=len(lags), latency=latency, notes=notes)


def cpu_per_order(measurement: Measurement) -> float:
    """Return the milliseconds of CPU per order at RATE, of all processes of the shop."""
    return sum(measurement.cpu_ms.values())


def lone_p50(measurement: Measurement) -> float:
    """Return the median milliseconds from a lone order to its mail."""
    return float(measurement.notes["lone"]["p50"])


def render(measurements: Measurements) -> str:
    """Return the comparison as Markdown."""
    ours, before = measurements["ours"], measurements["before"]
    load = f"at {RATE:g} orders/s, ms"
    rows: Rows = {
        f"CPU per order {load}": cpu_per_order,
        f"p50 {load}": lambda m: m.latency.p50 if m.latency else 0,
        f"p99 {load}": lambda m: m.value,
        "p50 of a lone order, ms": lone_p50,
        "p95 of a lone order, ms": lambda m: m.notes["lone"]["p95"],
    }
    title = f"From an order to its mail, {len(ours)} rounds. A ratio below 1 is better."
    lines = [title, "", *HEAD, *render_rows(rows, ours, before)]
    if AGAIN in measurements:
        lines += ["", "The noise: the lone orders of ours twice in each round.", "", *HEAD_OF_NOISE]
        lines += render_rows({"p50 of a lone order, ms": lone_p50}, ours, measurements[AGAIN])
    return "\n".join(lines)
