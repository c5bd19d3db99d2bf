"""A primary fails under load and its standby is promoted: both are real servers, replicating synchronously."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from market_dev.stack.servers.postgres import Postgres as PostgresServer
from market_dev.stack.servers.postgres import Standby

from market.kit.errors import Unavailable
from market.kit.postgres import acquire, open_pool
from market.kit.process.health import Health
from tests.support import servers
from tests.support.databases import configuration, superuser
from tests.support.ports import free_port
from tests.support.servers import PostgresHandle, running
from tests.support.waiting import PATIENCE, until

WORKERS = 8


@pytest.fixture
def primary(server_directory: Path) -> Iterator[PostgresHandle]:
    directory = server_directory / f"primary-{uuid4().hex[:8]}"
    with running(handle := PostgresHandle(servers.postgres_server(directory, directory / "logs"))):
        yield handle


@pytest.fixture
def standby(primary: PostgresHandle, server_directory: Path) -> Iterator[PostgresHandle]:
    assert isinstance(primary.server, PostgresServer)
    directory = server_directory / f"standby-{uuid4().hex[:8]}"
    server = Standby(primary.server, free_port(), directory, directory / "logs")
    with running(handle := PostgresHandle(server)):
        yield handle


async def replicate_synchronously(primary: PostgresHandle) -> None:
    """Let the primary acknowledge what the standby has."""
    async with superuser(primary) as conn:
        await conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await conn.execute("SELECT pg_reload_conf()")
        await until(lambda: conn.fetchval("SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication"))


async def test_a_promotion_under_load_is_followed_and_loses_no_acknowledged_write(
    primary: PostgresHandle, standby: PostgresHandle
) -> None:
    async with superuser(primary, "products") as conn:
        await conn.execute("CREATE TABLE written (id integer PRIMARY KEY); GRANT ALL ON written TO products")
    await replicate_synchronously(primary)
    loop = asyncio.get_running_loop()
    acknowledged: set[int] = set()
    # When each failed write began, and when each acknowledged one ended.
    failures: list[float] = []
    successes: list[float] = []
    done = asyncio.Event()

    hosts = f"{standby.host}:{standby.port},{primary.host}:{primary.port}"
    config = configuration(primary, host=hosts)
    health = Health()
    async with open_pool(config, health) as pool:
        health.started = True

        async def write(worker: int) -> None:
            number = worker
            while not done.is_set():
                started = loop.time()
                try:
                    async with acquire(pool, seconds=PATIENCE) as conn:
                        await conn.execute("INSERT INTO written VALUES ($1) ON CONFLICT DO NOTHING", number)
                except Unavailable:
                    failures.append(started)
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.add(number)
                    successes.append(loop.time())
                    number += WORKERS

        workers = [asyncio.create_task(write(n)) for n in range(WORKERS)]
        try:
            # The first host is a standby, and is passed over.
            await until(lambda: len(acknowledged) > 200)
            assert await health.unavailable_dependencies() == {}
            await asyncio.to_thread(primary.kill)
            await until(lambda: len(failures) > WORKERS)
            assert "the server accepts no writes" in (await health.unavailable_dependencies())["postgres"]
            async with superuser(standby) as conn:
                assert await conn.fetchval("SELECT pg_promote()")
            promoted = loop.time()
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + 200)
            assert await health.unavailable_dependencies() == {}
        finally:
            done.set()
            await asyncio.gather(*workers)
    first = min(at for at in successes if at > promoted)
    print(f"the first write succeeded {first - promoted:.3f} s after the promotion")
    assert [at for at in failures if at > promoted] == []
    async with superuser(standby, "products") as conn:
        assert acknowledged <= {row["id"] for row in await conn.fetch("SELECT id FROM written")}


async def test_a_pool_opens_only_once_a_standby_has_been_promoted(
    primary: PostgresHandle, standby: PostgresHandle
) -> None:
    health = Health()
    opened = asyncio.Event()

    async def serve() -> None:
        async with open_pool(configuration(standby), health):
            health.started = True
            opened.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    try:
        await until(lambda: _waits_for_writes(health))
        assert not opened.is_set()
        async with superuser(standby) as conn:
            assert await conn.fetchval("SELECT pg_promote()")
        async with asyncio.timeout(PATIENCE):
            await opened.wait()
        assert await health.unavailable_dependencies() == {}
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _waits_for_writes(health: Health) -> bool:
    return "the server accepts no writes" in health.unready_reasons().get("postgres", "")
