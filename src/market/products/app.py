"""The wiring of products: pool, repository, cache, client of inventory, HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from market.contracts import access
from market.kit import migrations, postgres
from market.kit.auth.authenticator import authenticator
from market.kit.auth.service_tokens import service_tokens
from market.kit.http import edge
from market.kit.http.admission import Admission
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process, Server
from market.kit.rpc import client as rpc
from market.kit.rpc.identity_report import IdentityReport
from market.products import api
from market.products.availability import lookup
from market.products.clients import InventoryClient
from market.products.config import Config
from market.products.search.pages import SETTINGS, ProductSearch
from market.products.service import Deps
from market.products.store import ProductRepository

MIGRATIONS = "market.products.migrations"


@dataclass(frozen=True)
class Clients:
    """The seam for tests: a field that is not None replaces the client of inventory, or the cache in Redis."""

    inventory: InventoryClient | None = None
    cache: lookup.Cache | None = None


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[Server]:
    """Wire products and yield its server, not yet listening.

    Wait for PostgreSQL and its schema, and until inventory accepts this service's identity, but not until Redis or
    inventory is available.
    """
    clients = clients or Clients()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(postgres.open_pool(config.postgres, process.health, settings=SETTINGS))
        await migrations.wait_for_schema(pool, MIGRATIONS, process.health)
        tokens = await stack.enter_async_context(service_tokens(config.service_identity, config.auth))
        inventory = clients.inventory or InventoryClient(
            await stack.enter_async_context(
                rpc.channel(config.inventory, tokens, report=IdentityReport(process.health, "inventory"))
            ),
            read_seconds=config.availability.timeout_seconds,
            write_seconds=config.inventory.timeout_seconds,
        )
        if config.service_identity is not None and config.service_identity.token_file is not None:
            # A rolling update with a wrong identity stops at its first pod. Not with client credentials: without its
            # issuer a pod would not start, although much of what it does needs no token.
            await process.health.wait_for("inventory-identity", inventory.check_identity)
        availability = await stack.enter_async_context(lookup.open_lookup(config, inventory, clients.cache))
        deps = Deps(
            products=ProductRepository(pool, timeout_seconds=config.request_seconds),
            search=ProductSearch(pool, timeout_seconds=config.request_seconds),
            inventory=inventory,
            availability=availability,
            faults=process.faults,
        )
        routes = api.routes(deps, Admission(config.admission, unit="products"))
        app = edge.application(
            routes,
            config.http,
            tracer=process.tracer,
            health=process.health,
            timeouts=dict.fromkeys(routes, config.request_seconds),
            authenticator=await stack.enter_async_context(authenticator(config.auth)),
            access=access.PRODUCTS,
        )
        yield HttpServer(app, config.http.host, config.http.port, limits=config.http)


async def migrate(config: Config, _: list[str]) -> None:
    """Apply the pending migrations."""
    await migrations.migrate(config.postgres, MIGRATIONS)
