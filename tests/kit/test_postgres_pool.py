"""The pool of connections: what it does when the server refuses us, becomes read-only, moves, or does not respond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from market.kit import postgres as kit_postgres
from market.kit.config import Postgres
from market.kit.errors import Unavailable
from market.kit.postgres import acquire, open_pool
from market.kit.process.health import Health
from tests.support import servers
from tests.support.databases import configuration, own_database, superuser
from tests.support.forwarder import Forwarder
from tests.support.servers import PostgresHandle, running
from tests.support.waiting import PATIENCE, until

PORT = "SELECT current_setting('port')::int"


@pytest.fixture(scope="module")
def other_postgres(server_directory: Path) -> Iterator[PostgresHandle]:
    """A second server, which the tests here make read-only and pause."""
    directory = server_directory / "other-postgres"
    with running(handle := PostgresHandle(servers.postgres_server(directory, server_directory / "other-logs"))):
        yield handle


@asynccontextmanager
async def opened(config: Postgres) -> AsyncIterator[tuple[kit_postgres.Pool, Health]]:
    health = Health()
    async with open_pool(config, health) as pool:
        health.started = True
        yield pool, health


async def fetchval(pool: kit_postgres.Pool, statement: str, *, seconds: float = PATIENCE) -> Any:
    async with acquire(pool, seconds=seconds) as conn:
        return await conn.fetchval(statement)


async def warm(pool: kit_postgres.Pool, connections: int) -> set[int]:
    """Use several connections at once, and return the ports of their servers."""
    async with asyncio.timeout(PATIENCE):
        return set(await asyncio.gather(*(fetchval(pool, f"{PORT} FROM pg_sleep(0.2)") for _ in range(connections))))


def both(first: PostgresHandle, second: PostgresHandle, **settings: Any) -> Postgres:
    """The configuration for two servers, of which the second has another password."""
    return configuration(first, host=f"{first.host}:{first.port},{second.host}:{second.port}", **settings)


@pytest.fixture
async def same_password(postgres: PostgresHandle, other_postgres: PostgresHandle) -> AsyncIterator[None]:
    """Lets the user `products` log in to the second server with the password of the first."""
    async with superuser(other_postgres) as conn:
        await conn.execute(f"ALTER ROLE products PASSWORD '{postgres.password}'")
        yield
        await conn.execute(f"ALTER ROLE products PASSWORD '{other_postgres.password}'")


@asynccontextmanager
async def read_only(server: PostgresHandle) -> AsyncIterator[None]:
    """Make the server read-only for its open sessions too, as a provider does when a disk is full."""
    async with superuser(server) as conn:
        await conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await conn.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await conn.execute("SET default_transaction_read_only = off")
            await conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await conn.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ALTER ROLE {user} PASSWORD 'changed'", "password authentication failed for user"),
        ("ALTER ROLE {user} NOLOGIN", "is not permitted to log in"),
        ("ALTER ROLE {user} CONNECTION LIMIT 0", "too many connections for role"),
        ("REVOKE CONNECT ON DATABASE {database} FROM {user}", "permission denied for database"),
        ("ALTER DATABASE {database} ALLOW_CONNECTIONS false", "is not currently accepting connections"),
        ("ALTER DATABASE {database} RENAME TO {database}_moved", "does not exist"),
    ],
)
async def test_a_server_that_refuses_the_login_is_unavailable(
    postgres: PostgresHandle, statement: str, reason: str
) -> None:
    user = f"u{uuid4().hex[:12]}"
    async with own_database(postgres, user=user) as config, superuser(postgres) as admin:
        await admin.execute(f"REVOKE CONNECT ON DATABASE {config.database} FROM PUBLIC")
        await admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{config.password}'")
        await admin.execute(f"GRANT CONNECT ON DATABASE {config.database} TO {user}")
        try:
            async with opened(config) as (pool, health):
                assert await health.unavailable_dependencies() == {}
                await pool.expire_connections()
                # A database can be renamed only while nobody is connected to it.
                await admin.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1", config.database
                )
                await admin.execute(statement.format(user=user, database=config.database))
                with pytest.raises(Unavailable, match=r"^the database is unavailable") as raised:
                    await fetchval(pool, "SELECT 1")
                assert (raised.value.status, raised.value.retry_after) == (503, 1)
                assert reason in (await health.unavailable_dependencies())["postgres"]
        finally:
            if "RENAME" in statement:
                await admin.execute(f"ALTER DATABASE {config.database}_moved RENAME TO {config.database}")
            await admin.execute(f"DROP OWNED BY {user}")
            await admin.execute(f"REVOKE ALL ON DATABASE {config.database} FROM {user}")
            await admin.execute(f"DROP ROLE {user}")


async def test_a_table_whose_privileges_were_revoked_is_unavailable(postgres: PostgresHandle) -> None:
    async with own_database(postgres) as config, superuser(postgres, config.database) as admin:
        await admin.execute("CREATE TABLE secrets (id integer)")
        async with opened(config) as (pool, _):
            with pytest.raises(Unavailable, match="InsufficientPrivilegeError"):
                await fetchval(pool, "SELECT id FROM secrets")


@pytest.mark.parametrize("first_statement", ["a read", "a write"])
@pytest.mark.usefixtures("same_password")
async def test_sessions_leave_a_server_that_became_read_only_at_once(
    postgres: PostgresHandle, other_postgres: PostgresHandle, first_statement: str
) -> None:
    async with opened(both(postgres, other_postgres)) as (pool, health):
        assert await warm(pool, 4) == {postgres.port}
        name = f"s{uuid4().hex[:12]}"
        for server in (postgres, other_postgres):
            async with superuser(server, "products") as admin:
                await admin.execute(f"CREATE SEQUENCE {name}; GRANT ALL ON SEQUENCE {name} TO products")
        write = f"{PORT} FROM nextval('{name}')"
        async with read_only(postgres):
            # Each session learns of it with its next statement.
            if first_statement == "a read":
                await until(lambda: _moved(pool, PORT, other_postgres.port))
                failures = 0
            else:
                failures = await _failures_until_moved(pool, write, other_postgres.port)
            assert failures <= 1
            # No other session was left behind.
            assert await warm(pool, 4) == {other_postgres.port}
            assert await fetchval(pool, write) == other_postgres.port
            assert await health.unavailable_dependencies() == {}


async def _moved(pool: kit_postgres.Pool, statement: str, port: int) -> bool:
    return bool(await fetchval(pool, statement) == port)


async def _failures_until_moved(pool: kit_postgres.Pool, write: str, port: int) -> int:
    """Write until the other server is reached, and return the number of writes that failed."""
    failures = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if await fetchval(pool, write) == port:
                    return failures
            except Unavailable:
                failures += 1


async def test_a_database_that_accepts_no_writes_is_reported_as_unavailable(other_postgres: PostgresHandle) -> None:
    async with opened(configuration(other_postgres)) as (pool, health):
        assert await health.unavailable_dependencies() == {}
        async with read_only(other_postgres):
            await until(health.unavailable_dependencies)
            assert "accepts no writes" in (await health.unavailable_dependencies())["postgres"]
            assert health.unready_reasons() == {}
            with pytest.raises(Unavailable):
                await fetchval(pool, "SELECT 1")
        await until(lambda: _is_available(health))
        assert await fetchval(pool, "SELECT 1") == 1


async def _is_available(health: Health) -> bool:
    return not await health.unavailable_dependencies()


async def test_a_host_that_does_not_respond_delays_only_the_first_connection(
    postgres: PostgresHandle, other_postgres: PostgresHandle
) -> None:
    hosts = f"127.0.0.1:{{}},{postgres.host}:{postgres.port}"
    other_postgres.pause()
    try:
        async with Forwarder(other_postgres.port).serving() as first_host:
            # Its share of the limit is 4 s.
            config = configuration(postgres, host=hosts.format(first_host.port), connect_timeout_seconds=8.0)
            async with opened(config) as (pool, _):
                attempts = first_host.accepted
                assert attempts > 0
                await pool.expire_connections()
                assert await fetchval(pool, PORT) == postgres.port
                assert first_host.accepted == attempts
    finally:
        other_postgres.resume()


async def test_no_host_that_accepts_connections_is_an_error_with_the_reason_of_each(postgres: PostgresHandle) -> None:
    config = configuration(postgres, host=f"127.0.0.1:1,{postgres.host}:{postgres.port}", password="wrong")
    with pytest.raises(kit_postgres.DatabaseUnreachable) as raised:
        await kit_postgres.Connector(config)()
    assert "127.0.0.1:1: " in str(raised.value)
    assert f'{postgres.host}:{postgres.port}: password authentication failed for user "products"' in str(raised.value)


async def test_a_connection_is_replaced_at_its_maximum_age(postgres: PostgresHandle) -> None:
    pid = "SELECT pg_backend_pid()"
    async with opened(configuration(postgres, max_connection_age_seconds=0.5)) as (pool, _):
        first = await fetchval(pool, pid)

        async def another() -> bool:
            return bool(await fetchval(pool, pid) != first)

        await until(another)
    async with opened(configuration(postgres)) as (pool, _):
        first = await fetchval(pool, pid)
        assert {await fetchval(pool, pid) for _ in range(20)} == {first}


async def test_the_password_rotates_by_two_users_without_a_failed_request(postgres: PostgresHandle) -> None:
    """The steps of docs/operations.md, under load."""
    one, two = (f"u{uuid4().hex[:12]}" for _ in range(2))
    async with own_database(postgres) as owner, superuser(postgres) as admin:
        done = asyncio.Event()
        count = 0

        async def load(pool: kit_postgres.Pool) -> None:
            nonlocal count
            while not done.is_set():
                await fetchval(pool, "INSERT INTO things VALUES (1) RETURNING id")
                count += 1

        try:
            for user in (one, two):
                await admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{postgres.password}' IN ROLE products")
                await admin.execute(f"ALTER ROLE {user} SET role = 'products'")
            async with opened(configuration(postgres, database=owner.database, user=one)) as (pool, _):
                await fetchval(pool, "CREATE TABLE things (id integer)")
                old = [asyncio.create_task(load(pool)) for _ in range(4)]
                await until(lambda: count > 20)
                await admin.execute(f"ALTER ROLE {two} PASSWORD 'new'")
                # The pods are replaced one after another.
                config = configuration(postgres, database=owner.database, user=two, password="new")
                async with opened(config) as (new_pool, _):
                    new = [asyncio.create_task(load(new_pool)) for _ in range(4)]
                    reached = count
                    await until(lambda: count > reached + 20)
                    done.set()
                    await asyncio.gather(*old, *new)
                await admin.execute(f"ALTER ROLE {one} NOLOGIN")
            async with opened(owner) as (pool, _):
                owners = "SELECT tableowner FROM pg_tables WHERE tablename = 'things'"
                assert await fetchval(pool, owners) == "products"
                assert await fetchval(pool, "SELECT count(*) FROM things") == count
        finally:
            done.set()
            for user in (one, two):
                await admin.execute(f"DROP ROLE IF EXISTS {user}")
