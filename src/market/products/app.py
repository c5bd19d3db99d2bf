"""The wiring of products."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from market.kit import postgres
from market.kit.http import edge
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process, Server
from market.kit.rpc import client as rpc
from market.products import api
from market.products.availability import Availability, Cache
from market.products.clients import InventoryClient
from market.products.config import Config
from market.products.service import Shop

MIGRATIONS = "market.products.migrations"


@asynccontextmanager
async def build(config: Config, process: Process) -> AsyncIterator[Server]:
    """The service, serving nothing yet. Waits for PostgreSQL and its schema; not for Redis, not for inventory."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(postgres.open_pool(config.postgres, process.health))
        await postgres.wait_for_schema(db, MIGRATIONS, process.health)
        channel = await stack.enter_async_context(rpc.channel(config.inventory))
        inventory = InventoryClient(
            channel, write_seconds=config.inventory.timeout_seconds, read_seconds=config.availability.timeout_seconds
        )
        cache = Cache(
            await stack.enter_async_context(connect(config.redis.url)),
            ttl=config.availability.ttl_seconds,
            seconds=config.redis.timeout_seconds,
        )
        availability = Availability(cache, inventory, seconds=config.availability.timeout_seconds)
        shop = Shop(db, inventory, availability, process.faults)
        app = edge.application(api.routes(shop), config.http, tracer=process.tracer, health=process.health)
        yield HttpServer(app, config.http.host, config.http.port)


def connect(url: str) -> redis.asyncio.Redis:
    """A client that connects when it is first used. One retry: for a connection that the server closed meanwhile.

    It has no time limits of its own, which cost a task for each command: the cache has one for the whole.
    """
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 1), protocol=2
    )
    return client


async def migrate(config: Config, _: list[str]) -> None:
    """Brings the schema up to date."""
    await postgres.migrate(config.postgres, MIGRATIONS)
