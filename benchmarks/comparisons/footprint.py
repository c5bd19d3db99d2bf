"""The cold start to the first order, and the memory at rest, compared with an earlier build."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.comparisons.tables import HEAD, Rows, render_rows
from benchmarks.market_up import market_up
from benchmarks.measurements import Measurement
from benchmarks.scenario import Contestants, Measurements
from benchmarks.scenarios.footprint import place_first_order, pss_mib

# Until the memory is measured.
REST_SECONDS = 10.0


def kafkas(kafka: str) -> Sequence[str]:
    """Return the brokers with which the shop is started: all that can run here, if `kafka` is "auto"."""
    if kafka != "auto":
        return [kafka]
    return ["embedded", "apache"] if shutil.which("java") and shutil.which("mvn") else ["embedded"]


def prepare(
    commands: Mapping[str, Path],
    directory: Path,
    port_base: int,
    kafka: str,
    rest_seconds: float = REST_SECONDS,
) -> Contestants:
    """Return a contestant for each build. `commands`: `market` of each build."""

    def contestant(name: str, command: Path) -> Callable[[], Awaitable[Measurement]]:
        return lambda: measure(command, directory / f"{name}-cold", port_base, kafka, rest_seconds)

    return {name: contestant(name, command) for name, command in commands.items()}


async def measure(command: Path, directory: Path, port_base: int, kafka: str, rest_seconds: float) -> Measurement:
    """Start the shop of a build with an empty data directory, and place an order.

    The value is the seconds until then. `notes`: the proportional set sizes of the resting shop in MiB.
    """
    started = time.perf_counter()
    async with market_up(directory, port_base, kafka=kafka, command=[command]) as shop:
        await place_first_order(shop)
        seconds = time.perf_counter() - started
        await asyncio.sleep(rest_seconds)
        sizes = await asyncio.to_thread(pss_mib, shop.process.pid)
    return Measurement(value=seconds, notes={"MiB": sum(sizes.values()), "MiB_by_process": sizes})


def memory_at_rest(measurement: Measurement) -> float:
    """Return the proportional set size of the resting shop, in MiB."""
    return float(measurement.notes["MiB"])


def render(starts: Mapping[str, Measurements]) -> str:
    """Return the comparison as Markdown. `starts`: the measurements by scenario, one for each broker."""
    title = "`market up` until the first order is placed, and the memory at rest. A ratio below 1 is better."
    lines = [title, "", *HEAD]
    for name, measurements in starts.items():
        rows: Rows = {f"{name}, s": lambda m: m.value, f"memory at rest after {name}, MiB": memory_at_rest}
        lines += render_rows(rows, measurements["ours"], measurements["before"])
    return "\n".join(lines)
