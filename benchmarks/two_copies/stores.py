"""The stores of a shop, each with one member or with three."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from market_dev.stack.kafka.apache import ApacheKafka
from market_dev.stack.kafka.broker import EmbeddedKafka
from market_dev.stack.servers.mail import Mail
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres, Standby
from market_dev.stack.servers.redis import Redis

from benchmarks.two_copies.servers import (
    MEMBERS,
    Broker,
    MongodbMember,
    Servers,
    initiate,
    wait_for_brokers,
)


@dataclass(frozen=True)
class Stores:
    """Running stores, and the mail server.

    ports: of PostgreSQL's primary, Redis and the mail server, as `market_dev.stack.topology.environment` needs them
    replication: the copies of a topic; min_insync: how many of them a write waits for
    partitions: of the topic; 0 if the broker creates it
    """

    servers: Servers
    directory: Path
    ports: dict[str, int]
    password: str
    mongodb: str
    kafka: str
    partitions: int
    replication: int = 1
    min_insync: int = 1
    # The catalogue, by the shop that fills it.
    product_ids: list[str] = field(default_factory=list)

    def postgres(self, database: str) -> str:
        """Return the URI of the primary's database."""
        return f"postgresql://{database}:{self.password}@127.0.0.1:{self.ports['postgres']}/{database}"


@asynccontextmanager
async def single_stores(directory: Path, ports: Iterator[int], *, kafka: str) -> AsyncIterator[Stores]:
    """Run stores with one member each, as on the local stack. kafka: "apache" or "embedded"."""
    servers, logs, password = Servers(), directory / "logs", secrets.token_hex(16)
    mongodb = Mongodb(next(ports), directory / "mongodb", logs)
    postgres = Postgres(next(ports), directory / "postgres", logs, password)
    redis = Redis(next(ports), directory / "redis", logs)
    mail = Mail(next(ports), next(ports), directory / "mail", logs)
    broker = _lone_broker(directory, ports, kafka)
    try:
        stores = {"postgres": postgres, "redis": redis, "mongodb": mongodb, "kafka": broker}
        await servers.start({**stores, "mail": mail})
        yield Stores(
            servers=servers,
            directory=directory,
            ports={"postgres": postgres.port, "redis": redis.port, "smtp": mail.smtp_port},
            password=password,
            mongodb=mongodb.uri,
            kafka=f"127.0.0.1:{broker.port}",
            partitions=12 if kafka == "apache" else 0,
        )
    finally:
        await servers.stop()


@asynccontextmanager
async def replicated_stores(directory: Path, ports: Iterator[int], *, kafka: str) -> AsyncIterator[Stores]:
    """Run stores with three members each; Redis, a cache, has one, and so has the embedded broker.

    A write waits for two members of MongoDB, PostgreSQL and Kafka.
    """
    servers, logs, password = Servers(), directory / "logs", secrets.token_hex(16)
    members = [MongodbMember(next(ports), directory / f"mongodb-{n}", logs / str(n)) for n in range(MEMBERS)]
    postgres = Postgres(next(ports), directory / "postgres", logs, password)
    redis = Redis(next(ports), directory / "redis", logs)
    mail = Mail(next(ports), next(ports), directory / "mail", logs)
    brokers: list[Any] = _brokers(directory, ports) if kafka == "apache" else [_lone_broker(directory, ports, kafka)]
    try:
        await servers.start(
            {
                "postgres": postgres,
                "redis": redis,
                "mail": mail,
                **{_member("mongodb", n): member for n, member in enumerate(members)},
                **{_member("kafka", n): broker for n, broker in enumerate(brokers)},
            }
        )
        uri = await asyncio.to_thread(initiate, members)
        bootstrap_servers = ",".join(f"127.0.0.1:{broker.port}" for broker in brokers)
        await asyncio.to_thread(wait_for_brokers, bootstrap_servers, len(brokers))
        await _add_standbys(servers, postgres, directory, ports)
        yield Stores(
            servers=servers,
            directory=directory,
            ports={"postgres": postgres.port, "redis": redis.port, "smtp": mail.smtp_port},
            password=password,
            mongodb=uri,
            kafka=bootstrap_servers,
            partitions=12 if kafka == "apache" else 0,
            replication=len(brokers),
            min_insync=len(brokers) // 2 + 1,
        )
    finally:
        await servers.stop()


def _member(store: str, n: int) -> str:
    return store if n == 0 else f"{store} {n + 1}"


def _lone_broker(directory: Path, ports: Iterator[int], kafka: str) -> ApacheKafka | EmbeddedKafka:
    if kafka == "apache":
        return ApacheKafka(next(ports), next(ports), directory / "kafka", directory / "logs")
    return EmbeddedKafka(next(ports), directory / "kafka", directory / "logs")


def _brokers(directory: Path, ports: Iterator[int]) -> list[Broker]:
    quorum = {node: next(ports) for node in range(1, MEMBERS + 1)}
    return [
        Broker(
            node,
            next(ports),
            quorum,
            directory / f"kafka-{node}",
            directory / "logs" / str(node),
            cluster_size=MEMBERS,
        )
        for node in quorum
    ]


async def _add_standbys(servers: Servers, primary: Postgres, directory: Path, ports: Iterator[int]) -> None:
    """Start two standbys, and let each commit wait until one of them has written it to its disk."""
    standbys = {
        _member("postgres", n): Standby(primary, next(ports), directory / f"standby-{n}", directory / "logs" / str(n))
        for n in range(1, MEMBERS)
    }
    # The first time only one copies the primary's data at a time.
    for name, standby in standbys.items():
        await servers.start({name: standby})
    conn = await asyncpg.connect(
        host=primary.host, port=primary.port, database="postgres", user="postgres", password=primary.password
    )
    try:
        # All standbys have the same name.
        await conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
        await conn.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(60):
            while await conn.fetchval(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'"
            ) < len(standbys):
                await asyncio.sleep(0.05)
    finally:
        await conn.close()
