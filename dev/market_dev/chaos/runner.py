"""One run: a stack behind a bad network, clients that order, faults from a seed, and the verdict."""

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
from uuid import uuid4

import aiohttp
import grpc.aio
import msgspec

from market.contracts import inventory_pb2, inventory_pb2_grpc
from market_dev.chaos import facts as read
from market_dev.chaos.checker import Facts, verdict
from market_dev.chaos.history import Call, History
from market_dev.chaos.nemesis import Injector, Network, Outcome
from market_dev.chaos.plan import Disturbance, plan
from market_dev.chaos.workload import Load
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options, ports

# This process starts others all the time, and none of them uses its gRPC channel. Read when the first channel is made.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Seconds where production has minutes.
RECOVERY_SECONDS = 8.0
OVERRIDES: dict[str, dict[str, Any]] = {
    "products": {"testing": True},
    "inventory": {"testing": True},
    "orders": {
        "testing": True,
        "recovery": {
            "after_seconds": RECOVERY_SECONDS,
            "interval_seconds": 0.5,
            "claim_seconds": 5,
            "relay_interval_seconds": 0.5,
        },
        "kafka": {"delivery_seconds": 4},
        "faults": {"clock_offset_seconds": 0},
    },
    "notifications": {
        "testing": True,
        "smtp": {"timeout_seconds": 3, "reconnect_seconds": 1},
        "retry": {"first_seconds": 0.2, "most_seconds": 2},
    },
    "graphql": {},
}


@dataclass(frozen=True)
class Settings:
    """`kills`: how many; `most_seconds`: the longest pause of a store; `pause`: seconds of peace between two disturbances."""

    directory: Path
    seed: int
    kills: int
    port_base: int = 8280
    kafka: str = "auto"
    clients: int = 12
    products: int = 24
    stock: int = 400
    most_seconds: float = 20.0
    pause: float = 0.5
    # Before the first disturbance.
    warm_seconds: float = 2.0
    # How long a client asks again with one key, and how often a delivery comes.
    stubborn: float = 90.0
    restock_seconds: float = 3.0
    settle_seconds: float = 180.0
    # Further configuration of a service, over OVERRIDES; a test's, say.
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


class Report(msgspec.Struct, kw_only=True):
    """What a run was and what came of it. Seconds; counts of calls, orders and mails."""

    seed: int
    kills: int
    kafka: str
    seconds: float
    placed: int
    refused: int
    cancelled: int
    rejected: int
    repeated: int
    calls: int
    failed_calls: int
    events: int
    mails: int
    mails_repeated: int
    settled_after: float
    outcomes: list[Outcome]
    violations: dict[str, list[str]]

    @property
    def clean(self) -> bool:
        return not any(self.violations.values())


async def run(
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda _: None,
    step: Callable[[int, int, str], None] = lambda *_: None,
) -> Report:
    """Plays the whole plan and answers the report. `step(done, of, what)` is told of the progress."""
    drawn = plan(settings.seed, settings.kills, most_seconds=settings.most_seconds)
    network = Network(ports(settings.port_base), settings.port_base + 20)
    options = Options(
        data=settings.directory / "data",
        port_base=settings.port_base,
        kafka=settings.kafka,
        log_format="json",
        mail_testing=True,
        overrides=_merged(OVERRIDES, settings.overrides),
        routes=network.routes,
        kafka_advertised=network.kafka_advertised,
    )
    history = History(settings.directory / "history.jsonl")
    with history:
        return await _play(settings, drawn, network, options, history, say, step)


