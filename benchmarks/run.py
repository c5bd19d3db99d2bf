"""`python -m benchmarks.run`: runs the scenarios, each in alternating rounds, and writes the report.

python -m benchmarks.run                      everything, in five rounds
python -m benchmarks.run --quick              three short rounds
python -m benchmarks.run product-one hot      only the scenario of this name, and those whose names begin with the other
python -m benchmarks.run --keep mail          the same, added to the existing results
python -m benchmarks.run --ref v1 before      only the comparison with an earlier commit
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
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import report, requirements
from benchmarks.comparisons.builds import NotInRepository
from benchmarks.measurements import Measurement
from benchmarks.scenario import Contestants, Measurements, Scenario
from benchmarks.scenarios.all import SCENARIOS
from benchmarks.testbed import Testbed

_NAMES = {scenario.name for scenario in SCENARIOS}
# By group. A million products, with their words and indexes, have 2 GB; the 48 MB of the local stack are for thousands.
POSTGRES_SETTINGS = {"million": {"shared_buffers": "1GB"}}
# The commit before the work on speed whose goals the scenarios before-... judge.
BEFORE = "8aed7cce613a"
# How long a failed measurement waits before it is repeated: circuit breakers may be open after a stall.
RECOVERY_SECONDS = 5.0


async def measure(
    testbed: Testbed, scenario: Scenario, rounds: int, *, recovery_seconds: float = RECOVERY_SECONDS
) -> Measurements:
    """Return the measurements of all contestants. Raises what a contestant raises twice in a row."""
    try:
        contestants = await scenario.prepare(testbed)
    except NotInRepository:
        raise
    except Exception as e:
        # The machine may stall during preparation too; what was started already is not started again.
        print(f"  {scenario.name}: preparing again after {e!r}", flush=True)
        contestants = await scenario.prepare(testbed)
    return await alternate(scenario.name, contestants, rounds, scenario.timeout_seconds, recovery_seconds)


async def alternate(
    name: str,
    contestants: Contestants,
    rounds: int,
    timeout_seconds: float,
    recovery_seconds: float = RECOVERY_SECONDS,
) -> Measurements:
    """Measure all contestants in each round, in a new random order.

    A failed measurement is repeated once, after `recovery_seconds`.
    """
    measurements: Measurements = {contestant: [] for contestant in contestants}

    async def attempt(contestant: str) -> Measurement:
        async with asyncio.timeout(timeout_seconds):
            return await contestants[contestant]()

    async def measure_round(contestant: str) -> Measurement:
        try:
            return await attempt(contestant)
        except Exception as e:
            # A stall of the machine must not fail the scenario; a second failure does.
            print(f"  {name}, {contestant}: measuring again after {e!r}", flush=True)
            await asyncio.sleep(recovery_seconds)
            measured = await attempt(contestant)
            measured.notes["retried_after"] = repr(e)[:300]
            return measured

    rng = random.Random(time.time_ns())
    for number in range(1, rounds + 1):
        order = list(contestants)
        rng.shuffle(order)
        for contestant in order:
            measurements[contestant].append(await measure_round(contestant))
        values = ", ".join(f"{c} {m[-1].value:,.5g}" for c, m in measurements.items())
        print(f"  {name}, round {number} of {rounds}: {values}", flush=True)
    return measurements


async def run(args: argparse.Namespace) -> bool:
    """Run the chosen scenarios and write the report. Return whether all succeeded."""
    chosen = [s for s in SCENARIOS if _is_chosen(s, args.words)]
    directory = Path(tempfile.mkdtemp(prefix="market-bench-"))
    directory.chmod(0o755)
    results = report.Raw.read(args.out) if args.keep else report.Raw()
    results.machine = report.describe_machine()
    done: set[str] = set()
    try:
        for group in dict.fromkeys(_group_of(s, args) for s in chosen):
            members = [s for s in chosen if _group_of(s, args) == group]
            try:
                await _run_group(group, members, directory / group, args, results, done)
            except Exception as e:
                # A stack that does not start or stop: the other groups have stacks of their own.
                traceback.print_exc()
                for scenario in members:
                    if scenario.name not in done:
                        results.failed[scenario.name] = repr(e)[:500]
            gc.collect()
    finally:
        if not args.keep_data:
            shutil.rmtree(directory, ignore_errors=True)
    report.write(results, args.out)
    failed = [s.name for s in chosen if s.name not in done]
    print(f"The report is {args.out}/report.md" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return not failed


def _is_chosen(scenario: Scenario, words: list[str]) -> bool:
    return not words or any(scenario.name == w or (w not in _NAMES and scenario.name.startswith(w)) for w in words)


def _group_of(scenario: Scenario, args: argparse.Namespace) -> str:
    # A smoke run starts one stack for all that need one.
    return "stack" if args.smoke and scenario.needs_stack else scenario.group


async def _run_group(
    name: str, members: list[Scenario], directory: Path, args: argparse.Namespace, results: report.Raw, done: set[str]
) -> None:
    testbed = Testbed(
        directory,
        args.port_base,
        seconds=args.seconds,
        warmup=args.warmup,
        kafka=args.kafka,
        postgres_settings=POSTGRES_SETTINGS.get(name),
    )
    testbed.quick, testbed.smoke, testbed.incomplete = args.quick, args.smoke, args.incomplete
    testbed.data = args.data
    testbed.orders = args.orders
    testbed.ref = args.ref
    testbed.memory_minutes, testbed.memory_rate = args.minutes, args.memory_rate
    if args.smoke:
        testbed.open_loop_seconds = 0.2
    started = time.perf_counter()
    if members[0].needs_stack:
        async with testbed:
            print(f"{name}: stack ready after {time.perf_counter() - started:.1f} s", flush=True)
            results.kafka = testbed.stack.kafka_kind
            await _run_scenarios(testbed, members, args, results, done)
    else:
        directory.mkdir()
        try:
            async with testbed.resources:
                await _run_scenarios(testbed, members, args, results, done)
        finally:
            testbed.stop_peers()
    shutil.rmtree(directory, ignore_errors=True)


async def _run_scenarios(
    testbed: Testbed, members: list[Scenario], args: argparse.Namespace, results: report.Raw, done: set[str]
) -> None:
    """Run the scenarios, and write the report after each so that a later failure loses nothing."""
    for scenario in members:
        started = time.perf_counter()
        print(f"{scenario.name}: {scenario.goal}", flush=True)
        load_average_before = os.getloadavg()[0]
        try:
            measurements = await measure(testbed, scenario, min(args.rounds, scenario.rounds or args.rounds))
            rows = scenario.judge(measurements)
        except NotInRepository as e:
            # A clone without the earlier commit is no failure; the report says that there are no such rows.
            results.not_run[scenario.name] = str(e)
            done.add(scenario.name)
            print(f"  {scenario.name} is not run: {e}", flush=True)
            report.write(results, args.out)
            continue
        except Exception as e:
            results.failed[scenario.name] = repr(e)[:500]
            traceback.print_exc()
            print(f"  {scenario.name} FAILED: {e}", flush=True)
            report.write(results, args.out)
            continue
        finally:
            testbed.pin()
        done.add(scenario.name)
        results.before = testbed.before or results.before
        took = time.perf_counter() - started
        results.add(
            scenario,
            measurements,
            rows,
            took_seconds=took,
            load_average_before=load_average_before,
            round_seconds=args.seconds,
        )
        for row in rows:
            to_peer = f"{row.ratio_to_peer:.2f}x the peer" if row.ratio_to_peer is not None else ""
            to_limit = f"{row.ratio_to_limit:.2f} of the limit" if row.ratio_to_limit is not None else ""
            to_before = f"{row.ratio_to_before:.2f}x before" if row.ratio_to_before is not None else ""
            ratios = ", ".join(filter(None, (to_before, to_peer, to_limit)))
            print(f"  => {row.scenario}: {row.ours} {row.unit}; {ratios}; met: {row.met}", flush=True)
        print(f"  {scenario.name} took {took:.0f} s", flush=True)
        report.write(results, args.out)


def parse_arguments(
    arguments: Sequence[str] | None = None, is_installed: Callable[[str], bool] = requirements.is_installed
) -> argparse.Namespace:
    """Return the options, with defaults filled in. Exits with 2 if they are wrong or a peer's packages are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="names of scenarios, or how several names begin; default: all")
    parser.add_argument("--quick", action="store_true", help="three rounds of two seconds")
    parser.add_argument("--smoke", action="store_true", help="one round of less than a second, as a test")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--warmup", type=float)
    parser.add_argument("--port-base", type=int, default=29500)
    parser.add_argument("--ref", default=BEFORE, help=f"the commit for the scenarios before-...; default: {BEFORE}")
    parser.add_argument("--kafka", default="auto", choices=["auto", "apache", "embedded"])
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--keep", action="store_true", help="add to the existing results")
    parser.add_argument(
        "--keep-data", action="store_true", help="keep the stack's data and logs in the temporary directory"
    )
    parser.add_argument(
        "--data", type=Path, help="a file in the Online Retail format for the replay; default: a generated one"
    )
    parser.add_argument("--minutes", type=float, help="of load in the memory scenario; default: 30")
    parser.add_argument("--memory-rate", type=float, default=50, help="orders/s of that load")
    parser.add_argument(
        "--orders",
        type=int,
        default=10_000_000,
        help="in MongoDB, for the scenarios of very many orders; default: 10,000,000, which need 5 GB",
    )
    parser.add_argument(
        "--incomplete", action="store_true", help="leave out peers whose packages are missing, instead of refusing"
    )
    args = parser.parse_args(arguments)
    required = [requirement for s in SCENARIOS if _is_chosen(s, args.words) for requirement in s.requires]
    if (missing := requirements.missing(required, is_installed)) and not (args.smoke or args.incomplete):
        parser.error(
            f"the peers require {' and '.join(missing)}. `make bench` installs the packages; with --incomplete these "
            "peers "
            "are left out, and their rows are not judged"
        )
    rounds, seconds, warmup = (1, 0.3, 0.1) if args.smoke else (3, 2.0, 0.5) if args.quick else (5, 3.0, 0.7)
    args.rounds = args.rounds or rounds
    args.seconds = args.seconds or seconds
    args.warmup = warmup if args.warmup is None else args.warmup
    return args


def main() -> None:
    succeeded = asyncio.run(run(parse_arguments()))
    raise SystemExit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
