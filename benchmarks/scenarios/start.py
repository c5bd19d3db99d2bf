"""The cold start of everything, and the memory of everything."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from market_dev.stack import processes
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options

from benchmarks.figures import Figure, Row, Spread
from benchmarks.lab import ROOT, Lab
from benchmarks.scenario import Contestants, Figures, Scenario, compared

COLD = "cold start: `market up` to the first order placed"


@asynccontextmanager
async def up(
    lab: Lab, kafka: str, *, empty: bool = False
) -> AsyncIterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """`market up` in a process of its own, with an empty data directory; what `--json` says."""
    directory = lab.directory / "cold"
    file = lab.directory / "stack.json"
    args = [
        "up",
        "--data",
        str(directory),
        "--port-base",
        str(lab.base),
        "--kafka",
        kafka,
        "--json",
        str(file),
        *(["--empty"] if empty else []),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "market_dev.commands.cli", *args],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=processes.bound_to_parent(),
    )
    try:
        while not file.exists():
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"market up ended: {process.stderr.read().decode()[-1000:]}")
            await asyncio.sleep(0.01)
        yield process, json.loads(file.read_text())
    finally:
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.to_thread(process.communicate, timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)


async def cold(lab: Lab) -> Contestants:
    def whole(kafka: str) -> Any:
        async def one() -> Figure:
            started = time.perf_counter()
            async with up(lab, kafka) as (_, facts):
                ready = time.perf_counter() - started
                # By urllib and not by a client that takes half a second to be imported.
                page = await asyncio.to_thread(_call, f"{facts['urls']['products']}/api/product?limit=20")
                product = next(i["id"] for i in page["items"] if i["available"])
                body = {"user": "ann", "email": "ann@example.test", "items": [{"product_id": product, "quantity": 1}]}
                await asyncio.to_thread(_call, f"{facts['urls']['orders']}/api/order", body)
                seconds = time.perf_counter() - started
            return Figure(value=seconds, notes={"ready": round(ready, 2)})

        return one

    def stores(kafka: str) -> Any:
        async def one() -> Figure:
            stack = Stack(Options(lab.directory / "stores", port_base=lab.base, kafka=kafka, services=False))
            started = time.perf_counter()
            try:
                await stack.start()
                seconds = time.perf_counter() - started
            finally:
                await stack.stop()
                shutil.rmtree(lab.directory / "stores", ignore_errors=True)
            return Figure(value=seconds)

        return one

    kinds = (
        ["embedded"]
        if lab.smoke or shutil.which("java") is None or shutil.which("mvn") is None
        else ["embedded", "apache"]
    )
    return {f"{who} {kind}": make(kind) for kind in kinds for who, make in (("ours", whole), ("limit", stores))}


def _call(url: str, body: Any = None) -> Any:
    import urllib.request

    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def judge_cold(figures: Figures) -> list[Row]:
    rows = []
    for kind in ("embedded", "apache"):
        if f"ours {kind}" in figures:
            name = "Apache Kafka" if kind == "apache" else "the embedded broker"
            row = compared(
                figures, f"{COLD}, {name}", "s", "<= 5 s", ours=f"ours {kind}", peer=None, limit=f"limit {kind}"
            )
            spread = Spread.of([f.value for f in figures[f"ours {kind}"]])
            row.met = spread.median <= 5
            row.remark = (
                f"the rounds: {spread.low:.1f} to {spread.high:.1f} s; the limit is the stores' own starts, all at once"
            )
            rows.append(row)
    return rows


_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def pss(pid: int) -> dict[str, float]:
    """Proportional set size in MiB of the process and its descendants, by command."""
    found: dict[str, float] = {}
    for process in processes.tree(pid):
        with suppress(Exception):
            size = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
            words = process.cmdline()
            name = next((w for w in words if w.startswith("market.")), Path(words[0]).name.split(":")[0].split()[0])
            found[name] = found.get(name, 0) + (int(size[1]) / 1024 if size else 0)
    return found


async def memory(lab: Lab) -> Contestants:
    minutes = lab.minutes or (0.03 if lab.smoke else 1.0 if lab.quick else 30.0)
    kafka = "embedded" if lab.smoke else "auto"

    async def ours() -> Figure:
        async with up(lab, kafka, empty=lab.smoke) as (process, _):
            await asyncio.sleep(0.2 if lab.smoke else 15)
            idle = pss(process.pid)
            lab.ids = []
            await lab.fill(200)
            samples: list[dict[str, float]] = []

            async def sample() -> None:
                while True:
                    samples.append(await asyncio.to_thread(pss, process.pid))
                    await asyncio.sleep(1 if lab.smoke else 10)

            sampling = asyncio.create_task(sample())
            until = time.monotonic() + 60 * minutes
            placed = 0
            failed: list[str] = []
            while time.monotonic() < until:
                left = max(1.0, until - time.monotonic())
                orders = {"ids": lab.ids, "email": "m", "seed": placed}
                try:
                    # Refusals of a busy machine are noted: here only the memory is looked at.
                    result = await lab.load(
                        port=lab.port("orders"),
                        workload="orders",
                        params=orders,
                        connections=64,
                        rate=50,
                        warmup=0,
                        seconds=min(50.0, left),
                    )
                    placed += result.good
                    query = "{ products { items { id name available } } }"
                    await lab.load(
                        port=lab.port("graphql"),
                        workload="graphql",
                        params={"query": query},
                        connections=8,
                        rate=50,
                        warmup=0,
                        seconds=min(10.0, left),
                    )
                except RuntimeError as e:
                    failed.append(str(e)[:200])
            sampling.cancel()
            if not samples:
                # It took longer than the load.
                samples.append(await asyncio.to_thread(pss, process.pid))
        totals = [sum(s.values()) for s in samples]
        third = max(1, len(totals) // 3)
        return Figure(
            value=max(totals),
            notes={
                "idle_MiB": round(sum(idle.values())),
                "idle_by_process": {k: round(v) for k, v in idle.items()},
                "kafka": kafka,
                "minutes": round(minutes, 1),
                "orders_per_second": lab.minutes_rate,
                "orders": placed,
                "failed": failed,
                "totals_MiB": [round(t) for t in totals],
                "first_third_MiB": round(sum(totals[:third]) / third),
                "last_third_MiB": round(sum(totals[-third:]) / third),
                "last_by_process": {k: round(v) for k, v in samples[-1].items()},
            },
        )

    return {"ours": ours}


def judge_memory(figures: Figures) -> list[Row]:
    notes = figures["ours"][0].notes
    most = figures["ours"][0].value
    # Caches fill up at first, and that they are bounded is what is asked: of the last third, its two halves are compared.
    totals = notes["totals_MiB"]
    half = max(1, len(totals) // 6)
    grown = sum(totals[-half:]) / max(1, sum(totals[-2 * half : -half] or totals[-half:])) - 1
    return [
        Row(
            scenario="memory of everything, idle and under load",
            unit="MiB, most",
            ours=round(most),
            peer=None,
            limit=None,
            ratio_to_peer=None,
            ratio_to_limit=None,
            goal="< 1 GB, flat",
            met=most < 1e9 / 2**20 and grown < 0.02,
            remark=f"idle {notes['idle_MiB']} MiB; {notes['minutes']} minutes of load, {notes['orders']:,} orders; "
            f"mean of the first third {notes['first_third_MiB']}, of the last {notes['last_third_MiB']} MiB; "
            f"within the last third {grown:+.1%}",
        )
    ]


SCENARIOS = [
    Scenario(
        name="cold-start",
        title=COLD,
        goal="<= 5 s",
        prepare=cold,
        judge=judge_cold,
        group="cold",
        stack=False,
        unit="s",
    ),
    Scenario(
        name="memory",
        title="memory of everything (proportional set size)",
        goal="< 1 GB, flat",
        prepare=memory,
        judge=judge_memory,
        group="memory",
        stack=False,
        rounds=1,
        unit="MiB",
        most_seconds=3 * 3600,
    ),
]
