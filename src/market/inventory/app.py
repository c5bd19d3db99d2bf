"""The wiring of inventory: pool, repositories, batcher, retention, gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.inventory import api, service
from market.inventory.batching.transactions import TransactionBatcher
from market.inventory.config import Batching, Config
from market.inventory.service import Deps
from market.inventory.store import Database, ReservationRepository, StockRepository
from market.kit import migrations, postgres
from market.kit.auth.authenticator import Authenticator, authenticator
from market.kit.faults import Faults
from market.kit.process.lifecycle import Process
from market.kit.process.tasks import periodic_tasks
from market.kit.rpc.server import GrpcServer

MIGRATIONS = "market.inventory.migrations"

# PostgreSQL's settings of each connection.
SETTINGS = {
    # The SQL functions rely on it, so the default of the database must not matter.
    "default_transaction_isolation": "read committed",
    # The statements take arrays; planning them for each call costs more than a better plan saves.
    "plan_cache_mode": "force_generic_plan",
    # Every access is by key. A plan made while a table was empty must not scan it when it is large.
    "enable_seqscan": "off",
    "jit": "off",
}


@asynccontextmanager
async def build(config: Config, process: Process) -> AsyncIterator[GrpcServer]:
    """Wire inventory and yield its server, not yet listening. Wait for PostgreSQL and its schema before."""
    async with open_deps(config, process) as deps, authenticator(config.auth, callers=config.auth.callers) as callers:
        async with periodic_tasks({"retention": lambda: service.delete_expired(deps, config.retention)}):
            yield server(config, process, deps, callers)


@asynccontextmanager
async def open_deps(config: Config, process: Process) -> AsyncIterator[Deps]:
    """Connect to PostgreSQL, wait for its schema, and yield the dependencies of the use cases."""
    async with postgres.open_pool(config.postgres, process.health, settings=SETTINGS) as pool:
        await migrations.wait_for_schema(pool, MIGRATIONS, process.health)
        yield make_deps(
            pool,
            timeout_seconds=config.postgres.timeout_seconds,
            batching=config.batching,
            max_pending=config.grpc.max_pending,
            faults=process.faults,
        )


def make_deps(
    pool: postgres.Pool, *, timeout_seconds: float, batching: Batching, max_pending: int, faults: Faults | None
) -> Deps:
    """Build the repositories on the pool, and the queues in front of them."""
    database = Database(pool, timeout_seconds=timeout_seconds, faults=faults)
    stock, reservations = StockRepository(database), ReservationRepository(database)
    return Deps(stock, reservations, TransactionBatcher(stock, reservations, batching), max_pending)


def server(config: Config, process: Process, deps: Deps, callers: Authenticator | None = None) -> GrpcServer:
    """Return the gRPC server of the use cases, not yet listening. `callers`: verifies callers; None in mode `open`."""
    return GrpcServer(
        config.grpc.host,
        config.grpc.port,
        process.health,
        {api.NAME: api.handlers(deps, process.tracer, callers)},
        max_in_flight=config.grpc.max_in_flight,
        tls=config.grpc.tls,
    )


async def migrate(config: Config, _: list[str]) -> None:
    """Apply the pending migrations."""
    await migrations.migrate(config.postgres, MIGRATIONS)
