"""The only wiring: store, clients, relay, loops, and the order in which they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.lifecycle import Process, Server
from market.kit.process.tasks import run_periodically
from market.kit.rpc import client as rpc
from market.orders import admin, api, kafka, metrics, mongo, service
from market.orders.clients import Inventory, Products
from market.orders.config import Config
from market.orders.relay import Relay
from market.orders.service import Shop
from market.orders.store import Store

log = logs.get_logger("orders")


@dataclass(frozen=True)
class Clients:
    """The seam for tests: what takes the place of the neighbours."""

    products: Products | None = None
    inventory: Inventory | None = None


@asynccontextmanager
async def shop(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Shop]:
    """The use cases' parts, connected. Waits for MongoDB and its indexes; Kafka and the neighbours may come later."""
    clients = clients or Clients()
    async with AsyncExitStack() as stack:
        client = mongo.client(config.mongodb)
        stack.push_async_callback(client.close)
        database = client[config.mongodb.database]
        await process.health.wait_for("mongodb", lambda: mongo.ping(database))
        process.health.add_check("mongodb", lambda: mongo.ping(database))
        await process.health.wait_for("indexes", lambda: mongo.has_indexes(database))
        orders = Store(database, seconds=config.mongodb.timeout_seconds, me=uuid4().hex)
        products = clients.products or Products(
            await stack.enter_async_context(HttpClient("products", config.products))
        )
        inventory = clients.inventory or Inventory(
            await stack.enter_async_context(rpc.channel(config.inventory)), config.inventory
        )
        relay = Relay(config, orders, process.clock, process.faults)
        made = Shop(orders, products, inventory, relay, process.clock, process.faults)
        try:
            yield made
        finally:
            # First what answered requests left, then the outbox, then the store below both.
            if made.tasks:
                await asyncio.wait(made.tasks, timeout=3)
            await relay.close(5)


@asynccontextmanager
async def server(config: Config, process: Process, shop: Shop, *, loops: bool = True) -> AsyncIterator[Server]:
    """The service around a shop. `loops=False` leaves recovery and relay to others: for tests."""
    running = {name: _Loop(step) for name, step in _loops(shop, config)} if loops else {}
    tasks = [asyncio.create_task(run_periodically(name, loop)) for name, loop in running.items()]
    try:
        app = api.app(
            shop,
            config.http,
            process.tracer,
            process.health,
            order_seconds=config.order_seconds,
            other_seconds=config.other_seconds,
        )
        yield HttpServer(app, config.http.host, config.http.port)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                for loop in running.values():
                    await loop.between_steps()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Loop:
    """A loop's step, of which one can wait for the end: a step that is cancelled on the way breaks its connection."""

    def __init__(self, step: Callable[[], Awaitable[float]]) -> None:
        self._step = step
        self._stepping = asyncio.Lock()

    async def __call__(self) -> float:
        async with self._stepping:
            return await self._step()

    async def between_steps(self) -> None:
        """Returns once no step is under way; none begins after that."""
        await self._stepping.acquire()


@asynccontextmanager
async def build(config: Config, process: Process, *, clients: Clients | None = None) -> AsyncIterator[Server]:
    """The service."""
    async with shop(config, process, clients) as made, server(config, process, made) as serving:
        process.admin_routes["POST /reconcile"] = admin.route(made, config)
        yield serving


def _loops(shop: Shop, config: Config) -> list[tuple[str, Callable[[], Awaitable[float]]]]:
    recovery = config.recovery

    async def recover() -> float:
        more = await service.recover(shop, recovery.after_seconds, recovery.interval_seconds)
        return 0.0 if more else recovery.interval_seconds

    async def watch() -> float:
        figures = await shop.store.figures()
        metrics.PENDING.set(figures.pending)
        metrics.PENDING_AGE.set(figures.pending_age)
        metrics.OUTBOX.set(figures.unsent)
        metrics.OUTBOX_AGE.set(figures.unsent_age)
        metrics.RELEASE_DUE.set(figures.releases)
        metrics.STUCK.set(figures.stuck)
        return 5.0

    async def topics() -> float:
        # Where `migrate` could not make them, because Kafka was not there.
        return 3600.0 if await kafka.make_topics(config.kafka, 5) else 5.0

    return [("recovery", recover), ("relay", shop.relay.step), ("figures", watch), ("topics", topics)]


async def migrate(config: Config, _: list[str]) -> int:
    """Makes indexes and topics. Kafka is waited for only a while: the service makes the topics when it is there."""
    client = mongo.client(config.mongodb)
    try:
        database = client[config.mongodb.database]
        await Health().wait_for("mongodb", lambda: mongo.ping(database))
        await mongo.make_indexes(database)
    finally:
        await client.close()
    if not await kafka.make_topics(config.kafka, config.kafka.create_seconds, limits=True):
        log.warning("Kafka is not there: the service makes the topics when it is")
    return 0
