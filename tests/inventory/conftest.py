"""Inventory on the real PostgreSQL: the service object, the gRPC server in this process, and a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc.aio
import pytest

from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory.app import MIGRATIONS, SETTINGS, build
from market.inventory.config import Config, Gathering, Grpc
from market.inventory.domain import Reservation, merged
from market.inventory.service import Inventory
from market.kit import config as kit_config
from market.kit import postgres as kit_postgres
from market.kit.faults import Faults
from market.kit.process.health import Health
from market.kit.process.lifecycle import Process
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE


def reservation(*lines: tuple[UUID, int], id: UUID | None = None) -> Reservation:
    return merged(id or uuid4(), lines)


async def blocking(conn: asyncpg.Connection) -> int:
    """How many sessions wait for what this connection's transaction holds."""
    return await conn.fetchval(
        "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )


async def until_blocking(conn: asyncpg.Connection, *calls: asyncio.Future[Any]) -> None:
    """Returns once somebody waits for this connection's transaction, or fails when one of the calls ends without."""
    async with asyncio.timeout(PATIENCE):
        while not await blocking(conn):
            assert not any(call.done() for call in calls), "it waits for nobody"
            await asyncio.sleep(0.01)


class Tables:
    """What is in the tables, read beside the service."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn

    async def stock(self, *products: UUID) -> list[int | None]:
        rows = await self.conn.fetch("SELECT product_id, quantity FROM inventory WHERE product_id = ANY ($1)", products)
        found = {r["product_id"]: r["quantity"] for r in rows}
        return [found.get(p) for p in products]

    async def held(self, product: UUID) -> int:
        """What reservations that are not cancelled hold of the product."""
        return await self.conn.fetchval(
            """
            SELECT coalesce(sum(l.quantity), 0)::int FROM reservations r, unnest(r.product_ids, r.quantities) AS l (product_id, quantity)
            WHERE r.status = 'reserved' AND l.product_id = $1
            """,
            product,
        )

    async def status(self, id: UUID) -> str | None:
        return await self.conn.fetchval("SELECT status FROM reservations WHERE id = $1", id)

    async def everything(self) -> list[list[tuple[Any, ...]]]:
        return [
            [tuple(r) for r in await self.conn.fetch(f"SELECT * FROM {t} ORDER BY 1")]
            for t in ("inventory", "reservations", "movements")
        ]


@pytest.fixture(scope="session")
def database(postgres) -> kit_config.Postgres:
    return kit_config.Postgres(
        host=postgres.host,
        port=postgres.port,
        database="inventory",
        user="inventory",
        password=postgres.password,
        timeout_seconds=PATIENCE / 2,
        connect_timeout_seconds=PATIENCE,
    )


@pytest.fixture(scope="session")
async def migrated(database) -> kit_config.Postgres:
    await kit_postgres.migrate(database, MIGRATIONS)
    return database


@asynccontextmanager
async def connected(database: kit_config.Postgres) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(
        host=database.host,
        port=database.port,
        database=database.database,
        user=database.user,
        password=database.password,
    )
    try:
        yield conn
    finally:
        await conn.close()


@pytest.fixture
async def tables(migrated) -> AsyncIterator[Tables]:
    """All three tables, empty at first."""
    async with connected(migrated) as conn:
        await conn.execute("TRUNCATE inventory, reservations, movements")
        yield Tables(conn)


@pytest.fixture(scope="session")
async def looking(migrated) -> AsyncIterator[Tables]:
    """The tables as they are, for the examples of a property."""
    async with connected(migrated) as conn:
        yield Tables(conn)


@asynccontextmanager
async def opened(
    database: kit_config.Postgres,
    *,
    timeout: float = PATIENCE / 2,
    gathering: Gathering | None = None,
    max_waiting: int = 1000,
    faults: Faults | None = None,
) -> AsyncIterator[Inventory]:
    """An Inventory with a pool of its own, as each process has one."""
    async with kit_postgres.open_pool(database, Health(), settings=SETTINGS) as pool:
        yield Inventory(pool, timeout=timeout, gathering=gathering, max_waiting=max_waiting, faults=faults)


@pytest.fixture
async def inventory(migrated, tables) -> AsyncIterator[Inventory]:
    async with opened(migrated) as inventory:
        yield inventory


@pytest.fixture(scope="session")
async def shared(migrated) -> AsyncIterator[Inventory]:
    """One for all examples of a property; each example brings products and ids of its own."""
    async with opened(migrated) as inventory:
        yield inventory


@pytest.fixture(scope="session")
async def other(migrated) -> AsyncIterator[Inventory]:
    """What a second process would have: queues and connections of its own, the same database."""
    async with opened(migrated) as inventory:
        yield inventory


class Served:
    """A gRPC server in this process, and a channel to it."""

    def __init__(self, config: Config, process: Process, channel: grpc.aio.Channel, server: Any) -> None:
        self.config = config
        self.process = process
        self.channel = channel
        self.server = server
        self.stub = InventoryStub(channel)


@asynccontextmanager
async def serving(
    database: kit_config.Postgres, process: Process | None = None, **settings: Any
) -> AsyncIterator[Served]:
    process = process or Process()
    config = Config(
        admin=kit_config.Listen(port=free_port()),
        grpc=Grpc(port=free_port(), **settings.pop("grpc", {})),
        postgres=database,
        **settings,
    )
    async with build(config, process) as server:
        await server.start()
        process.health.started = True
        async with grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc.port}") as channel:
            yield Served(config, process, channel, server)
        await server.stop(0)


@pytest.fixture
async def served(migrated, tables) -> AsyncIterator[Served]:
    async with serving(migrated) as served:
        yield served


class InventoryProcess(ServiceProcess):
    """`python -m market.inventory` with its own configuration."""

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.config['grpc']['port']}", options=[("grpc.max_reconnect_backoff_ms", 200)]
        )

    async def readiness(self) -> dict[str, Any]:
        """Return the body of /readyz, or `{}` if nothing responds."""
        _, body = await asyncio.to_thread(self.get, "/readyz")
        return body or {}


@pytest.fixture
def service_process(database, tmp_path) -> Iterator[Callable[..., InventoryProcess]]:
    """Makes processes that do not outlive the test."""
    made: list[InventoryProcess] = []

    def make(**settings: Any) -> InventoryProcess:
        config: dict[str, Any] = {
            "admin": {"port": free_port()},
            "shutdown": {"drain_seconds": 0, "grace_seconds": 10},
            "grpc": {"port": free_port()},
            "postgres": {
                "host": database.host,
                "port": database.port,
                "database": database.database,
                "user": database.user,
                "password": database.password,
                "timeout_seconds": PATIENCE / 2,
            },
        }
        service = InventoryProcess("inventory", config | settings, tmp_path)
        made.append(service)
        return service

    yield make
    for service in made:
        service.kill()
