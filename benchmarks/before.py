"""`python -m benchmarks.before REF`: compares this build with an earlier one, `make bench-before REF=...`.

Checks out the commit REF below .market/before, installs it in a virtual environment of its own, and starts both builds
by their own `market up`. The load generator of this build loads them in turn, in random order in each round. Only
public interfaces of the earlier build are used: `make install`, `market up` and the ports, so that REF may be any
commit.

python -m benchmarks.before 1fbfb31                     all scenarios, nine rounds
python -m benchmarks.before 1fbfb31 order graphql-list  only these
python -m benchmarks.before 1fbfb31 latency             each call alone, by REST and by GraphQL
python -m benchmarks.before 1fbfb31 mail cold-start     from an order to its mail; start, and memory at rest
python -m benchmarks.before HEAD --rounds 15            this commit against itself: how much is noise
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.comparisons import calls, footprint, loads, mails
from benchmarks.comparisons.builds import OWN_COMMAND, PORTS, Build, Checkout, NotInRepository, install, running
from benchmarks.load import ROOT
from benchmarks.report import describe_machine
from benchmarks.run import alternate
from benchmarks.scenario import Contestants, Measurements

# The scenario in which one caller makes each call alone.
LATENCY = "latency"
# Orders at a fixed rate, with their mails.
MAIL = "mail"
# Apart from the other scenarios, because it starts the builds itself, in each round.
COLD_START = "cold-start"
NAMES = [*loads.COMPARISONS, LATENCY, MAIL, COLD_START]


class Result(msgspec.Struct, kw_only=True):
    """What was measured, as in the JSON file. `measurements`: the rounds of `ours` and `before`, by scenario."""

    ref: str
    commit: str
    machine: str
    seconds: float
    measurements: dict[str, Measurements] = {}


@dataclass
class Settings:
    ref: str
    names: list[str]
    rounds: int = 9
    seconds: float = 3.0
    warmup: float = 0.7
    kafka: str = "auto"
    port_base: int = 29700
    out: Path = field(default_factory=lambda: ROOT / ".market" / "bench")


async def compare(settings: Settings, checkout: Checkout) -> Result:
    """Run the scenarios with both builds and return the measurements."""
    result = Result(ref=settings.ref, commit=checkout.commit, machine=describe_machine(), seconds=settings.seconds)
    commands = {"ours": OWN_COMMAND, "before": checkout.command}
    directory = Path(tempfile.mkdtemp(prefix="market-before-"))
    directory.chmod(0o755)
    try:
        if names := [name for name in settings.names if name != COLD_START]:
            options = {"kafka": settings.kafka, "seconds": settings.seconds, "warmup": settings.warmup}
            async with running(commands, directory, settings.port_base, **options) as builds:
                for name in names:
                    contestants = await _contestants(name, builds)
                    result.measurements[name] = await alternate(name, contestants, settings.rounds, 120)
        if COLD_START in settings.names:
            for kafka in footprint.kafkas(settings.kafka):
                name = f"{COLD_START} {kafka}"
                contestants = footprint.prepare(commands, directory, settings.port_base, kafka)
                result.measurements[name] = await alternate(name, contestants, settings.rounds, 120)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return result


async def _contestants(name: str, builds: Sequence[Build]) -> Contestants:
    if name == MAIL:
        return await mails.prepare(builds)
    return calls.prepare(builds) if name == LATENCY else loads.prepare(name, builds)


def render(result: Result) -> str:
    """Return the comparison as Markdown: medians of the rounds, and ratios round by round."""
    under_load = {name: measured for name, measured in result.measurements.items() if name in loads.COMPARISONS}
    tables = [loads.render(under_load)] if under_load else []
    if LATENCY in result.measurements:
        tables.append(calls.render(result.measurements[LATENCY]))
    if MAIL in result.measurements:
        tables.append(mails.render(result.measurements[MAIL]))
    starts = {name: measured for name, measured in result.measurements.items() if name.startswith(COLD_START)}
    if starts:
        tables.append(footprint.render(starts))
    title = f"Compared with {result.ref} ({result.commit}) on {result.machine}; rounds of {result.seconds:g} s."
    return "\n\n".join([title, *tables]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", help="a commit, tag or branch")
    parser.add_argument("names", nargs="*", help=f"scenarios; default: all of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--warmup", type=float, default=0.7)
    parser.add_argument("--kafka", default="auto", choices=["auto", "apache", "embedded"])
    parser.add_argument("--port-base", type=int, default=29700, help=f"the first of {2 * PORTS} ports")
    parser.add_argument("--out", type=Path, default=ROOT / ".market" / "bench", help="directory of the results")
    settings = Settings(**vars(parser.parse_intermixed_args()))
    if unknown := [name for name in settings.names if name not in NAMES]:
        parser.error(f"unknown scenarios: {', '.join(unknown)}")
    settings.names = settings.names or NAMES
    try:
        checkout = install(settings.ref)
    except NotInRepository as e:
        parser.error(str(e))
    result = asyncio.run(compare(settings, checkout))
    text = render(result)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / f"before-{checkout.commit}.md"
    path.write_text(text, "utf-8")
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(f"\n{text}\nwritten to {path}")


if __name__ == "__main__":
    main()
