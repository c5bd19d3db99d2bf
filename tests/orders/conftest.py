"""Orders on real MongoDB, Kafka and inventory (on PostgreSQL), beside a catalogue that stands in for products."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import grpc.aio
import msgspec
import pymongo
import pytest

from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory.app import MIGRATIONS
from market.inventory.app import build as build_inventory
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc
from market.kit import config as kit_config
from market.kit import postgres as kit_postgres
from market.kit.process.lifecycle import Process
from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.ports import free_port

from .parts import Catalogue, OrdersProcess, Service, Stock, Topic, serving, settings


@pytest.fixture(scope="session")
async def catalogue() -> AsyncIterator[Catalogue]:
    async with Catalogue() as made:
        yield made


@pytest.fixture(autouse=True)
def catalogue_is_well(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "catalogue" in request.fixturenames:
        request.getfixturevalue("catalogue").behave()


@pytest.fixture(scope="session")
async def stock(postgres: Any) -> AsyncIterator[Stock]:
    """The real inventory."""
    database = kit_config.Postgres(
        host=postgres.host,
        port=postgres.port,
        database="inventory",
        user="inventory",
        password=postgres.password,
        pool_size=4,
        timeout_seconds=15,
    )
    await kit_postgres.migrate(database, MIGRATIONS)
    config = InventoryConfig(admin=kit_config.Listen(port=free_port()), grpc=Grpc(port=free_port()), postgres=database)
    process = Process()
    async with build_inventory(config, process) as server:
        await server.start()
        process.health.started = True
        target = f"127.0.0.1:{config.grpc.port}"
        async with grpc.aio.insecure_channel(target) as channel:
            yield Stock(InventoryStub(channel), target)
        await server.stop(1)


@pytest.fixture(scope="session")
def topic(kafka: Any) -> Iterator[Topic]:
    made = Topic(kafka.bootstrap_servers)
    yield made
    made.close()


@pytest.fixture(scope="session")
def given(mongodb: Any, kafka: Any, stock: Stock, catalogue: Catalogue) -> Any:
    """Makes a configuration; each has ports of its own, all the same database unless told otherwise."""
    name = f"orders_{uuid4().hex[:8]}"

    def make(*, database: str = name, **more: Any) -> dict[str, Any]:
        return settings(mongodb, kafka.bootstrap_servers, stock.target, catalogue.port, database, **more)

    return make


@pytest.fixture(scope="session")
async def migrated(given: Any, kafka: Any) -> None:
    config = given()
    config["kafka"]["partitions"] = 4 if kafka.kind == "apache" else 0
    assert await orders_app.migrate(msgspec.convert(config, Config), []) == 0


@pytest.fixture(scope="session")
async def service(given: Any, migrated: None) -> AsyncIterator[Service]:
    """One service in this process for all tests that do not break it."""
    async with serving(given(recovery={"after_seconds": 120, "lease_seconds": 30})) as made:
        yield made


@pytest.fixture(scope="session")
def documents(mongodb: Any, given: Any) -> Iterator[Any]:
    """The collection itself, read beside the service."""
    client: Any = pymongo.MongoClient(mongodb.uri, uuidRepresentation="standard", tz_aware=True)
    yield client[given()["mongodb"]["database"]].orders
    client.close()


@pytest.fixture
async def own_process(given: Any, migrated: None, tmp_path: Any) -> AsyncIterator[Any]:
    """Makes processes of the service."""
    made: list[OrdersProcess] = []

    def make(**more: Any) -> OrdersProcess:
        made.append(OrdersProcess(given(**more), tmp_path))
        return made[-1]

    yield make
    for process in made:
        await process.close()
