"""Products in this process, on real PostgreSQL and Redis, with the real inventory or with a fake one that the test
controls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import grpc.aio
import httpx
import msgspec
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, InventoryStub, add_InventoryServicer_to_server
from market.inventory import app as inventory_app
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc
from market.kit.auth.config import Auth, ServiceIdentity
from market.kit.config import GrpcUpstream, Http, Listen, Postgres
from market.kit.faults import Faults
from market.kit.process.health import Health
from market.kit.process.lifecycle import Process
from market.kit.rpc.client import CHANNEL_OPTIONS
from market.products import app
from market.products.availability.cache import AvailabilityCache, connect
from market.products.clients import InventoryClient
from market.products.config import Availability, Config, ReadAdmission, Redis
from tests.support import earlier_version
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE

LAMP = {"name": "Lamp", "description": "It gives light.\nBy day, too.", "price": "12.5", "currency": "GBP"}

# On a busy machine the handshake and the keepalive of a channel may take long.
PATIENT_CHANNEL = {
    **dict(CHANNEL_OPTIONS),
    "grpc.min_reconnect_backoff_ms": 20_000,
    "grpc.keepalive_timeout_ms": 60_000,
}


def postgres_config(server: Any, database: str) -> Postgres:
    return Postgres(
        host=server.host,
        port=server.port,
        database=database,
        user=database,
        password=server.password,
        timeout_seconds=PATIENCE / 2,
        connect_timeout_seconds=PATIENCE,
    )


class PausingFaults(Faults):
    """Pauses the first call that reaches the point until the test sets `resume`."""

    def __init__(self, point: str) -> None:
        super().__init__("/nowhere")
        self._point = point
        self.reached = asyncio.Event()
        self.resume = asyncio.Event()

    async def fire_if_armed(self, name: str) -> None:
        if name == self._point and not self.reached.is_set():
            self.reached.set()
            await self.resume.wait()


class FakeInventory(InventoryServicer):
    """An inventory that records its calls, and fails or hangs on demand. It does not know versions of products."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.stock: dict[str, int] = {}
        # The product ids of each CheckAvaliable.
        self.checks: list[list[str]] = []
        # The product ids of each GetStock.
        self.reads: list[list[str]] = []
        # Product id and quantity of each SetStock.
        self.writes: list[tuple[str, int]] = []
        self.down = False
        # Reads succeed; writes fail, or wait until the gate is set.
        self.read_only = False
        self.write_gate: asyncio.Event | None = None
        # If there is a gate, calls wait until it is set.
        self.gate: asyncio.Event | None = None

    async def CheckAvaliable(self, request: Any, context: Any) -> Any:
        self.checks.append(list(request.product_ids))
        stock = dict(self.stock)
        await self._fail_or_wait(context)
        quantities = ((product_id, stock.get(product_id, 0)) for product_id in request.product_ids)
        return pb.CheckAvaliableResponse(
            items=[pb.Availability(product_id=product_id, available=n > 0, quantity=n) for product_id, n in quantities]
        )

    async def GetStock(self, request: Any, context: Any) -> Any:
        self.reads.append(list(request.product_ids))
        await self._fail_or_wait(context)
        stock = {product_id: self.stock[product_id] for product_id in request.product_ids if product_id in self.stock}
        return pb.GetStockResponse(items=[pb.Item(product_id=p, quantity=n) for p, n in stock.items()])

    async def SetStock(self, request: Any, context: Any) -> Any:
        self.writes.append((request.product_id, request.quantity))
        await self._fail_or_wait(context)
        if self.write_gate is not None:
            await self.write_gate.wait()
        if self.read_only:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "made read-only by the test")
        self.stock[request.product_id] = request.quantity
        return pb.SetStockResponse(quantity=request.quantity)

    async def _fail_or_wait(self, context: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "made unavailable by the test")


