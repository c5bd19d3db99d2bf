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

from market.kit import context
from market.kit.config import Postgres
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.process import logs
from market.kit.process.health import Health

log = logs.get_logger("postgres")

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

# Whatever leaves open whether the statement took effect, or says that the server is not there. The last one comes where
# an idle connection was told that the server ends, and has not yet seen its own end.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    OSError,
    asyncio.TimeoutError,
    asyncpg.InternalClientError,
)


async def _no_reset(_: Connection) -> None:
    """Our statements leave nothing on a connection; the pool's reset would cost a quarter of a small query."""


@asynccontextmanager
async def open_pool(config: Postgres, health: Health, *, settings: dict[str, str] | None = None) -> AsyncIterator[Pool]:
    """A pool of connections; waits until the server is there. Adds the readiness check `postgres`."""

    async def connect() -> Pool:
        made = await asyncpg.create_pool(
            host=config.host,
            port=config.port,
            database=config.database,
            user=config.user,
            password=config.password,
            # No connection is kept for its own sake: the pool would log each vain attempt to have it back.
            min_size=0,
            max_size=config.pool_size,
            timeout=config.connect_timeout_seconds,
            command_timeout=config.timeout_seconds,
            max_inactive_connection_lifetime=300,
            reset=_no_reset,
            server_settings={"application_name": "market", **(settings or {})},
        )
        try:
            await made.fetchval("SELECT 1")
        except BaseException:
            made.terminate()
            raise
        return made

    made = await health.wait_for("postgres", connect)

    async def check() -> None:
        async with made.acquire(timeout=1) as conn:
            await conn.execute("SELECT 1", timeout=1)

    health.add_check("postgres", check)
    try:
        yield made
    finally:
        try:
            async with asyncio.timeout(5):
                await made.close()
        except TimeoutError:
            made.terminate()


@asynccontextmanager
async def acquire(pool: Pool, *, seconds: float = 3.0) -> AsyncIterator[Connection]:
    """A connection, held for at most `seconds` or what the caller has left. Raises Unavailable, DeadlineExceeded.

    Unavailable leaves open whether a write inside took effect.
    """
    try:
        async with asyncio.timeout(context.remaining(seconds)) as limit, pool.acquire() as conn:
            yield conn
    except TimeoutError:
        raise (DeadlineExceeded if limit.expired() else Unavailable)("the database did not answer in time") from None
    except asyncpg.DataError:
        # An InterfaceError, and yet nobody's fault but ours.
        raise
    except (*CONNECTION_ERRORS, asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError) as e:
        raise Unavailable(f"the database is not there: {type(e).__name__}") from None


async def wait_for_schema(pool: Pool, package: str, health: Health) -> None:
    """Waits until `migrate` has applied all that this code needs. A schema that is newer is accepted."""

    async def look() -> None:
        try:
            done = {row["name"] for row in await pool.fetch("SELECT name FROM schema_migrations")}
        except asyncpg.UndefinedTableError:
            done = set()
        if missing := [name for name in _found(package) if name not in done]:
            raise RuntimeError(f"migrations are missing, run `migrate`: {', '.join(missing)}")

    await health.wait_for("schema", look)


_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def _found(package: str) -> list[str]:
    return sorted(f.name for f in files(package).iterdir() if _NAME.fullmatch(f.name))


async def migrate(config: Postgres, package: str, health: Health | None = None) -> list[str]:
    """Applies what is missing of the package's `NNNN_name.sql` files, in order, and answers their names.

    Two at once are safe (advisory lock); a schema newer than the code is accepted. Each file is one
    transaction and must fit the version still running.
    """
    found = _found(package)

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            host=config.host,
            port=config.port,
            database=config.database,
            user=config.user,
            password=config.password,
            timeout=5,
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
