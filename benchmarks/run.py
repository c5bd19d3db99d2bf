"""`python -m benchmarks.run`: the table of scenarios, each in alternating rounds, and the report.

python -m benchmarks.run                      everything; five rounds
python -m benchmarks.run --quick              three short rounds
python -m benchmarks.run product-one hot      only scenarios whose name begins with one of the words
python -m benchmarks.run --keep mail          the same, added to the results that are there
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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import needs, report
from benchmarks.figures import Figure
from benchmarks.lab import ROOT, Lab
from benchmarks.scenario import Scenario
from benchmarks.scenarios import SCENARIOS


async def rounds(lab: Lab, scenario: Scenario, count: int) -> dict[str, list[Figure]]:
    """The contestants' figures, by name. Each round runs all of them, in a new order."""
    try:
        contestants = await scenario.prepare(lab)
    except Exception as e:
        # Its load, too, may meet a stall; what is there already is not started again.
        print(f"  {scenario.name}: prepared again, {e!r}", flush=True)
        contestants = await scenario.prepare(lab)
    figures: dict[str, list[Figure]] = {name: [] for name in contestants}

    async def once(name: str) -> Figure:
        async with asyncio.timeout(scenario.most_seconds):
            return await contestants[name]()

    async def measured(name: str) -> Figure:
        try:
            return await once(name)
        except Exception as e:
            # A stall of the machine shall not cost the scenario; what fails twice does.
            print(f"  {scenario.name}, {name}: again, {e!r}", flush=True)
            figure = await once(name)
            figure.notes["again_after"] = repr(e)[:300]
            return figure

    rng = random.Random(time.time_ns())
    for number in range(count):
        order = list(contestants)
        rng.shuffle(order)
        for name in order:
            figures[name].append(await measured(name))
        shown = ", ".join(f"{n} {f[-1].value:,.5g}" for n, f in figures.items())
        print(f"  {scenario.name}, round {number + 1} of {count}: {shown}", flush=True)
    return figures


async def run(args: argparse.Namespace) -> bool:
    chosen = [s for s in SCENARIOS if _chosen(s, args.words)]
    directory = Path(tempfile.mkdtemp(prefix="market-bench-"))
    directory.chmod(0o755)
    kept = report.Raw.read(args.out) if args.keep else report.Raw()
    kept.machine = report.machine()
    done: set[str] = set()
    try:
        for group in dict.fromkeys(_group_of(s, args) for s in chosen):
            members = [s for s in chosen if _group_of(s, args) == group]
            try:
                await _group(group, members, directory / group, args, kept, done)
            except Exception as e:
                # A stack that does not start or stop: the other groups have stacks of their own.
                traceback.print_exc()
                for scenario in members:
                    if scenario.name not in done:
                        kept.failed[scenario.name] = repr(e)[:500]
            gc.collect()
    finally:
        if not args.keep_data:
            shutil.rmtree(directory, ignore_errors=True)
    report.write(kept, args.out)
    failed = [s.name for s in chosen if s.name not in done]
    print(f"The report is in {args.out}/report.md" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return not failed


def _chosen(scenario: Scenario, words: list[str]) -> bool:
    return not words or any(scenario.name.startswith(w) for w in words)


def _group_of(scenario: Scenario, args: argparse.Namespace) -> str:
    # A smoke run starts one stack for all that need one.
    return "stack" if args.smoke and scenario.stack else scenario.group


async def _group(
    name: str, members: list[Scenario], own: Path, args: argparse.Namespace, kept: report.Raw, done: set[str]
) -> None:
    lab = Lab(own, args.port_base, seconds=args.seconds, warmup=args.warmup, kafka=args.kafka)
    lab.quick, lab.smoke, lab.data, lab.minutes = args.quick, args.smoke, args.data, args.minutes
    lab.incomplete, lab.minutes_rate = args.incomplete, args.memory_rate
    if args.smoke:
        lab.open_seconds = 0.2
    started = time.perf_counter()
    if members[0].stack:
        async with lab:
            print(f"{name}: a stack of its own, up after {time.perf_counter() - started:.1f} s", flush=True)
            kept.kafka = lab.stack.kafka_kind
            await _scenarios(lab, members, args, kept, done)
    else:
        own.mkdir()
        try:
            await _scenarios(lab, members, args, kept, done)
        finally:
            lab.stop_peers()
    shutil.rmtree(own, ignore_errors=True)


async def _scenarios(
    lab: Lab, members: list[Scenario], args: argparse.Namespace, kept: report.Raw, done: set[str]
) -> None:
    """Writes the report after each, so that what comes later cannot lose it."""
    for scenario in members:
        started = time.perf_counter()
        print(f"{scenario.name}: {scenario.goal}", flush=True)
        load_before = os.getloadavg()[0]
        try:
            figures = await rounds(lab, scenario, scenario.rounds or args.rounds)
            rows = scenario.judge(figures)
        except Exception as e:
            kept.failed[scenario.name] = repr(e)[:500]
            traceback.print_exc()
            print(f"  {scenario.name} FAILED: {e}", flush=True)
            report.write(kept, args.out)
            continue
        finally:
            lab.pin()
        done.add(scenario.name)
        took = time.perf_counter() - started
        kept.add(scenario, figures, rows, seconds=took, load=load_before, args=args)
        for row in rows:
            to_peer = f"{row.ratio_to_peer:.2f}x the peer" if row.ratio_to_peer is not None else ""
            to_limit = f"{row.ratio_to_limit:.2f} of the limit" if row.ratio_to_limit is not None else ""
            print(f"  => {row.scenario}: {row.ours} {row.unit}; {to_peer} {to_limit}; met: {row.met}", flush=True)
        print(f"  {scenario.name} took {took:.0f} s", flush=True)
        report.write(kept, args.out)


def main(
    argv: Sequence[str] | None = None, *, find_missing: Callable[[Iterable[str]], list[str]] = needs.missing
) -> None:
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
    parser.add_argument(
        "--keep-data", action="store_true", help="leave the stack's data and logs in the temporary folder"
    )
    parser.add_argument(
        "--data", type=Path, help="a file in the Online Retail format for the replay; default: one like it is made up"
    )
    parser.add_argument("--minutes", type=float, help="of load in the memory scenario; default: 30")
    parser.add_argument("--memory-rate", type=float, default=50, help="orders/s of that load")
    parser.add_argument(
        "--incomplete", action="store_true", help="leave out the peers whose packages are missing, instead of refusing"
    )
    args = parser.parse_args(argv)
    wanted = [need for s in SCENARIOS if _chosen(s, args.words) for need in s.peers]
    if (missing := find_missing(wanted)) and not (args.smoke or args.incomplete):
        parser.error(
            f"the peers need {' and '.join(missing)}. `make bench` installs the packages; --incomplete measures without these peers, "
            "and their rows are not judged"
        )
    rounds, seconds, warmup = (1, 0.3, 0.1) if args.smoke else (3, 2.0, 0.5) if args.quick else (5, 3.0, 0.7)
    args.rounds = args.rounds or rounds
    args.seconds = args.seconds or seconds
    args.warmup = warmup if args.warmup is None else args.warmup
    good = asyncio.run(run(args))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
