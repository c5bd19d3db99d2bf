"""The wiring of inventory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from market.inventory import api
from market.inventory.config import Config
from market.inventory.service import Inventory
from market.kit import postgres
from market.kit.process.lifecycle import Process
from market.kit.process.tasks import run_periodically
from market.kit.rpc.server import GrpcServer

MIGRATIONS = "market.inventory.migrations"

SETTINGS = {
    # The locks and the functions count on it, whatever the database's own default.
    "default_transaction_isolation": "read committed",
    # The statements take arrays: a plan made anew for each costs more than it finds.
    "plan_cache_mode": "force_generic_plan",
    # Everything goes by key. A table that was empty when a plan was made must not teach otherwise.
    "enable_seqscan": "off",
    "jit": "off",
}


@asynccontextmanager
async def build(config: Config, process: Process) -> AsyncIterator[GrpcServer]:
    async with postgres.open_pool(config.postgres, process.health, settings=SETTINGS) as db:
        await postgres.wait_for_schema(db, MIGRATIONS, process.health)
        inventory = Inventory(
            db,
            timeout=config.postgres.timeout_seconds,
            gathering=config.gathering,
            max_waiting=config.grpc.max_waiting,
            faults=process.faults,
        )
        retention = asyncio.create_task(
            run_periodically("retention", lambda: inventory.forget_cancelled(config.retention))
        )
        try:
            yield GrpcServer(
                config.grpc.host,
                config.grpc.port,
                process.health,
                {api.NAME: api.handlers(api.Api(inventory), process.tracer)},
                max_in_flight=config.grpc.max_in_flight,
            )
        finally:
            retention.cancel()
            with suppress(asyncio.CancelledError):
                await retention


async def migrate(config: Config, _: list[str]) -> None:
    """Brings the tables up to date."""
    await postgres.migrate(config.postgres, MIGRATIONS)
