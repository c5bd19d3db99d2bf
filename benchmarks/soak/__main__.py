"""A soak of the whole shop: honest clients at a fixed rate, first alone, then beside hostile clients of all kinds.

    python -m benchmarks.soak --minutes 30 --rate 20

Reports the honest clients' latencies and errors with and without the hostile ones, and the memory of each process over
time against its limit in deploy/, which is enforced on the services where this machine has control groups.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from market_dev.stack import topology

from benchmarks import workloads
from benchmarks.hostile import __main__ as hostile
from benchmarks.load import ROOT, kill
from benchmarks.market_up import MarketUp, market_up
from benchmarks.memory_limits import MemoryGroup, memory_limits
from benchmarks.report import RESULTS
from benchmarks.soak import honest, memory, report
from benchmarks.testbed import product_ids
from market.kit.http.pool import ConnectionPool

_SERVERS = ("products", "orders", "graphql")
# Hostile clients have an address of their own, as behind an ingress that passes addresses on.
_HOSTILE_ADDRESS = "127.0.0.9"
R = TypeVar("R")


async def run(args: argparse.Namespace) -> report.Soak:
    """Run the soak and return what it measured."""
    directory = Path(tempfile.mkdtemp(prefix="market-soak-"))
    directory.chmod(0o755)
    groups: dict[str, MemoryGroup] = {}
    try:
        async with market_up(directory / "shop", args.port_base, kafka=args.kafka, empty=True) as shop:
            # The processes that the load reaches; the storefront is not among them.
            pids = {name: pid for name, pid in shop.pids.items() if name in memory_limits()}
            groups = memory.enforce({name: pids[name] for name in topology.SERVICES if name in pids})
            return await _measure(args, shop, pids, set(groups), directory / "shop")
    finally:
        for group in groups.values():
            group.remove()
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(
    args: argparse.Namespace, shop: MarketUp, pids: dict[str, int], enforced: set[str], data: Path
) -> report.Soak:
    all_ports = topology.ports(args.port_base)
    ports = {name: all_ports[name] for name in _SERVERS}
    await asyncio.sleep(args.settle_seconds)
    idle = {name: memory.pss_mib(pid) for name, pid in pids.items()}
    long_ids, ids = await _create_products(ports["products"], shop.urls["products"], args.products)
    quiet_memory, hostile_memory = memory.MemorySampler(pids), memory.MemorySampler(pids)

    async def honest_clients(seconds: float, phase: int) -> honest.Result:
        spec = honest.Spec(
            ports=ports, product_ids=ids, rate=args.rate, seconds=seconds, first_number=phase * 100_000_000
        )
        return await _run_program("benchmarks.soak.honest", spec, honest.Result, seconds + 120)

    async def hostile_clients(seconds: float) -> dict[str, dict[str, int]]:
        spec = hostile.Spec(
            ports=ports,
            product_ids=ids,
            long_product_ids=long_ids,
            seconds=seconds,
            address=_HOSTILE_ADDRESS,
            intensity=args.intensity,
            pause=args.pause,
        )
        return await _run_program("benchmarks.hostile", spec, dict[str, dict[str, int]], seconds + 120)

    await honest_clients(min(10.0, 60 * args.quiet_minutes), phase=1)
    print(f"quiet: {args.quiet_minutes:g} minutes, {args.rate:g} requests/s", flush=True)
    async with quiet_memory.sampling(args.sample_seconds):
        quiet = await honest_clients(60 * args.quiet_minutes, phase=2)
    before = _limits_met(all_ports)
    print(f"with hostile clients: {args.minutes:g} minutes", flush=True)
    async with hostile_memory.sampling(args.sample_seconds):
        hostile_outcomes, beside_hostile = await asyncio.gather(
            hostile_clients(60 * args.minutes), honest_clients(60 * args.minutes, phase=3)
        )
    # Read before the shop gets any other request.
    met = _limits_met(all_ports)
    current = json.loads(data.with_name(f"{data.name}.json").read_text())["pids"]
    return report.Soak(
        date=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        minutes=args.minutes,
        quiet_minutes=args.quiet_minutes,
        rate=args.rate,
        intensity=args.intensity,
        pause=args.pause,
        quiet=quiet,
        beside_hostile=beside_hostile,
        hostile=hostile_outcomes,
        limits_met={name: n - before.get(name, 0) for name, n in met.items() if n > before.get(name, 0)},
        memory=memory.summary(pids, quiet_memory, hostile_memory, idle, enforced),
        restarted=sorted(name for name, pid in pids.items() if current.get(name) != pid),
        unhandled_errors=_unhandled_errors(data / "logs"),
        differences=await _differences(args.port_base),
    )


async def _create_products(port: int, url: str, count: int) -> tuple[list[str], list[str]]:
    """Return the ids of 100 products with long descriptions, and of `count` others."""
    pool = ConnectionPool(f"http://127.0.0.1:{port}", 16)

    async def create(number: int, **fields: str) -> None:
        body = json.dumps({**workloads.product(f"s{number}"), **fields}).encode()
        response = await pool.request("POST", "/api/product", lambda: {"content-type": "application/json"}, body, 30)
        if response.status != 201:
            raise RuntimeError(f"cannot create a product: {response.status} {response.body[:300]!r}")

    await asyncio.gather(*(create(-number, description="\U0001f701" * 10_000) for number in range(1, 101)))
    long_ids = await product_ids(url, 100)
    for first in range(0, count, 50):
        await asyncio.gather(*(create(number) for number in range(first, min(count, first + 50))))
    pool.close()
    return long_ids, await product_ids(url, count)


async def _differences(port_base: int) -> int:
    """Return the number of differences between orders and reservations that `market reconcile` finds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "market_dev.commands.cli", "reconcile", "--json", "--port-base", str(port_base)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(600):
            output, _ = await process.communicate()
    finally:
        kill(process)
    summary = json.loads(output.splitlines()[-1])
    return int(summary["differences"])