async def _play(
    settings: Settings,
    drawn: list[Disturbance],
    network: Network,
    options: Options,
    history: History,
    say: Callable[[str], None],
    step: Callable[[int, int, str], None],
) -> Report:
    began = time.monotonic()
    async with network, Stack(options, say=say) as stack:
        await stack.start()
        urls = stack.urls
        start = await _catalogue(urls["products"], settings)
        load = Load(urls, list(start), history, settings.seed, clients=settings.clients, stubborn=settings.stubborn)
        injector = Injector(stack, network, load)
        keeper = _Keeper(stack, list(start), history, settings)
        samples = asyncio.create_task(keeper.sample())
        restocking = asyncio.create_task(keeper.restock())
        clients = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(settings.warm_seconds)
            for number, disturbance in enumerate(drawn, 1):
                step(number, len(drawn), str(disturbance))
                await _disturb(injector, disturbance, number, clients)
                await asyncio.sleep(settings.pause)
        finally:
            load.stop()
            keeper.stop()
            await injector.heal()
        step(len(drawn), len(drawn), "waiting for the last answers")
        await asyncio.gather(clients, samples, restocking)
        step(len(drawn), len(drawn), "settling")
        stores = stores_of(stack)
        settled_after = await settle(stores, settings.settle_seconds)
        facts = await collect(stores, history, start, keeper, disturbed=bool(drawn), admin=urls["admin"]["orders"])
        injector.measure()
        return _report(settings, stack.kafka_kind, time.monotonic() - began, settled_after, facts, injector.outcomes)


async def _disturb(injector: Injector, disturbance: Disturbance, number: int, clients: asyncio.Task[None]) -> None:
    """The disturbance; a defect of a client ends the run rather than letting it go on with nobody ordering."""
    work = asyncio.create_task(injector.do(disturbance, number))
    await asyncio.wait({work, clients}, return_when=asyncio.FIRST_COMPLETED)
    if clients.done():
        work.cancel()
        clients.result()
    await work


def stores_of(stack: Stack) -> read.Stores:
    """The stores themselves, past every proxy but Kafka's, which advertises its own."""
    urls = stack.urls
    postgres = {
        "host": "127.0.0.1",
        "port": stack.ports["postgres"],
        "user": "inventory",
        "password": stack.directory.password(),
        "database": "inventory",
    }
    return read.Stores(urls["mongodb"], postgres, urls["kafka"], urls["mail"])


async def _catalogue(url: str, settings: Settings) -> dict[str, int]:
    """Makes the products; answers the stock that each starts with."""
    rng = random.Random(settings.seed)
    start = {}
    async with aiohttp.ClientSession() as http:
        for number in range(settings.products):
            # Some sell out, so that refusals are part of the story.
            stock = settings.stock if number % 4 else settings.stock // 20
            body = {
                "name": f"Thing {number}",
                "description": "",
                "price": f"{rng.randrange(1, 90)}.{rng.randrange(100):02}",
                "currency": "GBP",
                "stock": stock,
            }
            start[await _made(http, f"{url}/api/product", body, f"torture-{settings.seed}-{number}")] = stock
    return start


async def _made(http: aiohttp.ClientSession, url: str, body: dict[str, Any], key: str) -> str:
    """The id of the new product; a shop that cannot decide in time is asked again with the same key, for a minute."""
    async with asyncio.timeout(60):
        while True:
            async with http.post(url, json=body, headers={"Idempotency-Key": key}) as response:
                if response.status != 503:
                    response.raise_for_status()
                    return str((await response.json())["id"])
            await asyncio.sleep(0.5)


class _Keeper:
    """Reads the stock now and then, and books deliveries, as the owner of the shop would."""

    def __init__(self, stack: Stack, products: list[str], history: History, settings: Settings) -> None:
        self._stack = stack
        self._products = products
        self._history = history
        self._rng = random.Random(f"{settings.seed}/keeper")
        self._restock_seconds = settings.restock_seconds
        self._stopping = asyncio.Event()
        self.samples: list[tuple[float, str, int]] = []
        self.restocked: dict[str, int] = {}

    def stop(self) -> None:
        self._stopping.set()

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def sample(self) -> None:
        stores = stores_of(self._stack)
        while not self._stopping.is_set():
            # A store that is down or paused is not read; the next time it is.
            with suppress(Exception):
                async with asyncio.timeout(2):
                    now = self._history.now()
                    self.samples += [(now, p, q) for p, q in (await read.stock(stores, self._products)).items()]
            await self._rest(0.7)

    async def restock(self) -> None:
        """Each delivery has its id and is booked until inventory has answered: booked once."""
        async with grpc.aio.insecure_channel(self._stack.urls["inventory"]) as channel:
            stub = inventory_pb2_grpc.InventoryStub(channel)
            while not self._stopping.is_set():
                await self._rest(self._restock_seconds)
                product, delta, movement = self._rng.choice(self._products), self._rng.randrange(1, 20), str(uuid4())
                while True:
                    began = self._history.now()
                    try:
                        await stub.AddStock(
                            inventory_pb2.AddStockRequest(movement_id=movement, product_id=product, delta=delta),
                            timeout=3,
                        )
                    except grpc.aio.AioRpcError as e:
                        self._note(began, 0, product, delta, e.code().name)
                        await asyncio.sleep(0.3)
                    else:
                        self._note(began, 200, product, delta, "")
                        self.restocked[product] = self.restocked.get(product, 0) + delta
                        break

    def _note(self, began: float, status: int, product: str, delta: int, detail: str) -> None:
        now = self._history.now()
        self._history.add(
            Call(
                operation="restock",
                via="grpc",
                began=began,
                ended=now,
                status=status,
                items={product: delta},
                detail=detail,
            )
        )


