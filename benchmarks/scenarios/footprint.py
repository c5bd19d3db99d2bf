"""The cold start of the whole shop, and its memory."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from market_dev.stack import processes
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options

from benchmarks.market_up import MarketUp, market_up
from benchmarks.measurements import Measurement, Row, Spread
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare, values
from benchmarks.testbed import Testbed

COLD_START = "cold start: `market up` to the first order placed"
MAX_COLD_START_SECONDS = 5
MAX_MEMORY_MIB = 1e9 / 2**20
# By which the mean of the last third of the load may exceed that of the first third.
MAX_GROWTH = 0.05
MEMORY_GOAL = f"< 1 GB; the last third of the load grows by less than {MAX_GROWTH:.0%} over the first"


async def prepare_cold_start(testbed: Testbed) -> Contestants:
    def whole_shop(kafka: str) -> Any:
        async def measure() -> Measurement:
            started = time.perf_counter()
            async with market_up(testbed.directory / "cold", testbed.port_base, kafka=kafka) as shop:
                ready = time.perf_counter() - started
                await place_first_order(shop)
                seconds = time.perf_counter() - started
            return Measurement(value=seconds, notes={"ready": round(ready, 2)})

        return measure

    def servers_only(kafka: str) -> Any:
        async def measure() -> Measurement:
            directory = testbed.directory / "servers"
            stack = Stack(Options(directory, port_base=testbed.port_base, kafka=kafka, services=False))
            started = time.perf_counter()
            try:
                await stack.start()
                seconds = time.perf_counter() - started
            finally:
                await stack.stop()
                shutil.rmtree(directory, ignore_errors=True)
            return Measurement(value=seconds)

        return measure

    with_apache = not testbed.smoke and shutil.which("java") and shutil.which("mvn")
    contestants = {}
    for kafka in ("embedded", "apache") if with_apache else ("embedded",):
        contestants[f"ours {kafka}"] = whole_shop(kafka)
        contestants[f"limit {kafka}"] = servers_only(kafka)
    return contestants


async def place_first_order(shop: MarketUp) -> None:
    """Order a product of the demo catalogue."""
    # With urllib, since importing httpx takes half a second.
    page = await asyncio.to_thread(_call, f"{shop.urls['products']}/api/product?limit=20")
    product = next(i["id"] for i in page["items"] if i["available"])
    body = {"user": "ann", "email": "ann@example.test", "items": [{"product_id": product, "quantity": 1}]}
    await asyncio.to_thread(_call, f"{shop.urls['orders']}/api/order", body)


def _call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"content-type": "application/json"})
    with urlopen(request, timeout=10) as response:
        return json.load(response)


def judge_cold_start(measurements: Measurements) -> list[Row]:
    rows = []
    for kafka in ("embedded", "apache"):
        if f"ours {kafka}" not in measurements:
            continue
        broker = "Apache Kafka" if kafka == "apache" else "the embedded broker"
        names: dict[str, Any] = {"ours": f"ours {kafka}", "peer": None, "limit": f"limit {kafka}"}
        row = compare(measurements, f"{COLD_START}, {broker}", "s", f"<= {MAX_COLD_START_SECONDS} s", **names)
        spread = Spread.of(values(measurements[f"ours {kafka}"]))
        row.met = spread.median <= MAX_COLD_START_SECONDS
        row.remark = (
            f"the rounds took {spread.low:.1f} to {spread.high:.1f} s; the limit is the concurrent start of all "
            "servers "
            "without the services"
        )
        rows.append(row)
    return rows


_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def pss_mib(pid: int) -> dict[str, float]:
    """Return the proportional set size in MiB of the process and its descendants, by command."""
    found: dict[str, float] = {}
    for process in processes.tree(pid):
        with suppress(Exception):
            size = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
            words = process.cmdline()
            name = next((w for w in words if w.startswith("market")), Path(words[0]).name.split(":")[0].split()[0])
            found[name] = found.get(name, 0) + (int(size[1]) / 1024 if size else 0)
    return found


async def prepare_memory(testbed: Testbed) -> Contestants:
    minutes = testbed.memory_minutes or (0.03 if testbed.smoke else 1.0 if testbed.quick else 30.0)
    kafka = "embedded" if testbed.smoke else "auto"

    async def measure() -> Measurement:
        directory = testbed.directory / "memory"
        async with market_up(directory, testbed.port_base, kafka=kafka, empty=testbed.smoke) as shop:
            await asyncio.sleep(0.2 if testbed.smoke else 15)
            idle = pss_mib(shop.process.pid)
            testbed.product_ids = []
            ids = await testbed.fill(200)
            samples: list[dict[str, float]] = []

            sampling = asyncio.create_task(_sample(shop, samples, 1 if testbed.smoke else 10))
            placed, failures = await _load(testbed, ids, 60 * minutes)
            sampling.cancel()
            if not samples:
                # A sample took longer than the load.
                samples.append(await asyncio.to_thread(pss_mib, shop.process.pid))
        totals = [sum(s.values()) for s in samples]
        third = max(1, len(totals) // 3)
        return Measurement(
            value=max(totals),
            notes={
                "idle_MiB": round(sum(idle.values())),
                "idle_by_process": {k: round(v) for k, v in idle.items()},
                "kafka": kafka,
                "minutes": round(minutes, 1),
                "orders_per_second": testbed.memory_rate,
                "orders": placed,
                "failures": failures,
                "totals_MiB": [round(t) for t in totals],
                "first_third_MiB": round(sum(totals[:third]) / third),
                "last_third_MiB": round(sum(totals[-third:]) / third),
                "last_by_process": {k: round(v) for k, v in samples[-1].items()},
            },
        )

    return {"ours": measure}


async def _sample(shop: MarketUp, samples: list[dict[str, float]], interval_seconds: float) -> None:
    """Add the sizes of the shop's processes to `samples` until cancelled, and print the total about once a minute."""
    started = printed_at = time.monotonic()
    while True:
        samples.append(await asyncio.to_thread(pss_mib, shop.process.pid))
        if time.monotonic() - printed_at >= 60:
            printed_at = time.monotonic()
            minutes = (printed_at - started) / 60
            print(f"  memory after {minutes:.0f} minutes: {sum(samples[-1].values()):.0f} MiB", flush=True)
        await asyncio.sleep(interval_seconds)


