"""Inventory on real PostgreSQL: its use cases, its gRPC server in this process, and a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc.aio
import pytest

from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory import service
from market.inventory.app import MIGRATIONS, SETTINGS, build, make_deps
from market.inventory.config import Batching, Config, Grpc, Retention
from market.inventory.domain import (
    Delivery,
    DeliveryResult,
    Movement,
    Reservation,
    Shortages,
    StockInForce,
    StockWrite,
    merge_lines,
)
from market.inventory.service import Deps
from market.inventory.store import Database, ReservationRepository, StockRepository
from market.kit import config as kit_config
from market.kit import migrations as kit_migrations
from market.kit import postgres as kit_postgres
from market.kit.faults import Faults
from market.kit.process.health import Health
from market.kit.process.lifecycle import Process
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE, until


def reservation(*lines: tuple[UUID, int], reservation_id: UUID | None = None) -> Reservation:
    return merge_lines(reservation_id or uuid4(), lines)


async def blocked_sessions(conn: asyncpg.Connection) -> int:
    """Return the number of sessions that wait for locks of this connection's transaction."""
    return await conn.fetchval(
        "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )


async def until_blocking(conn: asyncpg.Connection, *calls: asyncio.Future[Any]) -> None:
    """Wait until a session waits for this connection's transaction. Fails if one of the calls ends instead."""

    async def blocking() -> int:
        count = await blocked_sessions(conn)
        assert count or not any(call.done() for call in calls), "the call waits for nothing"
        return count

    await until(blocking, interval=0.01)


class Tables:
    """The rows of inventory's tables, read beside the service."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn

    async def stock(self, *product_ids: UUID) -> list[int | None]:
        rows = await self.conn.fetch(
            "SELECT product_id, quantity FROM inventory WHERE product_id = ANY ($1)", product_ids
        )
        quantities = {row["product_id"]: row["quantity"] for row in rows}
        return [quantities.get(product_id) for product_id in product_ids]

    async def reserved(self, product_id: UUID) -> int:
        """Return the units of the product that reservations hold."""
        return await self.conn.fetchval(
            """
            SELECT coalesce(sum(l.quantity), 0)::int
            FROM reservations r, unnest(r.product_ids, r.quantities) AS l (product_id, quantity)
            WHERE r.status = 'reserved' AND l.product_id = $1
            """,
            product_id,
        )

    async def status(self, reservation_id: UUID) -> str | None:
        return await self.conn.fetchval("SELECT status FROM reservations WHERE id = $1", reservation_id)

    async def everything(self) -> list[list[tuple[Any, ...]]]:
        return [
            [tuple(row) for row in await self.conn.fetch(f"SELECT * FROM {table} ORDER BY 1")]
            for table in ("inventory", "reservations", "movements", "deliveries")
        ]


class Repositories:
    """Both repositories on one connection, whose transaction the test opens and closes."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        database = ConnectionDatabase(conn)
        self.stock = StockRepository(database)
        self.reservations = ReservationRepository(database)


class ConnectionDatabase(Database):
    """Runs all work on one connection."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def run(self, work: Callable[..., Any], *, inside: str = "", after: str = "") -> Any:
        return await work(self._conn)


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
async def migrated_database(database) -> kit_config.Postgres:
    await kit_migrations.migrate(database, MIGRATIONS)
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
async def tables(migrated_database) -> AsyncIterator[Tables]:
    """The tables, emptied before the test."""
    async with connected(migrated_database) as conn:
        await conn.execute("TRUNCATE inventory, reservations, movements, deliveries")
        yield Tables(conn)


@pytest.fixture(scope="session")
async def shared_tables(migrated_database) -> AsyncIterator[Tables]:
    """The tables as they are, for the examples of a property."""
    async with connected(migrated_database) as conn:
        yield Tables(conn)


class Inventory:
    """The use cases of one process, as methods."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def reserve(self, reservation: Reservation) -> Shortages:
        return await service.reserve(self._deps, reservation)

    async def reserve_many(self, reservations: Sequence[Reservation]) -> list[Shortages | BaseException]:
        return await service.reserve_many(self._deps, reservations)

    async def cancel(self, reservation_id: UUID) -> bool:
        return await service.cancel(self._deps, reservation_id)

    async def set_stock(self, product_id: UUID, quantity: int) -> int:
        return (await self.write_stock(StockWrite(product_id, quantity))).quantity

    async def write_stock(self, write: StockWrite) -> StockInForce:
        return (await service.set_stock(self._deps, write)).in_force

    async def add_delivery(self, delivery: Delivery) -> DeliveryResult:
        return await service.add_delivery(self._deps, delivery)

    async def check_delivery(self, delivery: Delivery) -> DeliveryResult:
        return await service.check_delivery(self._deps, delivery)

    async def add_stock(self, movement: Movement) -> int:
        return await service.add_stock(self._deps, movement)

    async def get_stock(self, product_ids: Sequence[UUID]) -> list[int | None]:
        return await service.get_stock(self._deps, [str(product_id) for product_id in product_ids])

    async def delete_expired(self, retention: Retention) -> float:
        return await service.delete_expired(self._deps, retention)


@asynccontextmanager
async def opened(
    database: kit_config.Postgres,
    *,
    timeout_seconds: float = PATIENCE / 2,
    batching: Batching | None = None,
    max_pending: int = 1000,
    faults: Faults | None = None,
) -> AsyncIterator[Inventory]:
    """The use cases with a pool and queues of their own, as each process has them."""
    async with kit_postgres.open_pool(database, Health(), settings=SETTINGS) as pool:
        yield Inventory(
            make_deps(
                pool,
                timeout_seconds=timeout_seconds,
                batching=batching or Batching(),
                max_pending=max_pending,
                faults=faults,
            )
        )


@pytest.fixture
async def inventory(migrated_database, tables) -> AsyncIterator[Inventory]:
    async with opened(migrated_database) as inventory:
        yield inventory


@pytest.fixture(scope="session")
async def shared_inventory(migrated_database) -> AsyncIterator[Inventory]:
    """One for all examples of a property; each example has products and ids of its own."""
    async with opened(migrated_database) as inventory:
        yield inventory


@pytest.fixture(scope="session")
async def second_inventory(migrated_database) -> AsyncIterator[Inventory]:
    """What a second process would have: its own queues and connections, and the same database."""
    async with opened(migrated_database) as inventory:
        yield inventory


class RunningServer:
    """A gRPC server in this process, and a channel to it."""

    def __init__(self, config: Config, process: Process, channel: grpc.aio.Channel, server: Any) -> None:
        self.config = config
        self.process = process
        self.channel = channel
        self.server = server
        self.stub = InventoryStub(channel)


@asynccontextmanager
async def serving(database: kit_config.Postgres, **grpc_settings: Any) -> AsyncIterator[RunningServer]:
    process = Process()
    config = Config(
        admin=kit_config.Listen(port=free_port()), grpc=Grpc(port=free_port(), **grpc_settings), postgres=database
    )
    async with build(config, process) as server:
        await server.start()
        process.health.started = True
        async with grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc.port}") as channel:
            yield RunningServer(config, process, channel, server)
        await server.stop(0)


@pytest.fixture
async def server(migrated_database, tables) -> AsyncIterator[RunningServer]:
    async with serving(migrated_database) as server:
        yield server


def grpc_channel(process: ServiceProcess) -> grpc.aio.Channel:
    """A channel to the process that reconnects quickly after a restart."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{process.config['grpc']['port']}", options=[("grpc.max_reconnect_backoff_ms", 200)]
    )


MakeProcess = Callable[..., ServiceProcess]


@pytest.fixture
def make_process(database: kit_config.Postgres, tmp_path: Path) -> Iterator[MakeProcess]:
    """Make processes of inventory, `make_process(testing=True)`; they are killed at the end of the test."""
    made: list[ServiceProcess] = []

    def make(**settings: Any) -> ServiceProcess:
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
        process = ServiceProcess("inventory", config | settings, tmp_path)
        made.append(process)
        return process

    yield make
    for process in made:
        if process.process is not None:
            process.kill()