async def settle(stores: read.Stores, seconds: float) -> float:
    """Waits until no order owes anything and every event has its mail; answers how long it took, at most `seconds`."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with suppress(Exception):
            if not await read.unsettled(stores):
                events, dead = await read.topic(stores)
                taken = {m.message_id.strip("<>").partition("@")[0] for m in await read.mails(stores)}
                if {e.id for e in events} <= taken | dead:
                    # Once more after a moment: what was in flight has landed.
                    await asyncio.sleep(1)
                    if not await read.unsettled(stores):
                        break
        await asyncio.sleep(0.5)
    return time.monotonic() - began


async def collect(
    stores: read.Stores, history: History, start: dict[str, int], keeper: Any, *, disturbed: bool, admin: str
) -> Facts:
    """Everything that the checker wants to know, read from the stores."""
    events, dead = await read.topic(stores)
    return Facts(
        calls=history.calls,
        orders=await read.orders(stores),
        reservations=await read.reservations(stores),
        start=start,
        restocked=keeper.restocked,
        left=await read.stock(stores, list(start)),
        samples=keeper.samples,
        events=events,
        dead_letters=dead,
        mails=await read.mails(stores),
        disturbed=disturbed,
        recovery_seconds=RECOVERY_SECONDS + 5,
        differences=await differences(admin),
    )


async def differences(admin: str) -> list[str]:
    """What `market reconcile` finds, the topic included."""
    timeout = aiohttp.ClientTimeout(total=300)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{admin}/reconcile", params={"repair": "0", "topic": "1"}) as response,
    ):
        response.raise_for_status()
        lines = [msgspec.json.decode(line) for line in (await response.read()).splitlines() if line.strip()]
    return [str(line) for line in lines if line.get("kind") == "difference"]


def _merged(base: dict[str, dict[str, Any]], over: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**base.get(name, {}), **over.get(name, {})} for name in base.keys() | over.keys()}


def _report(
    settings: Settings, kafka: str, seconds: float, settled_after: float, facts: Facts, outcomes: list[Outcome]
) -> Report:
    by_status = [o.status for o in facts.orders.values()]
    places = [c for c in facts.calls if c.operation == "place"]
    return Report(
        seed=settings.seed,
        kills=sum(o.is_kill and o.hit and o.in_flight > 0 for o in outcomes),
        kafka=kafka,
        seconds=round(seconds, 1),
        placed=by_status.count("confirmed") + by_status.count("cancelled"),
        refused=sum(c.status in (409, 422) for c in places),
        cancelled=by_status.count("cancelled"),
        rejected=by_status.count("rejected"),
        repeated=len(places) - len({c.key for c in places}),
        calls=len(facts.calls),
        failed_calls=sum(c.failed for c in facts.calls),
        events=len({e.id for e in facts.events}),
        mails=len(facts.mails),
        mails_repeated=len(facts.mails) - len({m.message_id for m in facts.mails}),
        settled_after=round(settled_after, 1),
        outcomes=outcomes,
        violations=verdict(facts),
    )
