"""PostgreSQL: a connection pool with deadlines, and forward-only migrations.

The only SQL here is the bookkeeping of migrations.
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

# Errors after which it is unknown whether the statement took effect, or which say that the server is unavailable. The
# last one occurs on an idle connection that has received the server's shutdown message, but is not closed yet.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    OSError,
    asyncio.TimeoutError,
    asyncpg.InternalClientError,
)


async def _no_reset(_: Connection) -> None:
    """Skip the pool's reset, a quarter of the time of a small query. No statement here leaves session state behind."""


@asynccontextmanager
async def open_pool(config: Postgres, health: Health, *, settings: dict[str, str] | None = None) -> AsyncIterator[Pool]:
    """Open a pool of connections, waiting until the server is available, and add the readiness check `postgres`.

    settings: run-time parameters that each connection sets, such as {"plan_cache_mode": "force_generic_plan"}.
    """

    async def connect() -> Pool:
        pool = await asyncpg.create_pool(
            host=config.host,
            port=config.port,
            database=config.database,
            user=config.user,
            password=config.password,
            # The pool logs each failed attempt to restore its minimum, so there is none.
            min_size=0,
            max_size=config.pool_size,
            timeout=config.connect_timeout_seconds,
            command_timeout=config.timeout_seconds,
            max_inactive_connection_lifetime=300,
            reset=_no_reset,
            server_settings={"application_name": "market", **(settings or {})},
        )
        try:
            await pool.fetchval("SELECT 1")
        except BaseException:
            pool.terminate()
            raise
        return pool

    opened = await health.wait_for("postgres", connect)

    async def check() -> None:
        async with opened.acquire(timeout=1) as conn:
            await conn.execute("SELECT 1", timeout=1)

    health.add_check("postgres", check)
    try:
        yield opened
    finally:
        try:
            async with asyncio.timeout(5):
                await opened.close()
        except TimeoutError:
            opened.terminate()


@asynccontextmanager
async def acquire(pool: Pool, *, seconds: float = 3.0) -> AsyncIterator[Connection]:
    """Borrow a connection, for at most `seconds` or until the deadline.

    Raises DeadlineExceeded or Unavailable; whether a write inside the block took effect is then unknown.
    """
    try:
        async with asyncio.timeout(context.remaining(seconds)) as limit, pool.acquire() as conn:
            yield conn
    except TimeoutError:
        raise (DeadlineExceeded if limit.expired() else Unavailable)("the database did not respond in time") from None
    except asyncpg.DataError:
        # Also an InterfaceError, but it means a bug in this service.
        raise
    except (*CONNECTION_ERRORS, asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError) as e:
        raise Unavailable(f"the database is unavailable: {type(e).__name__}") from None


async def wait_for_schema(pool: Pool, package: str, health: Health) -> None:
    """Wait until every migration of the package has been applied. A newer schema is accepted."""

    async def check() -> None:
        try:
            done = {row["name"] for row in await pool.fetch("SELECT name FROM schema_migrations")}
        except asyncpg.UndefinedTableError:
            done = set()
        if missing := [name for name in _migrations(package) if name not in done]:
            raise RuntimeError(f"migrations are missing, run `migrate`: {', '.join(missing)}")

    await health.wait_for("schema", check)


_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def _migrations(package: str) -> list[str]:
    return sorted(f.name for f in files(package).iterdir() if _NAME.fullmatch(f.name))


async def migrate(config: Postgres, package: str, health: Health | None = None) -> list[str]:
    """Apply those of the package's `NNNN_name.sql` files that have not been applied, in order, and return their names.

    Concurrent calls are safe (advisory lock); a newer schema is accepted. Each file is one transaction, and must be
    compatible with the version of the service that is still running.
    """

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
            "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL "
            "DEFAULT now())"
        )
        done = {row["name"] for row in await conn.fetch("SELECT name FROM schema_migrations")}
        for name in _migrations(package):
            if name in done:
                continue
            async with conn.transaction():
                # A migration that cannot get its lock in time must not block requests behind it; the next start retries
                # it.
                await conn.execute("SET LOCAL lock_timeout = '5s'")
                await conn.execute((files(package) / name).read_text("utf-8"))
                await conn.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
            applied.append(name)
            log.info("migration applied", migration=name)
    finally:
        await conn.close()
    return applied
