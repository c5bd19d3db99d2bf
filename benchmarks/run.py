"""`python -m benchmarks.run`: the table of scenarios, each in alternating rounds, and the report.

python -m benchmarks.run                      everything; five rounds
python -m benchmarks.run --quick              three short rounds
python -m benchmarks.run product-one hot      only scenarios whose name begins with one of the words
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.figures import Figure
from benchmarks.lab import ROOT, Lab
from benchmarks.scenario import Scenario
from benchmarks.scenarios import SCENARIOS


async def rounds(lab: Lab, scenario: Scenario, count: int) -> dict[str, list[Figure]]:
    """The contestants' figures, by name. Each round runs all of them, in a new order."""
    contestants = await scenario.prepare(lab)
    figures: dict[str, list[Figure]] = {name: [] for name in contestants}
    rng = random.Random(time.time_ns())
    for number in range(count):
        order = list(contestants)
        rng.shuffle(order)
        for name in order:
            figures[name].append(await contestants[name]())
        shown = ", ".join(f"{n} {f[-1].value:,.5g}" for n, f in figures.items())
        print(f"  {scenario.name}, round {number + 1} of {count}: {shown}", flush=True)
    return figures


async def run(args: argparse.Namespace) -> bool:
    chosen = [s for s in SCENARIOS if not args.words or any(s.name.startswith(w) for w in args.words)]
    directory = Path(tempfile.mkdtemp(prefix="market-bench-"))
    directory.chmod(0o755)
    kept = report.Raw.read(args.out) if args.keep else report.Raw()
    kept.machine = report.machine()
    failed = []
    try:
        for group in dict.fromkeys(s.group for s in chosen):
            members = [s for s in chosen if s.group == group]
            own = directory / group
            lab = Lab(own, args.port_base, seconds=args.seconds, warmup=args.warmup, kafka=args.kafka)
            lab.quick, lab.smoke, lab.data, lab.minutes = args.quick, args.smoke, args.data, args.minutes
            lab.minutes_rate = args.memory_rate
            if members[0].stack:
                async with lab:
                    kept.kafka = lab.stack.kafka_kind
                    failed += await _group(lab, members, args, kept)
            else:
                own.mkdir()
                failed += await _group(lab, members, args, kept)
            shutil.rmtree(own, ignore_errors=True)
            gc.collect()
    finally:
        if not args.keep_data:
            shutil.rmtree(directory, ignore_errors=True)
    report.write(kept, args.out)
    print(f"The report is in {args.out}/report.md" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return not failed


async def _group(lab: Lab, members: list[Scenario], args: argparse.Namespace, kept: Any) -> list[str]:
    failed = []
    for scenario in members:
        started = time.perf_counter()
        print(f"{scenario.name}: {scenario.goal}", flush=True)
        load_before = os.getloadavg()[0]
        try:
            figures = await rounds(lab, scenario, scenario.rounds or args.rounds)
            rows = scenario.judge(figures)
        except Exception as e:
            failed.append(scenario.name)
            traceback.print_exc()
            print(f"  {scenario.name} FAILED: {e}", flush=True)
            continue
        finally:
            lab.pin()
        kept.add(scenario, figures, rows, seconds=time.perf_counter() - started, load=load_before, args=args)
        for row in rows:
            to_peer = f"{row.ratio_to_peer:.2f}x the peer" if row.ratio_to_peer is not None else ""
            to_limit = f"{row.ratio_to_limit:.2f} of the limit" if row.ratio_to_limit is not None else ""
            print(f"  => {row.scenario}: {row.ours} {row.unit}; {to_peer} {to_limit}; met: {row.met}", flush=True)
        report.write(kept, args.out)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="scenarios whose name begins with one of these; default: all")
    parser.add_argument("--quick", action="store_true", help="three rounds of two seconds")
    parser.add_argument("--smoke", action="store_true", help="one round of a second, to see that it works")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--warmup", type=float)
    parser.add_argument("--port-base", type=int, default=29500)
    parser.add_argument("--kafka", default="auto", choices=["auto", "apache", "embedded"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--keep", action="store_true", help="add to the results that are there")
    parser.add_argument("--keep-data", action="store_true", help="leave the stack's data and logs in the temporary folder")
    parser.add_argument("--data", type=Path, help="a file in the Online Retail format for the replay; default: one like it is made up")
    parser.add_argument("--minutes", type=float, help="of load in the memory scenario; default: 30")
    parser.add_argument("--memory-rate", type=float, default=50, help="orders/s of that load")
    args = parser.parse_args()
    rounds, seconds, warmup = (1, 0.5, 0.2) if args.smoke else (3, 2.0, 0.5) if args.quick else (5, 4.0, 1.0)
    args.rounds = args.rounds or rounds
    args.seconds = args.seconds or seconds
    args.warmup = warmup if args.warmup is None else args.warmup
    good = asyncio.run(run(args))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
