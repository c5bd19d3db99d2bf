"""One run: a stack behind a bad network, clients that place orders, a nemesis, and the verdict of the checker."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from market_dev.chaos import final_reads
from market_dev.chaos.checker import check_invariants
from market_dev.chaos.final_reads import Stores
from market_dev.chaos.history import History
from market_dev.chaos.nemesis import FaultOutcome, Nemesis, Network
from market_dev.chaos.observations import Observations, event_id_of_mail
from market_dev.chaos.people import TOKEN_SECONDS, Tokens, people
from market_dev.chaos.plan import Fault, generate_plan
from market_dev.chaos.report import RunReport
from market_dev.chaos.shoppers import StorefrontWorkload
from market_dev.chaos.stock_workload import StockWorkload
from market_dev.chaos.workload import OrderWorkload
from market_dev.shop_client import ShopClient
from market_dev.stack.stack import Stack
from market_dev.stack.topology import PORT_COUNT, Options, ports
from market_dev.tokens import Credentials

# Production has minutes.
RECOVERY_SECONDS = 8.0
OVERRIDES: dict[str, dict[str, Any]] = {
    "products": {"testing": True},
    "inventory": {"testing": True},
    "orders": {
        "testing": True,
        "recovery": {
            "reject_after_seconds": RECOVERY_SECONDS,
            "interval_seconds": 0.5,
            "lease_seconds": 5,
            "relay_interval_seconds": 0.5,
        },
        "kafka": {"delivery_seconds": 4},
        "faults": {"clock_offset_seconds": 0},
    },
    "notifications": {
        "testing": True,
        "smtp": {"timeout_seconds": 3, "max_reconnect_seconds": 1},
        "retry": {"initial_seconds": 0.2, "max_seconds": 2},
    },
    "graphql": {},
    "storefront": {},
}


@dataclass(frozen=True)
class Settings:
    """`max_fault_seconds`: the longest duration of a fault; `pause_seconds`: between two faults."""

    directory: Path
    seed: int
    kills: int
    port_base: int = 8280
    kafka: str = "auto"
    clients: int = 12
    # Clients that buy at the storefront. With `sign_in` there are none.
    shoppers: int = 3
    products: int = 24
    stock: int = 400
    max_fault_seconds: float = 20.0
    pause_seconds: float = 0.5
    # Before the first fault.
    warmup_seconds: float = 2.0
    # How long a client retries with one key.
    retry_seconds: float = 90.0
    restock_interval_seconds: float = 3.0
    settle_seconds: float = 600.0
    # The shop requires sign-in, and each client is a person of its own. Then no stock is added during the run.
    sign_in: bool = False
    # Configuration by service, on top of OVERRIDES.
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


# Called with the number of faults injected, the number of all faults, and what is happening now.
OnProgress = Callable[[int, int, str], None]


async def run(
    settings: Settings,
    *,
    log: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> RunReport:
    """Run the whole plan of `settings.seed` against a stack of its own and return the report. Raises StartError."""
    # The processes that this one starts do not use its gRPC channel. Read when the first channel is made.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    plan = generate_plan(
        settings.seed,
        settings.kills,
        max_fault_seconds=settings.max_fault_seconds,
        also_kill=("issuer",) if settings.sign_in else (),
    )
    network = Network(ports(settings.port_base), settings.port_base + PORT_COUNT)
    options = Options(
        data=settings.directory / "data",
        port_base=settings.port_base,
        kafka=settings.kafka,
        log_format="json",
        mail_testing=True,
        overrides=_merge(OVERRIDES, settings.overrides),
        routes=network.routes,
        kafka_advertised=network.kafka_advertised,
        sign_in="local" if settings.sign_in else None,
        people=people(settings.clients),
        token_seconds=TOKEN_SECONDS,
    )
    started = time.monotonic()
    with History(settings.directory / "history.jsonl") as history:
        async with network, Stack(options, notify=log) as stack:
            await stack.start()
            return await _run_plan(settings, plan, stack, network, history, on_progress, started)


async def _run_plan(
    settings: Settings,
    plan: list[Fault],
    stack: Stack,
    network: Network,
    history: History,
    on_progress: OnProgress,
    started: float,
) -> RunReport:
    urls = stack.urls
    initial_stock = await _create_products(stack, settings)
    products = list(initial_stock)
    workload = OrderWorkload(
        urls,
        products,
        history,
        settings.seed,
        clients=settings.clients,
        retry_seconds=settings.retry_seconds,
        tokens=None if stack.sign_in is None else Tokens(stack.sign_in),
    )
    stock_workload = StockWorkload(stack, products, history, settings.seed, settings.restock_interval_seconds)
    shoppers = None
    if not settings.sign_in and settings.shoppers:
        shoppers = StorefrontWorkload(
            urls["storefront"],
            products,
            history,
            settings.seed,
            shoppers=settings.shoppers,
            retry_seconds=settings.retry_seconds,
        )
    nemesis = Nemesis(stack, network, workload, shoppers)
    sampling = asyncio.create_task(stock_workload.sample())
    # Nobody may call AddStock where sign-in is required.
    restocking = [] if settings.sign_in else [asyncio.create_task(stock_workload.restock())]
    clients = asyncio.create_task(_run_all(workload, shoppers))
    try:
        await asyncio.sleep(settings.warmup_seconds)
        for number, fault in enumerate(plan, 1):
            on_progress(number, len(plan), str(fault))
            await _inject(nemesis, fault, number, clients)
            await asyncio.sleep(settings.pause_seconds)
    finally:
        workload.stop()
        if shoppers is not None:
            shoppers.stop()
        stock_workload.stop()
        await nemesis.heal()
    on_progress(len(plan), len(plan), "waiting for the last responses")
    await asyncio.gather(clients, sampling, *restocking)
    on_progress(len(plan), len(plan), "settling")
    stores = Stores.of(stack)
    settle_seconds = await settle(stores, settings.settle_seconds)
    events, dead_letters = await final_reads.read_events(stores)
    observations = Observations(
        calls=history.calls,
        orders=await final_reads.read_orders(stores),
        reservations=await final_reads.read_reservations(stores),
        initial_stock=initial_stock,
        restocked=stock_workload.restocked,
        final_stock=await final_reads.read_stock(stores, products),
        stock_samples=stock_workload.samples,
        events=events,
        dead_letters=dead_letters,
        mails=await final_reads.read_mails(stores),
        faults_injected=bool(plan),
        recovery_seconds=RECOVERY_SECONDS + 5,
        differences=await final_reads.read_differences(stack),
    )
    nemesis.measure()
    duration = time.monotonic() - started
    return _report(settings, stack.kafka_kind, duration, settle_seconds, observations, nemesis.outcomes)


async def _run_all(workload: OrderWorkload, shoppers: StorefrontWorkload | None) -> None:
    """Run all clients until they are stopped. One that crashes ends all others."""
    async with asyncio.TaskGroup() as clients:
        clients.create_task(workload.run())
        if shoppers is not None:
            clients.create_task(shoppers.run())


async def _inject(nemesis: Nemesis, fault: Fault, number: int, clients: asyncio.Task[None]) -> None:
    """Inject the fault. A crashed client ends the run, which would otherwise go on without orders."""
    injecting = asyncio.create_task(nemesis.inject(fault, number))
    await asyncio.wait({injecting, clients}, return_when=asyncio.FIRST_COMPLETED)
    if clients.done():
        injecting.cancel()
        clients.result()
    await injecting


async def _create_products(stack: Stack, settings: Settings) -> dict[str, int]:
    """Create the products; return the initial stock of each by id."""
    rng = random.Random(settings.seed)
    initial_stock = {}
    url = stack.urls["products"]
    credentials = None if stack.sign_in is None else Credentials.of_stack(stack.sign_in)
    async with ShopClient(url, url, credentials=credentials) as shop:
        for number in range(settings.products):
            # Some sell out, so that rejections occur as well.
            stock = settings.stock if number % 4 else settings.stock // 20
            body = {
                "name": f"Thing {number}",
                "description": "",
                "price": f"{rng.randrange(1, 90)}.{rng.randrange(100):02}",
                "currency": "GBP",
                "stock": stock,
            }
            created = await shop.create_product(body, f"chaos-{settings.seed}-{number}")
            initial_stock[created.id] = stock
    return initial_stock


async def settle(stores: Stores, timeout_seconds: float) -> float:
    """Wait until no order is unsettled and every event has its mail, or the time is over. Return the seconds waited."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_seconds:
        with suppress(Exception):
            if not await final_reads.count_unsettled(stores) and await _have_all_mails(
                stores, started + timeout_seconds
            ):
                # Check again after a moment, for what was still in flight.
                await asyncio.sleep(1)
                if not await final_reads.count_unsettled(stores):
                    break
        await asyncio.sleep(0.5)
    return time.monotonic() - started