async def _run_program(module: str, spec: Any, result_type: type[R], timeout: float) -> R:
    """Run a program that reads its specification from stdin and prints its result, both as JSON."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate(msgspec.json.encode(spec))
    finally:
        kill(process)
    if process.returncode:
        raise RuntimeError(f"{module} failed with status {process.returncode}")
    return msgspec.json.decode(output, type=result_type)


def _limits_met(ports: dict[str, int]) -> dict[str, int]:
    """Return how often clients have met each limit: closed connections and refused requests, by server."""
    found: Counter[str] = Counter()
    for server in _SERVERS:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[f'{server} admin']}/metrics", timeout=30) as response:
            for line in response.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith(("market_http_connections_cut_off_total{", "market_http_requests_refused_total{")):
                    found[f"{server}: {name.partition('{')[2].rstrip('}')}"] += int(float(value))
    return dict(found)


def _unhandled_errors(logs: Path) -> dict[str, int]:
    """Return the number of unhandled errors in the log of each service that has any."""
    found = {}
    for service in topology.SERVICES:
        log = logs / f"{service}.log"
        count = log.read_text("utf-8", "replace").count("Traceback (most recent call last)") if log.exists() else 0
        if count:
            found[service] = count
    return found


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="with hostile clients; default: 30")
    parser.add_argument("--quiet-minutes", type=float, help="without them, before; default: a sixth of --minutes")
    parser.add_argument("--rate", type=float, default=20, help="honest requests per second; default: 20")
    parser.add_argument("--intensity", type=float, default=1, help="a factor for the number of hostile clients")
    parser.add_argument("--pause", type=float, default=2, help="seconds between the requests of a hostile client")
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--sample-seconds", type=float, default=5, help="pause between two measurements of memory")
    parser.add_argument("--settle-seconds", type=float, default=5, help="idle time after the start")
    parser.add_argument("--port-base", type=int, default=29600)
    parser.add_argument("--kafka", default="auto", choices=["auto", "apache", "embedded"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the directory for soak.md and soak.json")
    args = parser.parse_args(arguments)
    if args.quiet_minutes is None:
        args.quiet_minutes = args.minutes / 6
    return args


def main() -> None:
    args = parse_arguments()
    soak = asyncio.run(run(args))
    print(report.write(soak, args.out))
    failures = report.failures(soak)
    print("; ".join(failures) or "All goals are met.")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
