"""The rotations of docs/operations.md ("Secrets") on real servers: no login is refused in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pymongo
import pytest
import redis.asyncio
import redis.exceptions
import yaml
from market_dev.stack import processes
from market_dev.stack.servers.postgres import Postgres
from pymongo.errors import OperationFailure

from market.orders.config import MongoDB
from market.orders.mongodb.collection import create_client
from market.products.availability.cache import AvailabilityCache, connect
from tests.deploy.conftest import ROOT
from tests.deploy.test_store_users import PASSWORD, STORES, MongodbWithUsers, RedisWithUsers
from tests.support.ports import free_port
from tests.support.servers import PostgresHandle, UriHandle, running
from tests.support.waiting import PATIENCE

NEW = "new-secret"


class RedisWithAdministrator(RedisWithUsers):
    def command(self) -> processes.Command:
        command = super().command()
        with (self.directory / "users.conf").open("a") as users:
            users.write(f"\nuser admin on ~* +@all >{PASSWORD}\n")
        return command


class PostgresWithRules(Postgres):
    """PostgreSQL whose pg_hba.conf has the lines of the example, for this machine and without TLS."""

    def command(self) -> processes.Command:
        lines = re.findall(r"^--   hostssl(.+)$", (STORES / "postgresql.sql").read_text(), re.MULTILINE)
        rules = ["host all postgres 127.0.0.1/32 scram-sha-256"]
        rules += [f"host {line}".replace("10.0.0.0/8", "127.0.0.1/32") for line in lines]
        (self.data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        return super().command()


@pytest.fixture
def postgres_server(server_directory: Path) -> Iterator[PostgresHandle]:
    directory, logs = server_directory / "postgres-rotation", server_directory / "logs"
    handle = PostgresHandle(PostgresWithRules(free_port(), directory, logs, PASSWORD))
    with running(handle):
        yield handle


@pytest.fixture
def redis_server(server_directory: Path) -> Iterator[UriHandle]:
    directory, logs = server_directory / "redis-rotation", server_directory / "logs"
    handle = UriHandle(RedisWithAdministrator(free_port(), directory, logs))
    with running(handle):
        yield handle


@pytest.fixture
def mongodb_server(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(MongodbWithUsers(free_port(), server_directory / "mongodb-rotation", server_directory / "logs"))
    with running(handle):
        yield handle


async def test_two_users_of_postgresql_take_turns(postgres_server: PostgresHandle) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    statements = re.search(r"```sql\n(CREATE ROLE products_a .*?)```", page, re.DOTALL)
    assert statements

    async def connect_as(user: str, password: str, database: str) -> asyncpg.Connection[Any]:
        host, port = postgres_server.host, postgres_server.port
        return await asyncpg.connect(host=host, port=port, user=user, password=password, database=database)

    admin = await connect_as("postgres", PASSWORD, "postgres")
    try:
        await admin.execute(statements[1].replace("...", PASSWORD))
        old_pod = await connect_as("products_a", PASSWORD, "products")
        await old_pod.execute("CREATE TABLE made_by_the_old_pod (id int)")
        await admin.execute(f"ALTER ROLE products_b LOGIN PASSWORD '{NEW}'")
        new_pod = await connect_as("products_b", NEW, "products")
        # What either of them creates belongs to both.
        await new_pod.execute("DROP TABLE made_by_the_old_pod")
        await admin.execute("ALTER ROLE products_a NOLOGIN")
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await connect_as("products_a", PASSWORD, "products")
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await connect_as("products_b", NEW, "inventory")
        await new_pod.close()
        await old_pod.close()
    finally:
        await admin.close()


async def test_redis_accepts_both_passwords_until_the_old_one_is_removed(redis_server: UriHandle) -> None:
    def url(user: str, password: str) -> str:
        return redis_server.uri.replace("redis://", f"redis://{user}:{password}@")

    async def use(password: str, available: bool) -> None:
        """Use the cache through new connections, as a pod that has just started."""
        async with connect(url("products", password)) as client:
            cache = AvailabilityCache(client, ttl_seconds=60, timeout_seconds=PATIENCE)
            await cache.overwrite({product_id: available})
            assert await cache.get_many([product_id]) == {product_id: available}

    product_id = str(uuid4())
    async with (
        redis.asyncio.Redis.from_url(url("admin", PASSWORD)) as admin,
        connect(url("products", PASSWORD)) as old_pod,
    ):
        old_cache = AvailabilityCache(old_pod, ttl_seconds=60, timeout_seconds=PATIENCE)
        await old_cache.overwrite({product_id: True})
        await admin.execute_command("ACL", "SETUSER", "products", f">{NEW}")
        await use(NEW, False)
        await use(PASSWORD, True)
        await admin.execute_command("ACL", "SETUSER", "products", f"<{PASSWORD}")
        await use(NEW, False)
        # An open connection stays logged in.
        assert await old_cache.get_many([product_id]) == {product_id: False}
        async with redis.asyncio.Redis.from_url(url("products", PASSWORD)) as late:
            with pytest.raises(redis.exceptions.AuthenticationError):
                await late.mget([f"avail:{product_id}"])


async def test_two_users_of_mongodb_take_turns(mongodb_server: UriHandle) -> None:
    first = pymongo.MongoClient[dict[str, Any]](mongodb_server.uri)
    first.admin.command("createUser", "admin", pwd=PASSWORD, roles=["root"])
    first.close()
    role = re.search(r"createRole\((\{.*?\n\})\);", (STORES / "mongodb.js").read_text(), re.DOTALL)
    assert role
    values = yaml.safe_load(role[1])

    def config(user: str) -> MongoDB:
        uri = mongodb_server.uri.replace("mongodb://", f"mongodb://{user}:{PASSWORD}@") + "&authSource=orders"
        return MongoDB(uri=uri, database="orders", timeout_seconds=PATIENCE)

    with pymongo.MongoClient[dict[str, Any]](mongodb_server.uri, username="admin", password=PASSWORD) as admin:
        admin.orders.command({"createRole": values.pop("role"), **values})
        for user in ("orders", "orders_b"):
            admin.orders.command({"createUser": user, "pwd": PASSWORD, "roles": ["orders"]})
        async with create_client(config("orders")) as old_pod, create_client(config("orders_b")) as new_pod:
            for client in (old_pod, new_pod, old_pod):
                await client["orders"]["orders"].insert_one({"_id": uuid4()})
            admin.orders.command({"dropUser": "orders"})
            await new_pod["orders"]["orders"].insert_one({"_id": uuid4()})
            # So drop it only when no pod uses it any more: open connections lose their rights, too.
            with pytest.raises(OperationFailure):
                await old_pod["orders"]["orders"].insert_one({"_id": uuid4()})
        assert admin.orders.orders.count_documents({}) == 4
