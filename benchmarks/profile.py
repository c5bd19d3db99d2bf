"""`python -m benchmarks.profile NAME`: where a service's time goes under load, by py-spy.

Writes `profile-NAME.md` (a table of functions) beside the results; the report takes it in. `--label` names the state of
the code: a later run under another label is added to the same file.
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
from pathlib import Path
from typing import Any

from benchmarks.lab import ROOT, Lab
from benchmarks.scenarios.gateway import QUERIES

_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^:]+):\d+\)$")
# Threads that wait for work, which py-spy cannot always tell from those that do some.
_RESTING = ("Thread.run (", "_worker (", "Publisher._poll (")


def _spec(name: str, lab: Lab, ids: list[str]) -> tuple[str, dict[str, Any]]:
    """The process looked at, and the load."""
    orders = {"port": lab.port("orders"), "workload": "orders", "params": {"ids": ids}}
    query, variables = QUERIES["list"]
    return {
        "product-one": ("products", {"port": lab.port("products"), "workload": "products", "params": {"ids": ids}}),
        "product-list": (
            "products",
            {"port": lab.port("products"), "workload": "get", "params": {"path": "/api/product?limit=20"}},
        ),
        "order": ("orders", orders),
        "order-inventory": ("inventory", orders),
        "order-products": ("products", orders),
        "reserve-hot": (
            "inventory",
            {
                "kind": "reserve",
                "port": lab.port("inventory"),
                "workload": "reservations",
                "params": {"ids": ids[:1]},
                "connections": 256,
            },
        ),
        "reserve-one": (
            "inventory",
            {
                "kind": "grpc",
                "port": lab.port("inventory"),
                "workload": "reserve",
                "params": {"ids": ids},
                "connections": 8,
                "streams": 8,
            },
        ),
        "import": ("products", {"port": lab.port("products"), "workload": "catalogue", "params": {"prefix": "prof"}}),
        "graphql-order": (
            "graphql",
            {"port": lab.port("graphql"), "workload": "graphql_orders", "params": {"ids": ids}},
        ),
        "graphql-list": (
            "graphql",
            {"port": lab.port("graphql"), "workload": "graphql", "params": {"query": query, "variables": variables}},
        ),
    }[name]


async def profile(
    name: str, seconds: float, port_base: int
) -> tuple[str, Counter[str], Counter[str], int, float, float]:
    """The process, samples by function (itself; with what it calls), all samples, the rate, CPU ms per operation."""
    directory = Path(tempfile.mkdtemp(prefix="market-profile-"))
    directory.chmod(0o755)
    try:
        async with Lab(directory / "stack", port_base, seconds=seconds + 1, warmup=1) as lab:
            ids = await lab.fill()
            lab.stack.pause("notifications")
            process, load = _spec(name, lab, ids)
            if not name.startswith(("order", "graphql")):
                lab.pin(process)
            await lab.load(**{**load, "seconds": 1})
            folded = directory / "folded"
            running = asyncio.create_task(lab.measure(**load))
            await asyncio.sleep(1.3)
            spy = Path(sys.executable).parent / "py-spy"
            await asyncio.to_thread(
                subprocess.run,
                [
                    spy,
                    "record",
                    "-p",
                    str(lab.pids[process]),
                    "-d",
                    str(int(seconds)),
                    "-r",
                    "400",
                    "-f",
                    "raw",
                    "-o",
                    folded,
                ],
                check=True,
                capture_output=True,
            )
            result, cpu = await running
            lab.stack.resume("notifications")
            own: Counter[str] = Counter()
            whole: Counter[str] = Counter()
            total = 0
            for line in folded.read_text().splitlines():
                stack, _, count = line.rpartition(" ")
                frames = [_short(f) for f in stack.split(";")]
                if frames[-1].startswith(_RESTING):
                    continue
                if frames[-1].startswith("Runner.run"):
                    frames[-1] = (
                        "the event loop itself: uvloop's reading, writing and waiting, gRPC's and asyncpg's C code"
                    )
                total += int(count)
                own[frames[-1]] += int(count)
                for frame in set(frames):
                    whole[frame] += int(count)
            return process, own, whole, total, result.rate, cpu[process]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _short(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    file = re.sub(r"^.*/(site-packages|src|lib/python3\.\d+)/", "", found["file"])
    return f"{found['name']} ({file})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--label", default="as it is")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--port-base", type=int, default=29600)
    parser.add_argument("--top", type=int, default=18)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    process, own, whole, total, rate, cpu = asyncio.run(profile(args.name, args.seconds, args.port_base))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"profile-{args.name}.md"
    text = path.read_text("utf-8") if path.exists() else f"## Profile of {process}: {args.name}\n"
    text += f"\n### {args.label}\n\n{rate:,.0f} a second under py-spy, {cpu:.3f} ms of CPU each in {process}.\n\n"
    text += "| itself % | function | | with callees % | function |\n|---|---|---|---|---|\n"
    for (a, n), (b, m) in zip(own.most_common(args.top), whole.most_common(args.top + 8)[8:], strict=False):
        text += f"| {100 * n / total:.1f} | {a} | | {100 * m / total:.1f} | {b} |\n"
    path.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
