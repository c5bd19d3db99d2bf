"""From an order to its mail, compared with an earlier build: at a fixed rate, and one order at a time."""

from __future__ import annotations

import itertools

from benchmarks.comparisons.tables import HEAD, Rows, render_rows
from benchmarks.cpu import cpu_ms_per_operation
from benchmarks.load import LoadDriver
from benchmarks.market_up import MarketUp
from benchmarks.measurements import Measurement, percentiles
from benchmarks.scenario import Measurements
from benchmarks.scenarios.mails import MailLog
from benchmarks.testbed import outbox_drained

RATE = 300.0
_LOADED_SECONDS = 8.0
# One order every 0.25 s: the mail of the one before has arrived, and its event is removed.
_LONE_ORDERS = 20
_LONE_RATE = 4.0
_numbers = itertools.count()


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


async def measure(driver: LoadDriver, shop: MarketUp, product_ids: list[str]) -> Measurement:
    """Place orders one at a time, then at a fixed rate. The value is the p99 from order to mail at that rate, in ms.

    CPU per order is counted until the last mail has arrived and the outbox is empty, so that deferred work counts too.
    """
    lone_lags = await place(
        driver, shop, product_ids, connections=1, rate=_LONE_RATE, seconds=_LONE_ORDERS / _LONE_RATE
    )
    before = driver.cpu_seconds()
    lags = await place(driver, shop, product_ids, connections=64, rate=RATE, seconds=_LOADED_SECONDS)
    cpu_ms = cpu_ms_per_operation(before, driver.cpu_seconds(), len(lags))
    latency, lone = percentiles(lags), percentiles(lone_lags)
    return Measurement(
        value=latency.p99,
        operations=len(lags),
        latency=latency,
        open_loop_rate=RATE,
        cpu_ms=cpu_ms,
        notes={"lone": {"p50": lone.p50, "p95": lone.p95}},
    )


def render(measurements: Measurements) -> str:
    """Return the comparison as Markdown."""
    ours, before = measurements["ours"], measurements["before"]
    load = f"at {RATE:g} orders/s, ms"
    rows: Rows = {
        f"CPU per order {load}": lambda m: sum(m.cpu_ms.values()),
        f"p50 {load}": lambda m: m.latency.p50 if m.latency else 0,
        f"p99 {load}": lambda m: m.value,
        "p50 of a lone order, ms": lambda m: m.notes["lone"]["p50"],
        "p95 of a lone order, ms": lambda m: m.notes["lone"]["p95"],
    }
    title = f"From an order to its mail, {len(ours)} rounds. A ratio below 1 is better."
    return "\n".join([title, "", *HEAD, *render_rows(rows, ours, before)])
