"""`python -m benchmarks.profile NAME`: profiles a service under load with py-spy.

Writes `profile-NAME.md` (a table of functions) beside the results; the report includes it. `--label` names the state
of the code: a later run with another label is appended to the same file.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from benchmarks.scenarios.gateway import QUERIES
from benchmarks.testbed import Testbed

_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^:]+):\d+\)$")
# Threads that wait for work, which py-spy cannot always distinguish from busy ones.
_IDLE_FRAMES = ("Thread.run (", "_worker (", "Publisher._poll (")


@dataclass
class Profile:
    """Samples by function: `own` in the function itself, `cumulative` including what it calls."""

    process: str
    own: Counter[str] = field(default_factory=Counter)
    cumulative: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    rate: float = 0.0
    cpu_ms: float = 0.0


def _process_and_load(name: str, testbed: Testbed, ids: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the process to profile, and the load."""
    orders = {"port": testbed.port("orders"), "workload": "orders", "params": {"ids": ids}}
    products, inventory, graphql = (testbed.port(n) for n in ("products", "inventory", "graphql"))
    query, variables = QUERIES["list"]
    page = {"path": "/api/product?limit=20"}
    hot = {"kind": "reserve", "workload": "reservations", "params": {"ids": ids[:1]}, "connections": 256}
    reserve = {"kind": "grpc", "workload": "reserve", "params": {"ids": ids}, "connections": 8, "streams": 8}
    return {
        "product-one": ("products", {"port": products, "workload": "products", "params": {"ids": ids}}),
        "product-list": ("products", {"port": products, "workload": "get", "params": page}),
        "order": ("orders", orders),
        "order-inventory": ("inventory", orders),
        "order-products": ("products", orders),
        "reserve-hot": ("inventory", {"port": inventory, **hot}),
        "reserve-one": ("inventory", {"port": inventory, **reserve}),
        "check-100": ("inventory", {"port": inventory, **reserve, "workload": "check"}),
        "import": ("products", {"port": products, "workload": "catalogue", "params": {"prefix": "prof"}}),
        "graphql-order": ("graphql", {"port": graphql, "workload": "graphql_orders", "params": {"ids": ids}}),
        "graphql-list": (
            "graphql",
            {"port": graphql, "workload": "graphql", "params": {"query": query, "variables": variables}},
        ),
    }[name]


async def profile(name: str, seconds: float, port_base: int) -> Profile:
    """Run the load of that name and sample its process with py-spy."""
    directory = Path(tempfile.mkdtemp(prefix="market-profile-"))
    directory.chmod(0o755)
    try:
        async with Testbed(directory / "stack", port_base, seconds=seconds + 1, warmup=1) as testbed:
            ids = await testbed.fill()
            testbed.stack.pause("notifications")
            process, load = _process_and_load(name, testbed, ids)
            if not name.startswith(("order", "graphql")):
                testbed.pin(process)
            await testbed.load(**{**load, "seconds": 1})
            stacks = directory / "stacks"
            loading = asyncio.create_task(testbed.load_and_cpu(**load))
            await asyncio.sleep(1.3)
            py_spy = [Path(sys.executable).parent / "py-spy", "record", "-p", str(testbed.pids[process])]
            options = ["-d", str(int(seconds)), "-r", "400", "-f", "raw", "-o", stacks]
            await asyncio.to_thread(subprocess.run, [*py_spy, *options], check=True, capture_output=True)
            result, cpu_ms = await loading
            testbed.stack.resume("notifications")
            found = Profile(process, rate=result.rate, cpu_ms=cpu_ms[process])
            for line in stacks.read_text().splitlines():
                _count(found, line)
            return found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _count(profile: Profile, line: str) -> None:
    """Add a line of py-spy's raw format: frames separated by semicolons, then the number of samples."""
    stack, _, count = line.rpartition(" ")
    frames = [_shorten(frame) for frame in stack.split(";")]
    if frames[-1].startswith(_IDLE_FRAMES):
        return
    if frames[-1].startswith("Runner.run"):
        frames[-1] = "the event loop: uvloop's I/O and waiting, C code of gRPC and asyncpg"
    profile.samples += int(count)
    profile.own[frames[-1]] += int(count)
    for frame in set(frames):
        profile.cumulative[frame] += int(count)


def _shorten(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    file = re.sub(r"^.*/(site-packages|src|lib/python3\.\d+)/", "", found["file"])
    return f"{found['name']} ({file})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--label", default="present state")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--port-base", type=int, default=29600)
    parser.add_argument("--top", type=int, default=18)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = asyncio.run(profile(args.name, args.seconds, args.port_base))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"profile-{args.name}.md"
    text = path.read_text("utf-8") if path.exists() else f"## Profile of {found.process}: {args.name}\n"
    text += f"\n### {args.label}\n\n"
    text += (
        f"{found.rate:,.0f} operations/s under py-spy, {found.cpu_ms:.3f} ms of CPU per operation in "
        f"{found.process}.\n\n"
    )
    text += "| own % | function | | cumulative % | function |\n|---|---|---|---|---|\n"
    # The eight functions with the highest cumulative share are the event loop and what runs it.
    cumulative = found.cumulative.most_common(args.top + 8)[8:]
    for (a, n), (b, m) in zip(found.own.most_common(args.top), cumulative, strict=False):
        text += f"| {100 * n / found.samples:.1f} | {a} | | {100 * m / found.samples:.1f} | {b} |\n"
    path.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