async def _load(testbed: Testbed, ids: list[str], seconds: float) -> tuple[int, list[str]]:
    """Place orders, and query GraphQL now and then. Return the number of orders, and the failures.

    Failures of a busy machine are noted only, since this is about memory.
    """
    deadline = time.monotonic() + seconds
    placed = 0
    failures: list[str] = []
    query = {"query": "{ products { items { id name available } } }"}
    while time.monotonic() < deadline:
        remaining = max(1.0, deadline - time.monotonic())
        try:
            result = await testbed.load(
                port=testbed.port("orders"),
                workload="orders",
                params={"ids": ids, "email": "m", "seed": placed},
                connections=64,
                rate=testbed.memory_rate,
                warmup=0,
                seconds=min(50.0, remaining),
            )
            placed += result.succeeded
            await testbed.load(
                port=testbed.port("graphql"),
                workload="graphql",
                params=query,
                connections=8,
                rate=50,
                warmup=0,
                seconds=min(10.0, remaining),
            )
        except RuntimeError as e:
            failures.append(str(e)[:200])
    return placed, failures


def judge_memory(measurements: Measurements) -> list[Row]:
    notes = measurements["ours"][0].notes
    maximum = measurements["ours"][0].value
    growth = notes["last_third_MiB"] / notes["first_third_MiB"] - 1
    return [
        Row(
            scenario="memory of the whole shop, idle and under load",
            unit="MiB, max",
            ours=round(maximum),
            peer=None,
            limit=None,
            ratio_to_peer=None,
            ratio_to_limit=None,
            goal=MEMORY_GOAL,
            met=maximum < MAX_MEMORY_MIB and growth < MAX_GROWTH,
            remark=f"idle {notes['idle_MiB']} MiB; {notes['minutes']} minutes of load, {notes['orders']:,} orders; "
            f"mean of the first third {notes['first_third_MiB']}, of the last {notes['last_third_MiB']} MiB; "
            f"growth {growth:+.1%}",
        )
    ]


SCENARIOS = [
    Scenario(
        name="cold-start",
        title=COLD_START,
        goal="<= 5 s",
        prepare=prepare_cold_start,
        judge=judge_cold_start,
        group="cold",
        needs_stack=False,
        unit="s",
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="memory",
        title="memory of the whole shop (proportional set size)",
        goal=MEMORY_GOAL,
        prepare=prepare_memory,
        judge=judge_memory,
        group="memory",
        needs_stack=False,
        rounds=1,
        unit="MiB",
        timeout_seconds=3 * 3600,
    ),
]
