"""PostgreSQL: a pool of connections to the server that accepts writes. Migrations are in market.kit.migrations."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.pool import PoolAcquireContext

from market.kit import context
from market.kit.config import Postgres, Tls
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.tls import ReloadingContext

log = logs.get_logger("postgres")

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    DirectConnection = asyncpg.Connection[asyncpg.Record]
    Connection = DirectConnection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    AcquireContext = PoolAcquireContext[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    DirectConnection = Connection = asyncpg.Connection
    AcquireContext = PoolAcquireContext

# After these errors, the server is unavailable, or it is unknown whether the statement took effect. asyncpg raises
# InternalClientError on an idle connection that has received the server's shutdown message, but is not closed yet.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    OSError,
    asyncio.TimeoutError,
    asyncpg.InternalClientError,
)

# The server is reachable, but rejects statements: it is out of resources or read-only, or privileges were revoked.
_REJECTION_ERRORS = (
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InsufficientPrivilegeError,
)

# asyncpg.connect raises these if the server cannot be reached, refuses the session, or accepts no writes.
_CONNECT_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InternalClientError)


class DatabaseUnreachable(ConnectionError):
    """No host accepted a new connection. The message gives a reason for each, such as "no response within 2 s"."""


class PooledConnection(DirectConnection):
    """A connection of the pool.

    replace_at: when it has to be replaced, in seconds of time.monotonic()
    """

    replace_at: float = float("inf")

    def is_read_only(self) -> bool:
        """Return, without a round trip, whether the server has reported that this session cannot write.

        Servers from version 14 on report a change together with the result of the next statement.
        """
        return getattr(self.get_settings(), "default_transaction_read_only", "off") == "on"


class Connector:
    """Opens connections to the server that accepts writes. It tries the host of the last connection first.

    settings: the run-time parameters of each connection
    timeout_seconds: the timeout of each statement. None: no timeout
    """

    def __init__(
        self, config: Postgres, *, settings: Mapping[str, str] | None = None, timeout_seconds: float | None = None
    ) -> None:
        self._config = config
        self._settings = {"application_name": "market", **(settings or {})}
        self._timeout_seconds = timeout_seconds
        self._addresses = config.addresses
        self._tls = _Tls(config.tls)
        self._has_connected = False
        # Failure reasons that were logged since the last successful connection.
        self._logged: set[str] = set()

    async def __call__(self, **options: Any) -> PooledConnection:
        """Return a new connection; `options` are further arguments of asyncpg.connect. Raises DatabaseUnreachable."""
        failures: dict[tuple[str, int], str] = {}
        # Each host gets an equal share of the timeout, so that one that does not respond leaves time for the others.
        seconds = self._config.connect_timeout_seconds / len(self._addresses)
        for address in tuple(self._addresses):
            try:
                conn = await self._connect(address, seconds, **options)
            except _CONNECT_ERRORS as e:
                self._move_to_end(address)
                failures[address] = _reason(e, seconds)
            except asyncio.CancelledError:
                # The caller's deadline may have passed because this host does not respond. Next time, try it last.
                self._move_to_end(address)
                raise
            else:
                self._log_success()
                return conn
        reason = "; ".join(f"{host}:{port}: {reason}" for (host, port), reason in sorted(failures.items()))
        if len(self._addresses) == 1:
            [reason] = failures.values()
        self._log_failure(reason)
        raise DatabaseUnreachable(reason)

    def _log_failure(self, reason: str) -> None:
        # Until the first connection, Health.wait_for logs the reason.
        if self._has_connected and reason not in self._logged and len(self._logged) < 5:
            self._logged.add(reason)
            log.warning("cannot connect to the database", reason=reason)

    def _log_success(self) -> None:
        self._has_connected = True
        if self._logged:
            self._logged.clear()
            log.info("connected to the database again")

    def _move_to_end(self, address: tuple[str, int]) -> None:
        self._addresses.remove(address)
        self._addresses.append(address)

    async def _connect(self, address: tuple[str, int], seconds: float, **options: Any) -> PooledConnection:
        config = self._config
        connected = await asyncpg.connect(
            host=address[0],
            port=address[1],
            database=config.database,
            user=config.user,
            password=config.password,
            ssl=self._tls.get(),
            timeout=seconds,
            command_timeout=self._timeout_seconds,
            server_settings=self._settings,
            target_session_attrs=SessionAttribute.read_write,
            **{"connection_class": PooledConnection, **options},
        )
        conn = cast(PooledConnection, connected)
        # With jitter, so that connections opened together are not all replaced at the same time.
        conn.replace_at = time.monotonic() + random.uniform(0.9, 1.1) * config.max_connection_age_seconds
        return conn


def _reason(error: BaseException, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {seconds:g} s"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "the server accepts no writes (a standby, or read-only)"
    return str(error) or type(error).__name__


class _Tls:
    """The `ssl` argument of asyncpg.connect."""

    def __init__(self, config: Tls) -> None:
        self._config = config
        self._context = ReloadingContext(self._build, config.ca_file, config.cert_file, config.key_file)

    def get(self) -> ssl.SSLContext | Literal["disable", "prefer"]:
        """Return the TLS context, or the name of a mode that needs none. Raises OSError if a file is unreadable."""
        if self._config.mode == "disable" or self._config.mode == "prefer":
            return self._config.mode
        return self._context.get()

    def _build(self) -> ssl.SSLContext:
        config = self._config
        ssl_context = ssl.create_default_context(cafile=config.ca_file)
        ssl_context.check_hostname = config.mode == "verify-full"
        if not config.verifies:
            ssl_context.verify_mode = ssl.CERT_NONE
        if config.cert_file is not None:
            ssl_context.load_cert_chain(config.cert_file, config.key_file)
        ssl_context.set_alpn_protocols(["postgresql"])
        return ssl_context


class _Pool(Pool):
    """A pool that replaces connections that are too old, or whose server no longer accepts writes."""

    def acquire(self, *, timeout: float | None = None) -> _AcquireContext:
        return _AcquireContext(self, timeout)

    async def close_if_expired(self, conn: PooledConnection) -> None:
        """Close a connection that is being released if it is too old or read-only.

        This replaces asyncpg's reset of the session, which would make a small query a quarter slower. The reset is not
        needed, because no statement changes the state of the session.
        """
        if time.monotonic() >= conn.replace_at:
            conn.terminate()
        elif conn.is_read_only():
            conn.terminate()
            # The other connections have the same server. Each is replaced when it is acquired the next time.
            await self.expire_connections()


class _AcquireContext(AcquireContext):
    """Expires all connections of the pool after a write that failed because the server is read-only."""

    async def __aexit__(self, *exc: object) -> None:
        # PooledConnection.is_read_only is not enough: behind a proxy, it may always return False.
        if exc and isinstance(exc[1], asyncpg.ReadOnlySQLTransactionError):
            await self.pool.expire_connections()
        await super().__aexit__(*exc)


@asynccontextmanager
async def open_pool(config: Postgres, health: Health, *, settings: dict[str, str] | None = None) -> AsyncIterator[Pool]:
    """Wait until the server accepts writes, open a pool of connections, and add the check `postgres` to `health`.

    settings: run-time parameters that each connection sets, such as {"plan_cache_mode": "force_generic_plan"}.
    """
    connector = Connector(config, settings=settings, timeout_seconds=config.timeout_seconds)

    async def connect() -> Pool:
        new_pool = _Pool(
            connect=connector,  # type: ignore[arg-type]  # The stubs expect its signature to be asyncpg.connect's.
            # With a minimum size, the pool would log every failed attempt to open a connection.
            min_size=0,
            max_size=config.pool_size,
            max_queries=50_000,
            max_inactive_connection_lifetime=300,
            reset=lambda conn: new_pool.close_if_expired(conn),
            loop=asyncio.get_running_loop(),
            connection_class=PooledConnection,
            record_class=asyncpg.Record,
        )
        try:
            await new_pool
            await new_pool.fetchval("SELECT 1")
        except BaseException:
            new_pool.terminate()
            raise
        return new_pool

    pool = await health.wait_for("postgres", connect)

    async def check() -> None:
        async with pool.acquire(timeout=1) as conn:
            # This is also "on" on a standby.
            if await conn.fetchval("SELECT current_setting('transaction_read_only')", timeout=1) == "on":
                await pool.expire_connections()
                raise Unavailable("the database accepts no writes")

    health.add_check("postgres", check)
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except TimeoutError:
            pool.terminate()


@asynccontextmanager
async def acquire(pool: Pool, *, seconds: float = 3.0) -> AsyncIterator[Connection]:
    """Acquire a connection for the block.

    Waiting for it and running the block may take `seconds` in total, or until the deadline if that is sooner.
    Raises DeadlineExceeded or Unavailable. It is then unknown whether a write inside the block took effect.
    """
    try:
        async with asyncio.timeout(context.remaining(seconds)) as limit, pool.acquire() as conn:
            yield conn
    except TimeoutError:
        raise (DeadlineExceeded if limit.expired() else Unavailable)("the database did not respond in time") from None
    except asyncpg.DataError:
        # asyncpg's DataError is a subclass of InterfaceError, but its cause is a bug in this service.
        raise
    except (*CONNECTION_ERRORS, *_REJECTION_ERRORS) as e:
        raise Unavailable(f"the database is unavailable: {type(e).__name__}") from None
