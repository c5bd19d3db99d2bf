"""Orders on real MongoDB and Kafka, with the real inventory (on PostgreSQL) and a fake products service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import grpc.aio
import pymongo
import pytest

from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory.app import MIGRATIONS
from market.inventory.app import build as build_inventory
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc
from market.kit import config as kit_config
from market.kit import migrations as kit_migrations
from market.kit.process.lifecycle import Process
from tests.support.issuer import Issuer
from tests.support.ports import free_port

from .catalogue import FakeCatalogue
from .service import MakeSettings, OrdersProcess, Service, Settings, migrate, on_new_database, service_settings, serving
from .sign_in import Shop
from .stock import Stock
from .topic import Topic


@pytest.fixture(scope="session")
async def catalogue() -> AsyncIterator[FakeCatalogue]:
    async with FakeCatalogue() as catalogue:
        yield catalogue


@pytest.fixture(autouse=True)
def reset_catalogue(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "catalogue" in request.fixturenames:
        request.getfixturevalue("catalogue").reset()


@pytest.fixture(scope="session")
async def stock(postgres: Any) -> AsyncIterator[Stock]:
    """The real inventory, served by this process."""
    database = kit_config.Postgres(
        host=postgres.host,
        port=postgres.port,
        database="inventory",
        user="inventory",
        password=postgres.password,
        pool_size=4,
        timeout_seconds=15,
    )
    await kit_migrations.migrate(database, MIGRATIONS)
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
    topic = Topic(kafka.bootstrap_servers)
    yield topic
    topic.close()


@pytest.fixture(scope="session")
def make_settings(mongodb: Any, kafka: Any, stock: Stock, catalogue: FakeCatalogue) -> MakeSettings:
    """Make configurations: each has its own ports, and all have the same database unless `database` is given."""
    shared_database = f"orders_{uuid4().hex[:8]}"

    def make(*, database: str = shared_database, **sections: Any) -> Settings:
        return service_settings(
            mongodb.uri, kafka.bootstrap_servers, stock.target, catalogue.port, database=database, **sections
        )

    return make


@pytest.fixture(scope="session")
async def migrated(make_settings: MakeSettings, kafka: Any) -> None:
    """The indexes of the shared database, and the topics."""
    settings = make_settings()
    settings["kafka"]["partitions"] = 4 if kafka.kind == "apache" else 0
    await migrate(settings)


@pytest.fixture(scope="module")
async def isolated_settings(make_settings: MakeSettings, migrated: None) -> MakeSettings:
    """Make configurations with a database of the module's own, on which no other test's background tasks work."""
    return await on_new_database(make_settings)


@pytest.fixture(scope="session")
async def service(make_settings: MakeSettings, migrated: None) -> AsyncIterator[Service]:
    """One instance in this process, shared by all tests that leave it intact."""
    async with serving(make_settings(recovery={"reject_after_seconds": 120, "lease_seconds": 30})) as service:
        yield service


@pytest.fixture(scope="session")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def shop(make_settings: MakeSettings, migrated: None, issuer: Issuer) -> AsyncIterator[Shop]:
    """An instance that requires sign-in, with a database of the module's own."""
    settings = await on_new_database(make_settings)
    sign_in = {"mode": "required", "issuer": issuer.url}
    async with serving(settings(auth=sign_in, recovery={"reject_after_seconds": 120, "lease_seconds": 30})) as service:
        yield Shop(service, issuer)


@pytest.fixture(scope="session")
def documents(mongodb: Any, make_settings: MakeSettings) -> Iterator[Any]:
    """PyMongo's synchronous collection in the shared database, to read documents without the service."""
    client: Any = pymongo.MongoClient(mongodb.uri, uuidRepresentation="standard", tz_aware=True)
    yield client[make_settings()["mongodb"]["database"]].orders
    client.close()


@pytest.fixture
async def make_process(make_settings: MakeSettings, migrated: None, tmp_path: Any) -> AsyncIterator[Any]:
    """Make processes of the service, `make_process(database=...)`; they are killed at the end of the test."""
    made: list[OrdersProcess] = []

    def make(**sections: Any) -> OrdersProcess:
        made.append(OrdersProcess(make_settings(**sections), tmp_path))
        return made[-1]

    yield make
    for process in made:
        await process.close()


@pytest.fixture(scope="module")
async def shop_of_module(make_settings: MakeSettings, migrated: None, issuer: Issuer) -> AsyncIterator[Shop]:
    settings = await on_new_database(make_settings)
    async with serving(settings(auth={"mode": "required", "issuer": issuer.url}), background=False) as service:
        yield Shop(service, issuer)


@pytest.fixture
async def own_shop(shop_of_module: Shop) -> AsyncIterator[Shop]:
    """An instance with a database of its own, in which everybody's orders are those of the test."""
    yield shop_of_module
    await shop_of_module.documents.delete_many({})