@asynccontextmanager
async def serving(inventory: FakeInventory) -> AsyncIterator[int]:
    """Serve the fake inventory on a port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_InventoryServicer_to_server(inventory, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@dataclass
class RunningProducts:
    """A running service: an HTTP client, and connections to the stores that it writes to."""

    http: httpx.AsyncClient
    config: Config
    db: asyncpg.Pool[Any]
    redis: redis.asyncio.Redis
    health: Health

    async def create(self, **fields: Any) -> dict[str, Any]:
        response = await self.http.post("/api/product", json={**LAMP, **fields})
        assert response.status_code == 201, response.text
        return dict(response.json())

    async def get(self, product_id: str, **parameters: Any) -> dict[str, Any]:
        response = await self.http.get(f"/api/product/{product_id}", params=parameters)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def count(self) -> int:
        return int(await self.db.fetchval("SELECT count(*) FROM products"))


Start = Callable[..., AbstractAsyncContextManager[RunningProducts]]


@pytest.fixture(scope="session")
async def migrated_database(postgres: Any) -> Postgres:
    database = postgres_config(postgres, "products")
    config = Config(
        admin=Listen(port=1),
        http=Http(port=1),
        postgres=database,
        redis=Redis(url="redis://none"),
        inventory=GrpcUpstream(target="none"),
    )
    await app.migrate(config, [])
    return database


@pytest.fixture(scope="session")
def start(migrated_database: Postgres, postgres: Any, redis_server: Any) -> Start:
    """Start a service of one's own: `async with start(inventory_port, ttl=1.0) as products`.

    `clock` is the clock of the circuit breakers.
    """

    @asynccontextmanager
    async def started(
        inventory_port: int,
        *,
        ttl: float = 300.0,
        redis_port: int | None = None,
        redis_seconds: float = PATIENCE,
        inventory_seconds: float = PATIENCE,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.monotonic,
        cors_origins: tuple[str, ...] = (),
        auth: Auth = Auth(),
        service_identity: ServiceIdentity | None = None,
        admission: ReadAdmission = ReadAdmission(),
    ) -> AsyncIterator[RunningProducts]:
        url = f"redis://{redis_server.host}:{redis_port or redis_server.port}/0"
        config = Config(
            admin=Listen(port=free_port()),
            http=Http(port=free_port(), cors_origins=cors_origins),
            admission=admission,
            postgres=migrated_database,
            redis=Redis(url=url, timeout_seconds=redis_seconds),
            inventory=GrpcUpstream(target=f"dns:///127.0.0.1:{inventory_port}", timeout_seconds=PATIENCE),
            availability=Availability(ttl_seconds=ttl, timeout_seconds=inventory_seconds),
            request_seconds=PATIENCE,
            auth=auth,
            service_identity=service_identity,
        )
        process = Process(faults=faults)
        base_url = f"http://127.0.0.1:{config.http.port}"
        async with (
            grpc.aio.insecure_channel(config.inventory.target, options=list(PATIENT_CHANNEL.items())) as channel,
            connect(url) as cache_client,
            app.build(
                config,
                process,
                app.Clients(
                    # With an identity, the service's own channel sends its token.
                    inventory=None
                    if service_identity is not None
                    else InventoryClient(channel, read_seconds=inventory_seconds, write_seconds=PATIENCE, clock=clock),
                    cache=AvailabilityCache(cache_client, ttl_seconds=ttl, timeout_seconds=redis_seconds, clock=clock),
                ),
            ) as server,
            httpx.AsyncClient(
                base_url=base_url, timeout=2 * PATIENCE, limits=httpx.Limits(max_connections=None)
            ) as client,
            asyncpg.create_pool(postgres.uri("products"), min_size=0, max_size=4) as db,
            redis.asyncio.Redis.from_url(
                f"redis://{redis_server.host}:{redis_server.port}/0", retry=Retry(NoBackoff(), 3)
            ) as redis_client,
        ):
            await server.start()
            try:
                yield RunningProducts(client, config, db, redis_client, process.health)
            finally:
                await server.stop(5)

    return started


@pytest.fixture(scope="session")
async def inventory_port(postgres: Any) -> AsyncIterator[int]:
    """The port of the real inventory."""
    config = InventoryConfig(
        admin=Listen(port=free_port()), grpc=Grpc(port=free_port()), postgres=postgres_config(postgres, "inventory")
    )
    await inventory_app.migrate(config, [])
    async with inventory_app.build(config, Process()) as server:
        await server.start()
        yield config.grpc.port
        await server.stop(1)


@pytest.fixture(scope="session")
async def inventory_stub(inventory_port: int) -> AsyncIterator[InventoryStub]:
    """The methods of the real inventory."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{inventory_port}") as channel:
        yield InventoryStub(channel)


@pytest.fixture(scope="session")
async def products(start: Start, inventory_port: int) -> AsyncIterator[RunningProducts]:
    """Products with the real inventory; a cache entry lives for a second."""
    async with start(inventory_port, ttl=1.0) as products:
        yield products


@pytest.fixture(scope="session")
async def _fake_inventory_port(_fake_inventory: FakeInventory) -> AsyncIterator[int]:
    async with serving(_fake_inventory) as port:
        yield port


@pytest.fixture(scope="session")
def _fake_inventory() -> FakeInventory:
    return FakeInventory()


@pytest.fixture
def inventory(_fake_inventory: FakeInventory) -> FakeInventory:
    """A fake inventory without stock that has not been called yet."""
    _fake_inventory.reset()
    return _fake_inventory


@pytest.fixture(scope="session")
async def _products_with_fake(start: Start, _fake_inventory_port: int) -> AsyncIterator[RunningProducts]:
    async with start(_fake_inventory_port) as products:
        yield products


@pytest.fixture
async def products_with_fake(_products_with_fake: RunningProducts, inventory: FakeInventory) -> RunningProducts:
    """Products with the fake inventory; the cache is empty."""
    await _products_with_fake.redis.flushall()
    return _products_with_fake


@pytest.fixture
async def earlier_port(
    products: RunningProducts, redis_server: Any, inventory_port: int, tmp_path: Path
) -> AsyncIterator[int]:
    """The port of an earlier version, on the same database."""
    environment = await asyncio.to_thread(earlier_version.unpack, earlier_version.GLOBAL_KEYS, tmp_path)
    port = free_port()
    postgres = msgspec.to_builtins(products.config.postgres)
    settings = {
        "testing": True,
        "admin": {"port": free_port()},
        "http": {"port": port},
        "postgres": {k: postgres[k] for k in ("host", "port", "database", "user", "password")}
        | {"timeout_seconds": 20},
        "redis": {"url": f"redis://{redis_server.host}:{redis_server.port}/0"},
        "inventory": {"target": f"127.0.0.1:{inventory_port}", "timeout_seconds": 20},
        "request_seconds": 2 * PATIENCE,
    }
    process = ServiceProcess("products", settings, tmp_path, env=environment)
    try:
        process.start()
        await process.ready()
        yield port
    finally:
        process.kill()


async def stock_of(stub: InventoryStub, product_id: str | UUID) -> int | None:
    """Return the product's stock in inventory; None if inventory does not know it."""
    response = await stub.GetStock(pb.GetStockRequest(product_ids=[str(product_id)]))
    return response.items[0].quantity if response.items else None


def assert_problem(response, status: int, field: str | None = None) -> None:
    """Assert that the response is a problem with the status, which names the field."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    if field is not None:
        assert problem["errors"][0]["field"] == field
        assert problem["errors"][0]["reason"]
