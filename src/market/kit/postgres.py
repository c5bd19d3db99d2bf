"""PostgreSQL for the services that have tables: the pool, and forward-only migrations.

The only SQL in the kit is the migrations' own bookkeeping.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING

import asyncpg

from market.kit import logs
from market.kit.config import Postgres
from market.kit.health import Health

log = logs.get("postgres")

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

# Whatever leaves open whether the statement took effect, or says that the server is not there.
DISCONNECTED = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError, OSError, asyncio.TimeoutError)


async def _no_reset(_: Connection) -> None:
    """Our statements leave nothing on a connection; the pool's reset would cost a quarter of a small query."""


@asynccontextmanager
async def pool(config: Postgres, health: Health, *, settings: dict[str, str] | None = None) -> AsyncIterator[Pool]:
    """A pool of connections; waits until the server is there. Adds the readiness check `postgres`."""

    async def connect() -> Pool:
        return await asyncpg.create_pool(
            host=config.host, port=config.port, database=config.database, user=config.user, password=config.password,
            min_size=1, max_size=config.pool_size, timeout=2, command_timeout=config.timeout_seconds,
            max_inactive_connection_lifetime=300, reset=_no_reset, server_settings={"application_name": "market", **(settings or {})},
        )  # fmt: skip

    made = await health.wait_for("postgres", connect)

    async def check() -> None:
        async with made.acquire(timeout=1) as conn:
            await conn.execute("SELECT 1", timeout=1)

    health.check("postgres", check)
    try:
        yield made
    finally:
        try:
            async with asyncio.timeout(5):
                await made.close()
        except TimeoutError:
            made.terminate()


_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


async def migrate(config: Postgres, package: str, health: Health | None = None) -> list[str]:
    """Applies what is missing of the package's `NNNN_name.sql` files, in order, and answers their names.

    Two at once are safe (advisory lock); a schema newer than the code is accepted. Each file is one
    transaction and must fit the version still running.
    """
    found = sorted(f.name for f in files(package).iterdir() if _NAME.fullmatch(f.name))

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host=config.host, port=config.port, database=config.database, user=config.user, password=config.password, timeout=5
        )

    conn = await (health or Health()).wait_for("postgres", connect)
    applied = []
    try:
        await conn.execute("SELECT pg_advisory_lock(hashtext('market.migrations'))")
        await conn.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["name"] for row in await conn.fetch("SELECT name FROM schema_migrations")}
        for name in found:
            if name in done:
                continue
            async with conn.transaction():
                # A migration that cannot have its lock gives way to the shop, and is tried again by the next start.
                await conn.execute("SET LOCAL lock_timeout = '5s'")
                await conn.execute((files(package) / name).read_text("utf-8"))
                await conn.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
            applied.append(name)
            log.info("migrated", migration=name)
    finally:
        await conn.close()
    return applied
