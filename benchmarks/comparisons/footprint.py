"""The cold start to the first order, and the memory at rest, compared with an earlier build."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.comparisons.tables import HEAD, Rows, render_rows
from benchmarks.market_up import market_up
from benchmarks.measurements import Measurement
from benchmarks.scenario import Measurements
from benchmarks.scenarios.footprint import place_first_order, pss_mib

# Until the memory is measured.
_REST_SECONDS = 15


async def measure(root: Path, directory: Path, port_base: int, kafka: str) -> Measurement:
    """Start the shop of the build in `root` with an empty data directory, and place an order.

    The value is the seconds until then. `notes`: the proportional set sizes of the resting shop in MiB.
    """
    started = time.perf_counter()
    async with market_up(directory, port_base, kafka=kafka, command=[root / ".venv" / "bin" / "market"]) as shop:
        await place_first_order(shop)
        seconds = time.perf_counter() - started
        await asyncio.sleep(_REST_SECONDS)
        sizes = await asyncio.to_thread(pss_mib, shop.process.pid)
    return Measurement(value=seconds, notes={"MiB": sum(sizes.values()), "MiB_by_process": sizes})


def render(starts: Mapping[str, Measurements]) -> str:
    """Return the comparison as Markdown. `starts`: the measurements by scenario, one for each broker."""
    title = "`market up` until the first order is placed, and the memory at rest. A ratio below 1 is better."
    lines = [title, "", *HEAD]
    for name, measurements in starts.items():
        rows: Rows = {f"{name}, s": lambda m: m.value, f"memory at rest after {name}, MiB": lambda m: m.notes["MiB"]}
        lines += render_rows(rows, measurements["ours"], measurements["before"])
    return "\n".join(lines)
