"""The cache when Redis moves behind its address: two real servers that change roles, and certificates that change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from market_dev.stack.servers.redis import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from structlog.testing import capture_logs

from market.products.availability.cache import AvailabilityCache, connect
from tests.support.certificates import make_authority, make_certificate
from tests.support.clocks import FakeClock
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.servers import UriHandle, running
from tests.support.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def second_server(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(Redis(free_port(), server_directory / "redis-2", server_directory / "logs"))
    with running(handle):
        yield handle


@pytest.fixture
async def first(redis_server: UriHandle) -> AsyncIterator[redis.asyncio.Redis]:
    async with administrator(redis_server) as client:
        yield client
        await client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
async def second(second_server: UriHandle) -> AsyncIterator[redis.asyncio.Redis]:
    async with administrator(second_server) as client:
        await client.flushall()
        yield client


def administrator(server: UriHandle) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(server.uri, retry=Retry(NoBackoff(), 3), protocol=2)


async def demote(client: redis.asyncio.Redis, primary: UriHandle) -> None:
    """Make the server a replica, and wait until it follows. Its clients stay connected."""
    await client.execute_command("REPLICAOF", primary.host, str(primary.port))

    async def follows() -> bool:
        return (await client.info("replication"))["master_link_status"] == "up"

    await until(follows)


def cache_of(client: redis.asyncio.Redis, **options: Any) -> AvailabilityCache:
    return AvailabilityCache(client, ttl_seconds=300, timeout_seconds=PATIENCE, **options)


async def test_a_client_of_a_demoted_server_leaves_it_with_all_connections_and_loses_no_write(
    first: redis.asyncio.Redis, second: redis.asyncio.Redis, redis_server: UriHandle, second_server: UriHandle
) -> None:
    async with (
        Forwarder(redis_server.port).serving() as address,
        connect(f"redis://127.0.0.1:{address.port}/0") as client,
    ):
        cache = cache_of(client)
        # Several connections, of which only one meets the refused write.
        await asyncio.gather(*(cache.get_many([f"p{n}"]) for n in range(5)))
        before = address.open[redis_server.port]
        assert before > 1
        await demote(first, second_server)
        address.target = second_server.port
        with capture_logs() as lines:
            await cache.overwrite({"moved": True})
        assert await second.get("avail:moved") == b"1"
        await until(lambda: address.open[redis_server.port] == 0)
        await cache.fill({"next": False})
        assert await cache.get_many(["moved", "next"]) == {"moved": True, "next": False}
        assert [(line["event"], line["reason"]) for line in lines] == [
            ("left a demoted cache server", "ReadOnlyError"),
        ]
        assert await second.get("avail:next") == b"0"


async def test_while_the_address_still_leads_to_the_demoted_server_it_is_tried_at_the_pace_of_the_circuit_breaker(
    first: redis.asyncio.Redis,
    second: redis.asyncio.Redis,
    redis_server: UriHandle,
    second_server: UriHandle,
    clock: FakeClock,
) -> None:
    async with (
        Forwarder(redis_server.port).serving() as address,
        connect(f"redis://127.0.0.1:{address.port}/0") as client,
    ):
        cache = cache_of(client, clock=clock)
        await demote(first, second_server)
        for _ in range(20):
            await cache.overwrite({"early": True})
        # Two attempts for each of the five failures that open the circuit breaker.
        assert address.accepted <= 10
        assert await cache.get_many(["early"]) == {}
        address.target = second_server.port
        clock.advance(1.05)
        await cache.overwrite({"late": True})
        assert await second.get("avail:late") == b"1"
        assert await second.get("avail:early") is None


async def test_connections_are_replaced_at_their_age_and_then_lead_to_where_the_address_leads(
    redis_server: UriHandle, second_server: UriHandle, second: redis.asyncio.Redis, clock: FakeClock
) -> None:
    async with (
        Forwarder(redis_server.port).serving() as address,
        connect(f"redis://127.0.0.1:{address.port}/0") as client,
    ):
        cache = cache_of(client, max_connection_age_seconds=100.0, clock=clock)
        await cache.fill({"old": True})
        address.target = second_server.port
        clock.advance(89)
        await cache.fill({"soon": True})
        assert (address.accepted, await second.exists("avail:soon")) == (1, 0)
        clock.advance(22)
        await cache.fill({"new": True})
        assert (address.accepted, await second.exists("avail:new")) == (2, 1)
        await until(lambda: address.open[redis_server.port] == 0)
        await cache.fill({"newer": True})
        assert address.accepted == 2


async def test_a_changed_authority_is_read_again_by_new_connections(
    redis_server: UriHandle, tmp_path: Path, clock: FakeClock
) -> None:
    old, new = make_authority(tmp_path, "old"), make_authority(tmp_path, "new")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*make_certificate(old, "localhost"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(old.read_bytes())
    async with (
        Forwarder(redis_server.port, tls=tls).serving() as address,
        connect(f"rediss://localhost:{address.port}/0?ssl_ca_certs={trusted}") as client,
    ):
        cache = cache_of(client, max_connection_age_seconds=100.0, clock=clock)
        await cache.overwrite({"encrypted": True})
        assert await cache.get_many(["encrypted"]) == {"encrypted": True}
        tls.load_cert_chain(*make_certificate(new, "localhost"))
        # The connection that is open stays; a new one does not trust the server's new certificate.
        assert await cache.get_many(["encrypted"]) == {"encrypted": True}
        clock.advance(111)
        assert await cache.get_many(["encrypted"]) == {}
        trusted.write_bytes(new.read_bytes())
        assert await cache.get_many(["encrypted"]) == {"encrypted": True}
