"""Products in this process, on real PostgreSQL and Valkey, beside the real inventory or one that does as it is told."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import grpc.aio
import httpx
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, InventoryStub, add_InventoryServicer_to_server
from market.inventory import app as inventory_app
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc
from market.kit import postgres as kit_postgres
from market.kit.config import GrpcUpstream, Http, Listen, Postgres
from market.kit.faults import Faults
from market.kit.http import edge
from market.kit.process.lifecycle import Process
from market.kit.rpc import client as rpc
from market.products import app, store
from market.products.config import Availability, Config, Redis
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE

LAMP = {"name": "Lamp", "description": "It gives light.\nBy day, too.", "price": "12.5", "currency": "GBP"}


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


class Held(Faults):
    """A failure point at which the first to come waits until the test lets it go."""

    def __init__(self, point: str) -> None:
        super().__init__("/nowhere")
        self._point = point
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def reach(self, name: str) -> None:
        if name == self._point and not self.reached.is_set():
            self.reached.set()
            await self.go.wait()


class Inventory(InventoryServicer):
    """An inventory that remembers what it was asked, and fails or hangs when it is told to."""

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}
        self.asked: list[list[str]] = []
        self.set: list[tuple[str, int]] = []
        self.down = False
        # Who comes while there is one waits until it is open.
        self.gate: asyncio.Event | None = None

    async def CheckAvaliable(self, request: Any, context: Any) -> Any:
        self.asked.append(list(request.product_ids))
        stock = dict(self.stock)
        await self._behave(context)
        quantities = ((id, stock.get(id, 0)) for id in request.product_ids)
        return pb.CheckAvaliableResponse(
            items=[pb.Availability(product_id=id, available=n > 0, quantity=n) for id, n in quantities]
        )

    async def SetStock(self, request: Any, context: Any) -> Any:
        self.set.append((request.product_id, request.quantity))
        await self._behave(context)
        self.stock[request.product_id] = request.quantity
        return pb.SetStockResponse(quantity=request.quantity)

    async def _behave(self, context: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down, as the test wants it")


@asynccontextmanager
async def served(inventory: Inventory, port: int = 0) -> AsyncIterator[int]:
    """The told inventory on a port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_InventoryServicer_to_server(inventory, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@dataclass
class Running:
    """Products as it runs: its client, and the stores that it writes to."""

    http: httpx.AsyncClient
    config: Config
    db: asyncpg.Pool[Any]
    redis: redis.asyncio.Redis

    async def create(self, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post("/api/product", json={**LAMP, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def get(self, id: str, **parameters: Any) -> dict[str, Any]:
        answer = await self.http.get(f"/api/product/{id}", params=parameters)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def count(self) -> int:
        return int(await self.db.fetchval("SELECT count(*) FROM products"))


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(scope="session")
def patience() -> Iterator[None]:
    """Lengthens the deadlines that no configuration has."""
    application = edge.application
    slow = {"grpc.min_reconnect_backoff_ms": 20_000, "grpc.keepalive_timeout_ms": 60_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            edge,
            "application",
            lambda routes, *args, **more: application(routes, *args, **more, timeouts=dict.fromkeys(routes, PATIENCE)),
        )
        patch.setattr(store, "acquire", functools.partial(kit_postgres.acquire, seconds=PATIENCE))
        patch.setattr(rpc, "CHANNEL_OPTIONS", list({**dict(rpc.CHANNEL_OPTIONS), **slow}.items()))
        yield


@pytest.fixture(scope="session")
async def migrated(postgres: Any) -> None:
    config = Config(
        admin=Listen(port=1),
        http=Http(port=1),
        postgres=postgres_config(postgres, "products"),
        redis=Redis(url="redis://none"),
        inventory=GrpcUpstream(target="none"),
    )
    await app.migrate(config, [])


@pytest.fixture(scope="session")
def start(patience: None, migrated: None, postgres: Any, redis_server: Any) -> Start:
    """Starts a products service of one's own: `async with start(inventory_port, ttl=1.0) as products`."""

    @asynccontextmanager
    async def begin(
        inventory_port: int,
        *,
        ttl: float = 300.0,
        redis_port: int | None = None,
        redis_seconds: float = PATIENCE,
        inventory_seconds: float = PATIENCE,
        faults: Faults | None = None,
    ) -> AsyncIterator[Running]:
        url = f"redis://{redis_server.host}:{redis_port or redis_server.port}/0"
        config = Config(
            admin=Listen(port=free_port()),
            http=Http(port=free_port()),
            postgres=postgres_config(postgres, "products"),
            redis=Redis(url=url, timeout_seconds=redis_seconds),
            inventory=GrpcUpstream(target=f"dns:///127.0.0.1:{inventory_port}", timeout_seconds=PATIENCE),
            availability=Availability(ttl_seconds=ttl, timeout_seconds=inventory_seconds),
        )
        process = Process(faults=faults)
        base = f"http://127.0.0.1:{config.http.port}"
        async with (
            app.build(config, process) as server,
            httpx.AsyncClient(base_url=base, timeout=2 * PATIENCE, limits=httpx.Limits(max_connections=None)) as client,
            asyncpg.create_pool(postgres.uri("products"), min_size=0, max_size=4) as db,
            redis.asyncio.Redis.from_url(
                f"redis://{redis_server.host}:{redis_server.port}/0", retry=Retry(NoBackoff(), 3)
            ) as cache,
        ):
            await server.start()
            try:
                yield Running(client, config, db, cache)
            finally:
                await server.stop(5)

    return begin


@pytest.fixture(scope="session")
async def inventory_port(patience: None, postgres: Any) -> AsyncIterator[int]:
    """The real inventory."""
    config = InventoryConfig(
        admin=Listen(port=free_port()), grpc=Grpc(port=free_port()), postgres=postgres_config(postgres, "inventory")
    )
    await inventory_app.migrate(config, [])
    async with inventory_app.build(config, Process()) as server:
        await server.start()
        yield config.grpc.port
        await server.stop(1)


@pytest.fixture(scope="session")
async def stock(inventory_port: int) -> AsyncIterator[InventoryStub]:
    """The real inventory's calls."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{inventory_port}") as channel:
        yield InventoryStub(channel)


@pytest.fixture(scope="session")
async def shop(start: Start, inventory_port: int) -> AsyncIterator[Running]:
    """Products beside the real inventory; an answer is cached for a second."""
    async with start(inventory_port, ttl=1.0) as running:
        yield running


@pytest.fixture(scope="session")
async def _told(start: Start) -> AsyncIterator[tuple[Running, Inventory]]:
    inventory = Inventory()
    async with served(inventory) as port, start(port) as running:
        yield running, inventory


@pytest.fixture
async def told(_told: tuple[Running, Inventory]) -> tuple[Running, Inventory]:
    """Products beside an inventory that does as it is told and has not been asked anything yet; the cache is empty."""
    running, inventory = _told
    inventory.__init__()  # type: ignore[misc]
    await running.redis.flushall()
    return running, inventory


async def quantity(stock: InventoryStub, id: str | UUID) -> int | None:
    """What inventory has of the product; None: it has no row."""
    answer = await stock.GetStock(pb.GetStockRequest(product_ids=[str(id)]))
    return answer.items[0].quantity if answer.items else None
