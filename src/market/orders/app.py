"""The wiring: builds repositories, clients, the relay and the periodic tasks, and stops them in the right sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from market.contracts import events
from market.kit.auth.authenticator import Authenticator, authenticator
from market.kit.auth.service_tokens import service_tokens
from market.kit.http.admission import Admission
from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.lifecycle import Process, Server
from market.kit.process.tasks import PeriodicTask, periodic_tasks
from market.kit.rpc import client as rpc
from market.kit.rpc.identity_report import IdentityReport
from market.kit.topics import Topic, TopicKeeper, ensure_topics
from market.orders import api, metrics
from market.orders.clients import InventoryClient, ProductsClient
from market.orders.config import Config, Kafka
from market.orders.idempotency.keys import IdempotencyKeyRepository
from market.orders.mongodb.collection import OrdersCollection, create_client
from market.orders.mongodb.indexes import check_indexes, create_indexes
from market.orders.outbox.relay import Relay
from market.orders.outbox.repository import OutboxRepository
from market.orders.recovery.recover import recover_orders
from market.orders.recovery.repository import DueOrders
from market.orders.service import Deps
from market.orders.store import OrderRepository

log = logs.get_logger("orders")

# The pause between two updates of the metrics that are read from MongoDB.
_METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class Clients:
    """Clients that tests pass to `build` in place of the real ones."""

    products: ProductsClient | None = None
    inventory: InventoryClient | None = None


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Server]:
    """Build the service and run its periodic tasks.

    Waits for MongoDB and its indexes, but not for Kafka, products or inventory. If the service's token is in a file,
    also waits while inventory rejects that token.
    """
    async with connect(config, process, clients) as deps, authenticator(config.auth) as authentication:
        await wait_for_store(process.health, deps)
        if config.service_identity is not None and config.service_identity.token_file is not None:
            # With a wrong token in the file, a new pod does not become ready, and the rolling update stops. A token
            # from the issuer is not checked here: a pod has to start even if the issuer is unavailable.
            await process.health.wait_for("inventory-identity", deps.inventory.check_identity)
        async with periodic_tasks(tasks_by_name(config, deps)):
            yield http_server(config, process, deps, authentication)


@asynccontextmanager
async def connect(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Deps]:
    """Yield the dependencies of the use cases. Waits for nothing: connections are opened when they are first used."""
    clients = clients or Clients()
    async with AsyncExitStack() as stack:
        client = create_client(config.mongodb)
        stack.push_async_callback(client.close)
        collection = OrdersCollection(client[config.mongodb.database], timeout_seconds=config.mongodb.timeout_seconds)
        instance_id = uuid4().hex
        outbox = OutboxRepository(collection, instance_id=instance_id)
        keys = IdempotencyKeyRepository(collection)
        # The service calls inventory with its own token, no matter who placed the order. It calls products without a
        # token, because prices are public.
        tokens = await stack.enter_async_context(service_tokens(config.service_identity, config.auth))
        products = clients.products or ProductsClient(
            await stack.enter_async_context(HttpClient("products", config.products))
        )
        report = IdentityReport(process.health, "inventory")
        inventory = clients.inventory or InventoryClient(
            await stack.enter_async_context(rpc.channel(config.inventory, tokens, report=report)), config.inventory
        )
        topics = TopicKeeper(config.kafka, "market.orders", _topics(config.kafka))
        deps = Deps(
            orders=OrderRepository(collection, keys, instance_id=instance_id),
            keys=keys,
            due=DueOrders(collection),
            products=products,
            inventory=inventory,
            relay=Relay(config, outbox, process.clock, process.faults, topics),
            clock=process.clock,
            faults=process.faults,
        )
        try:
            yield deps
        finally:
            # `deps.tasks` may still use the relay, so they end before the relay is closed.
            if deps.tasks:
                await asyncio.wait(deps.tasks, timeout=3)
            await deps.relay.close(5)


async def wait_for_store(health: Health, deps: Deps) -> None:
    """Wait for MongoDB and its indexes, and add the check `mongodb` to `health`."""
    collection = deps.orders.collection
    await health.wait_for("mongodb", collection.ping)
    health.add_check("mongodb", collection.ping)
    await health.wait_for("indexes", lambda: check_indexes(collection))


def http_server(
    config: Config, process: Process, deps: Deps, authentication: Authenticator | None = None
) -> HttpServer:
    """Return the REST API's server, without starting it. Without `authentication`, nobody signs in (mode `open`)."""
    app = api.app(
        deps,
        config.http,
        process.tracer,
        process.health,
        Admission(config.admission, unit="lines"),
        recovery=config.recovery,
        create_order_timeout_seconds=config.create_order_timeout_seconds,
        default_timeout_seconds=config.default_timeout_seconds,
        authenticator=authentication,
    )
    return HttpServer(app, config.http.host, config.http.port, limits=config.http)


def tasks_by_name(config: Config, deps: Deps) -> Mapping[str, PeriodicTask]:
    """Return the periodic tasks by name: recovery, the relay, the metrics and the topic."""
    recovery = config.recovery

    async def recover() -> float:
        more = await recover_orders(deps, recovery.reject_after_seconds, recovery.interval_seconds)
        return 0.0 if more else recovery.interval_seconds

    async def update_metrics() -> float:
        statistics = await deps.due.statistics()
        metrics.PENDING.set(statistics.pending)
        metrics.PENDING_AGE.set(statistics.oldest_pending_seconds)
        metrics.OUTBOX.set(statistics.unsent)
        metrics.OUTBOX_AGE.set(statistics.oldest_unsent_seconds)
        metrics.RELEASE_DUE.set(statistics.releases_due)
        metrics.WITH_STUCK_EVENTS.set(statistics.with_stuck_events)
        return _METRICS_SECONDS

    return {
        "recovery": recover,
        "relay": deps.relay.run_once,
        "metrics": update_metrics,
        # Normally the topic exists already: `migrate` creates it, unless Kafka is unavailable at that time.
        "topics": deps.relay.topics.check,
    }


def _topics(config: Kafka) -> list[Topic]:
    if config.partitions == 0:
        return []
    settings = {
        "retention.ms": str(events.RETENTION_MS),
        "max.message.bytes": str(events.MAX_MESSAGE_BYTES),
        "min.insync.replicas": str(config.min_insync),
    }
    return [Topic(events.TOPIC, config.partitions, config.replication, settings)]


async def migrate(config: Config, _: list[str]) -> int:
    """Create the indexes and the topic, and return the exit status, 0.

    If the topic exists, set only the settings that are still the broker's defaults. If Kafka stays unavailable for
    `kafka.create_seconds`, the service creates the topic later, but does not change an existing one. Raises
    PyMongoError.
    """
    client = create_client(config.mongodb)
    try:
        collection = OrdersCollection(client[config.mongodb.database], timeout_seconds=config.mongodb.timeout_seconds)
        await Health().wait_for("mongodb", collection.ping)
        await create_indexes(collection)
    finally:
        await client.close()
    topics = _topics(config.kafka)
    if not await ensure_topics(config.kafka, "market.orders", topics, config.kafka.create_seconds, apply_settings=True):
        log.warning("topic not prepared, the service will create it if it is missing")
    return 0