async def _have_all_mails(stores: Stores, until: float) -> bool:
    """Wait until the mail server has a mail of each event that is not a dead letter. Return False at the time `until`.

    The mails are only counted while they are too few: reading all of them again and again would slow the mail server.
    """
    events, dead_letters = await final_reads.read_events(stores)
    expected = {e.id for e in events} - dead_letters
    while time.monotonic() < until:
        if await final_reads.count_mails(stores) >= len(expected):
            delivered = {event_id_of_mail(m.message_id) for m in await final_reads.read_mails(stores)}
            if expected <= delivered:
                return True
            await asyncio.sleep(5)
        await asyncio.sleep(1)
    return False


def _merge(base: dict[str, dict[str, Any]], over: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**base.get(name, {}), **over.get(name, {})} for name in base.keys() | over.keys()}


def _report(
    settings: Settings,
    kafka: str,
    duration: float,
    settle_seconds: float,
    observations: Observations,
    outcomes: list[FaultOutcome],
) -> RunReport:
    by_status = [o.status for o in observations.orders.values()]
    place_calls = [c for c in observations.calls if c.operation == "place"]
    bought = {c.order_id for c in place_calls if c.via == "storefront" and c.order_id}
    mails = observations.mails
    return RunReport(
        seed=settings.seed,
        kills=sum(o.is_kill and o.took_effect and o.orders_in_flight > 0 for o in outcomes),
        kafka=kafka,
        duration_seconds=round(duration, 1),
        orders_placed=by_status.count("confirmed") + by_status.count("cancelled"),
        storefront_orders=len(bought),
        orders_cancelled=by_status.count("cancelled"),
        orders_rejected=by_status.count("rejected"),
        requests_rejected=sum(c.status in (409, 422) for c in place_calls),
        requests_repeated=len(place_calls) - len({(c.user, c.key) for c in place_calls}),
        calls=len(observations.calls),
        failed_calls=sum(c.failed for c in observations.calls),
        events=len({e.id for e in observations.events}),
        mails=len(mails),
        duplicate_mails=len(mails) - len({m.message_id for m in mails}),
        settle_seconds=round(settle_seconds, 1),
        faults=outcomes,
        violations=check_invariants(observations),
    )
