"""Two copies of every service on stores with three members, beside one copy: the CPU time per order.

    python -m benchmarks.two_copies

The contestants alternate, in random order in each round. Each starts its services, warms up, and places a fixed number
of orders in several ways. At the end the stores are compared: see `books`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from market_dev.stack import processes
from market_dev.stack.kafka import broker

from benchmarks import workloads
from benchmarks.report import RESULTS, describe_machine
from benchmarks.two_copies.books import check_books
from benchmarks.two_copies.shop import Load, Shop, open_shop
from benchmarks.two_copies.stores import replicated_stores, single_stores
from benchmarks.two_copies.table import AT_REST, Trial, render

# The kind of stores, and the copies of each service.
CONTESTANTS = {
    "one copy, single stores": ("single", 1),
    "two copies, single stores": ("single", 2),
    "one copy, three members": ("replicated", 1),
    "two copies, three members": ("replicated", 2),
}
STORES = {"single": single_stores, "replicated": replicated_stores}
LOADS = {
    "By REST, 64 clients": Load("orders", "orders"),
    # As many for each of two copies as one has above.
    "By REST, 128 clients": Load("orders", "orders", clients=128),
    "By GraphQL, 64 clients": Load("graphql", "graphql_orders"),
}
WITH_MAILS = "By REST, 64 clients, with mails"


class Settings(msgspec.Struct, frozen=True):
    """How much is measured.

    minutes: no round begins later
    warmup: how many orders before each load; `first_warmup`: before the first one on the stores
    """

    contestants: Mapping[str, tuple[str, int]] = msgspec.field(default_factory=lambda: CONTESTANTS)
    rounds: int = 5
    minutes: float = 60
    orders: int = 2000
    warmup: int = 256
    first_warmup: int = 2000
    products: int = 1000


async def run(trial: Trial, settings: Settings, directory: Path, out: Path, *, kafka: str) -> None:
    """Measure all contestants and check the stores, adding to `trial`. After each round it is written to `out`.

    Raises RuntimeError if a request fails, or if the stores contradict each other.
    """
    ports = processes.free_ports()
    async with AsyncExitStack() as stack:
        stores = {}
        for kind in sorted({kind for kind, _ in settings.contestants.values()}):
            opened = STORES[kind](directory / kind, ports, kafka=kafka)
            stores[kind] = await stack.enter_async_context(opened)
        placed = dict.fromkeys(stores, 0)
        for kind, first in stores.items() if settings.first_warmup else ():
            async with open_shop(first, ports, copies=1) as shop:
                await shop.fill(settings.products)
                await shop.place_orders(LOADS["By REST, 64 clients"], settings.first_warmup)
                placed[kind] += settings.first_warmup
        end = time.monotonic() + 60 * settings.minutes
        for number in range(1, settings.rounds + 1):
            if time.monotonic() > end:
                break
            for contestant in random.sample(list(settings.contestants), len(settings.contestants)):
                kind, copies = settings.contestants[contestant]
                print(f"round {number}, {contestant}", flush=True)
                async with open_shop(stores[kind], ports, copies=copies) as shop:
                    placed[kind] += await _measure(trial, settings, contestant, shop, copies)
            write(trial, settings, out)
        for kind, used in stores.items():
            trial.books[kind] = await check_books(used, placed=placed[kind], stock=workloads.product("")["stock"])
            print(f"{kind} stores: {trial.books[kind]}", flush=True)
        write(trial, settings, out)


async def _measure(trial: Trial, settings: Settings, contestant: str, shop: Shop, copies: int) -> int:
    """Measure all loads, and return how many orders were placed."""
    placed = 0
    await shop.fill(settings.products)

    async def measure(title: str, load: Load) -> None:
        nonlocal placed
        await shop.place_orders(load, settings.warmup)
        measured = await shop.place_orders(load, settings.orders)
        placed += settings.warmup + settings.orders
        trial.add(title, contestant, measured)
        print(f"  {title}: {measured.value:,.0f} orders/s, {sum(measured.cpu_ms.values()):.2f} ms of CPU", flush=True)

    for title, load in LOADS.items():
        if load.clients == 64 or copies == 2:
            await measure(title, load)
    trial.add(AT_REST, contestant, await shop.rest())
    await shop.start_mailing(64)
    placed += 64
    await measure(WITH_MAILS, Load("orders", "orders", mails=True))
    return placed


def write(trial: Trial, settings: Settings, out: Path) -> None:
    """Write the measurements as JSON, and the report."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "two-copies.json").write_bytes(msgspec.json.format(msgspec.json.encode(trial), indent=1) + b"\n")
    (out / "two-copies.md").write_text(render(trial, list(settings.contestants)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="no round begins later")
    parser.add_argument("--orders", type=int, default=2000, help="per round, load and contestant")
    parser.add_argument("--kafka", choices=["auto", "apache", "embedded"], default="auto")
    parser.add_argument("--smoke", action="store_true", help="one round of a few orders, with one contestant")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = Settings(rounds=args.rounds, minutes=args.minutes, orders=args.orders)
    if args.smoke:
        name = "two copies, three members"
        settings = Settings({name: CONTESTANTS[name]}, rounds=1, orders=100, warmup=20, first_warmup=0, products=100)
    kafka, reason = broker.choose(args.kafka, has_data=False)
    described = "Kafka is Apache Kafka" if kafka == "apache" else f"Kafka is one embedded broker ({reason})"
    trial = Trial(machine=describe_machine(), kafka=described, orders_per_round=settings.orders)
    trial.rounds = {load: {} for load in (*LOADS, WITH_MAILS, AT_REST)}
    directory = Path(tempfile.mkdtemp(prefix="market-two-copies-"))
    directory.chmod(0o755)
    try:
        asyncio.run(run(trial, settings, directory, args.out, kafka=kafka))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print((args.out / "two-copies.md").read_text())


if __name__ == "__main__":
    main()
