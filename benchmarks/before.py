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
import os
import shutil
import signal
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.comparisons import footprint, mails
from benchmarks.comparisons.tables import render_ratio
from benchmarks.cpu import assign_cores
from benchmarks.load import ROOT, LoadDriver
from benchmarks.market_up import MarketUp, market_up
from benchmarks.measurements import Measurement
from benchmarks.report import describe_machine
from benchmarks.run import alternate
from benchmarks.scenario import Contestants, Measurements, values
from benchmarks.scenarios import latency
from benchmarks.scenarios.gateway import LIST
from benchmarks.testbed import outbox_drained, product_ids, read_pages

PRODUCTS = 1000
# Per build; `market up` uses 16.
PORTS = 40


class Build(LoadDriver):
    """A running shop of one build."""

    def __init__(self, name: str, shop: MarketUp, *, seconds: float, warmup: float) -> None:
        super().__init__(seconds=seconds, warmup=warmup)
        self.name = name
        self.shop = shop
        self.product_ids: list[str] = []
        # The paths of lists of 20 products, each after the end of the one before.
        self.pages: list[str] = []

    @property
    def pids(self) -> dict[str, int]:
        return self.shop.pids

    def port(self, service: str) -> int:
        """Return the port of graphql, products, orders or inventory."""
        return int(self.shop.urls[service].rpartition(":")[2])

    async def fill(self) -> None:
        """Create the catalogue, with stock for all rounds together."""
        load = {"workload": "catalogue", "params": {"prefix": "c"}, "connections": 32, "count": PRODUCTS}
        await self.load(port=self.port("products"), **load)
        self.product_ids = await product_ids(self.shop.urls["products"], PRODUCTS)
        self.pages = list(await read_pages(self.shop.urls["products"], PRODUCTS // 20))

    def signal(self, process: str, signum: int) -> None:
        os.kill(self.pids[process], signum)


@dataclass(frozen=True)
class Comparison:
    """A scenario for two builds.

    load: arguments of `Build.closed_loop` beside the port
    alone: the services that get a core for themselves; none: nothing is pinned
    writes_orders: each round ends when all events are published
    """

    unit: str
    service: str
    load: Callable[[Build], dict[str, Any]]
    alone: tuple[str, ...] = ()
    writes_orders: bool = False


def _get_product(build: Build) -> dict[str, Any]:
    return {"workload": "products", "params": {"ids": build.product_ids}}


def _get_products(_: Build) -> dict[str, Any]:
    return {"workload": "get", "params": {"path": "/api/product?limit=20"}}


def _get_different_pages(build: Build) -> dict[str, Any]:
    return {"workload": "get_any", "params": {"paths": build.pages}}


def _query_products(_: Build) -> dict[str, Any]:
    return {"workload": "graphql", "params": {"query": LIST}}


def _post_order(build: Build) -> dict[str, Any]:
    return {"workload": "orders", "params": {"ids": build.product_ids}}


def _create_order(build: Build) -> dict[str, Any]:
    return {"workload": "graphql_orders", "params": {"ids": build.product_ids}}


def _check_products(build: Build) -> dict[str, Any]:
    load = {"kind": "grpc", "workload": "check", "connections": 8, "streams": 8}
    return {**load, "params": {"ids": build.product_ids}}


COMPARISONS = {
    "product-one": Comparison("requests/s", "products", _get_product, alone=("products",)),
    "product-list": Comparison("requests/s", "products", _get_products, alone=("products",)),
    "product-pages": Comparison("requests/s", "products", _get_different_pages, alone=("products",)),
    "check-100": Comparison("calls/s", "inventory", _check_products, alone=("inventory",)),
    "graphql-list": Comparison("queries/s", "graphql", _query_products),
    "order": Comparison("orders/s", "orders", _post_order, writes_orders=True),
    "graphql-order": Comparison("orders/s", "graphql", _create_order, writes_orders=True),
}
# The scenario in which one caller makes each call alone.
LATENCY = "latency"
# Orders at a fixed rate, with their mails.
MAIL = "mail"
# Apart from the other scenarios, because it starts the builds itself, in each round.
COLD_START = "cold-start"
NAMES = [*COMPARISONS, LATENCY, MAIL, COLD_START]


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


def install(ref: str, root: Path = ROOT) -> tuple[str, Path]:
    """Check out the commit below .market/before, once, and install it. Return its abbreviated id and its directory.

    Raises subprocess.CalledProcessError.
    """
    commit = _git(root, "rev-parse", "--short=12", "--verify", f"{ref}^{{commit}}")
    directory = root / ".market" / "before" / commit
    if not directory.is_dir():
        unpacked = directory.with_suffix(".partial")
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        archive = unpacked / "archive.tar"
        _git(root, "archive", "--output", str(archive), commit)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        archive.unlink()
        unpacked.rename(directory)
    # Called from make itself, so without its variables.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "REF")}
    subprocess.run(["make", "--no-print-directory", "-C", directory, "install"], check=True, env=env)
    return commit, directory


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", root, *args], check=True, capture_output=True, text=True).stdout.strip()


async def compare(settings: Settings, commit: str, checkout: Path) -> Result:
    """Run the scenarios with both builds and return the measurements."""
    result = Result(ref=settings.ref, commit=commit, machine=describe_machine(), seconds=settings.seconds)
    roots = {"ours": ROOT, "before": checkout}
    directory = Path(tempfile.mkdtemp(prefix="market-before-"))
    directory.chmod(0o755)
    try:
        if names := [name for name in settings.names if name != COLD_START]:
            async with _running(settings, roots, directory) as builds:
                for name in names:
                    contestants = await _contestants(name, builds)
                    result.measurements[name] = await alternate(name, contestants, settings.rounds, 120)
        if COLD_START in settings.names:
            for kafka in _kafkas(settings):
                name = f"{COLD_START} {kafka}"
                contestants = _cold_starts(settings, roots, directory, kafka)
                result.measurements[name] = await alternate(name, contestants, settings.rounds, 120)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return result


@asynccontextmanager
async def _running(settings: Settings, roots: Mapping[str, Path], directory: Path) -> AsyncIterator[list[Build]]:
    async with AsyncExitStack() as stack:
        builds = []
        for number, (name, root) in enumerate(roots.items()):
            command = [root / ".venv" / "bin" / "market"]
            port_base = settings.port_base + number * PORTS
            shop = await stack.enter_async_context(
                market_up(directory / name, port_base, kafka=settings.kafka, empty=True, command=command)
            )
            build = Build(name, shop, seconds=settings.seconds, warmup=settings.warmup)
            await build.fill()
            stack.callback(build.signal, "notifications", signal.SIGCONT)
            builds.append(build)
            print(f"{name}: {root} is ready", flush=True)
        yield builds


async def _contestants(name: str, builds: Sequence[Build]) -> Contestants:
    if name == MAIL:
        return await _mails(builds)
    # The orders of the other scenarios have no mails. Without the consumer, one build's events cost nothing during the
    # other's round.
    for build in builds:
        build.signal("notifications", signal.SIGSTOP)
    return _lone_calls(builds) if name == LATENCY else _prepare(COMPARISONS[name], builds)


def _prepare(comparison: Comparison, builds: Sequence[Build]) -> Contestants:
    pids = {f"{build.name} {name}": pid for build in builds for name, pid in build.pids.items()}
    cores = assign_cores(pids, [f"{build.name} {name}" for build in builds for name in comparison.alone])

    def contestant(build: Build) -> Any:
        build.generator_cores = cores

        async def measure() -> Measurement:
            measured = await build.closed_loop(port=build.port(comparison.service), **comparison.load(build))
            if comparison.writes_orders:
                await outbox_drained(build.shop.urls["mongodb"])
            return measured

        return measure

    return {build.name: contestant(build) for build in builds}


def _lone_calls(builds: Sequence[Build]) -> Contestants:
    def contestant(build: Build) -> Callable[[], Awaitable[Measurement]]:
        build.generator_cores = None
        ports = {service: build.port(service) for service in ("products", "orders", "graphql")}
        return lambda: latency.measure_calls(build, ports, build.product_ids)

    assign_cores({f"{build.name} {name}": pid for build in builds for name, pid in build.pids.items()}, [])
    return {build.name: contestant(build) for build in builds}


async def _mails(builds: Sequence[Build]) -> Contestants:
    def contestant(build: Build) -> Callable[[], Awaitable[Measurement]]:
        build.generator_cores = None
        return lambda: mails.measure(build, build.shop, build.product_ids)

    assign_cores({f"{build.name} {name}": pid for build in builds for name, pid in build.pids.items()}, [])
    for build in builds:
        build.signal("notifications", signal.SIGCONT)
        # Warm up, and consume the events of the scenarios before.
        await mails.place(build, build.shop, build.product_ids, connections=8, rate=50, seconds=3)
    return {build.name: contestant(build) for build in builds}


def _kafkas(settings: Settings) -> Sequence[str]:
    if settings.kafka != "auto":
        return [settings.kafka]
    return ["embedded", "apache"] if shutil.which("java") and shutil.which("mvn") else ["embedded"]


def _cold_starts(settings: Settings, roots: Mapping[str, Path], directory: Path, kafka: str) -> Contestants:
    def contestant(name: str) -> Callable[[], Awaitable[Measurement]]:
        return lambda: footprint.measure(roots[name], directory / f"{name}-cold", settings.port_base, kafka)

    return {name: contestant(name) for name in roots}


def render(result: Result) -> str:
    """Return the comparison as Markdown: medians of the rounds, and ratios round by round."""
    loads = {name: measured for name, measured in result.measurements.items() if name in COMPARISONS}
    tables = [_render_loads(loads)] if loads else []
    if LATENCY in result.measurements:
        tables.append(_render_latency(result.measurements[LATENCY]))
    if MAIL in result.measurements:
        tables.append(mails.render(result.measurements[MAIL]))
    starts = {name: measured for name, measured in result.measurements.items() if name.startswith(COLD_START)}
    if starts:
        tables.append(footprint.render(starts))
    title = f"Compared with {result.ref} ({result.commit}) on {result.machine}; rounds of {result.seconds:g} s."
    return "\n\n".join([title, *tables]) + "\n"


def _render_latency(measurements: Measurements) -> str:
    ours, before = measurements["ours"], measurements["before"]
    lines = [
        f"Each call alone, {len(ours)} rounds: the median of the rounds' p50. A ratio below 1 is better.",
        "",
        "| call | ours | before | ratio |",
        "|---|---|---|---|",
    ]
    for call in ours[0].notes["calls"]:
        a, b = latency.p50(ours, call), latency.p50(before, call)
        lines.append(
            f"| {call} | {statistics.median(a):.1f} ms | {statistics.median(b):.1f} ms | {render_ratio(a, b)} |"
        )
    return "\n".join(lines)


def _render_loads(loads: dict[str, Measurements]) -> str:
    lines = [
        "A ratio is taken within each round: ours / before, median (min - max). Rates above 1 and CPU and p99 below 1 "
        "are better.",
        "",
        "| scenario | rounds | ours | before | rate: ratio | CPU per operation: ratio | p99: ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measurements in loads.items():
        ours, before = measurements["ours"], measurements["before"]
        rates = [f"{statistics.median(values(rounds)):,.0f} {COMPARISONS[name].unit}" for rounds in (ours, before)]
        ratios = [
            render_ratio(values(ours), values(before)),
            render_ratio([sum(m.cpu_ms.values()) for m in ours], [sum(m.cpu_ms.values()) for m in before]),
            render_ratio(
                [m.latency.p99 if m.latency else 0 for m in ours], [m.latency.p99 if m.latency else 0 for m in before]
            ),
        ]
        lines.append(f"| {name} | {len(ours)} | {' | '.join(rates)} | {' | '.join(ratios)} |")
    return "\n".join(lines)


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
    commit, checkout = install(settings.ref)
    result = asyncio.run(compare(settings, commit, checkout))
    text = render(result)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / f"before-{commit}.md"
    path.write_text(text, "utf-8")
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    print(f"\n{text}\nwritten to {path}")


if __name__ == "__main__":
    main()
