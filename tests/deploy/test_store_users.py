"""The examples of the stores' users in the production overlay, on real servers: what they may do, and may not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pymongo
import pytest
import redis.asyncio
import redis.exceptions
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from market_dev.stack import processes
from market_dev.stack.kafka import apache
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.redis import Redis
from pymongo.errors import OperationFailure, PyMongoError

from market.contracts import events
from market.kit.config import GrpcUpstream, Http, HttpUpstream, Listen, Postgres
from market.kit.topics import ensure_topics
from market.orders import app as orders
from market.orders.config import Config as OrdersConfig
from market.orders.config import Kafka as OrdersKafka
from market.orders.config import MongoDB
from market.orders.mongodb.collection import OrdersCollection, create_client
from market.orders.mongodb.indexes import check_indexes
from market.products import app as products
from market.products.availability.cache import AvailabilityCache, connect
from market.products.config import Config as ProductsConfig
from market.products.config import Redis as RedisConfig
from tests.deploy.kafka_users import PASSWORD, STORES, KafkaWithUsers, acl_bindings, example_calls, option
from tests.notifications.conftest import event
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.servers import MailHandle, PostgresHandle, UriHandle, running
from tests.support.waiting import PATIENCE, until


async def test_the_roles_of_postgresql_own_their_database_and_cannot_connect_to_the_other(
    postgres: PostgresHandle,
) -> None:
    text = re.sub(r"\b(products|inventory)\b", r"example_\1", (STORES / "postgresql.sql").read_text())
    statements = re.sub(r"--.*", "", text).split(";")
    admin = await asyncpg.connect(postgres.uri("postgres"))
    try:
        for statement in filter(str.strip, statements):
            await admin.execute(statement)
        for role in ("example_products", "example_inventory"):
            await admin.execute(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'")
    finally:
        await admin.close()

    def database(name: str, user: str) -> dict[str, Any]:
        return {"host": postgres.host, "port": postgres.port, "database": name, "user": user, "password": PASSWORD}

    config = ProductsConfig(
        admin=Listen(port=1),
        http=Http(port=1),
        postgres=Postgres(**database("example_products", "example_products")),
        redis=RedisConfig(url="redis://none"),
        inventory=GrpcUpstream(target="none"),
    )
    await products.migrate(config, [])
    own = await asyncpg.connect(**database("example_products", "example_products"))
    try:
        assert await own.fetchval("SELECT count(*) FROM products") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await own.execute("CREATE ROLE another")
    finally:
        await own.close()
    for user in ("example_inventory", "inventory"):
        password = PASSWORD if user == "example_inventory" else postgres.password
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(**database("example_products", user) | {"password": password})


class RedisWithUsers(Redis):
    """Redis with the users of the example."""

    def command(self) -> processes.Command:
        text = (STORES / "redis.conf").read_text()
        assert text.count("0" * 64) == 1
        path = self.directory / "users.conf"
        path.write_text(text.replace("0" * 64, hashlib.sha256(PASSWORD.encode()).hexdigest()))
        command = super().command()
        return processes.Command([command.args[0], path, *command.args[1:]])

    def probe(self) -> bool:
        return processes.is_listening(self.port)


@pytest.fixture
def redis_with_users(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(RedisWithUsers(free_port(), server_directory / "redis-users", server_directory / "logs"))
    with running(handle):
        yield handle


async def test_the_user_of_redis_can_cache_availability_and_nothing_else(redis_with_users: UriHandle) -> None:
    url = redis_with_users.uri.replace("redis://", f"redis://products:{PASSWORD}@")
    product_id = str(uuid4())
    async with connect(url) as client:
        cache = AvailabilityCache(client, ttl_seconds=60, timeout_seconds=PATIENCE)
        await cache.fill({product_id: True})
        await cache.overwrite({product_id: False})
        assert await cache.get_many([product_id]) == {product_id: False}
        for command in (("GET", f"avail:{product_id}"), ("SET", "session:1", "x"), ("KEYS", "*"), ("FLUSHALL",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await client.execute_command(*command)
    async with redis.asyncio.Redis.from_url(redis_with_users.uri) as nobody:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await nobody.get(f"avail:{product_id}")


class MongodbWithUsers(Mongodb):
    """MongoDB that checks who its clients are."""

    def command(self) -> processes.Command:
        path = self.directory / "keyfile"
        path.write_text("a" * 64)
        path.chmod(0o400)
        return processes.Command([*super().command().args, "--keyFile", path])

    def probe(self) -> bool:
        # As long as there is no user, a connection from this machine may initiate the replica set.
        if not processes.is_listening(self.port):
            return False
        with pymongo.MongoClient[dict[str, Any]](self.uri, serverSelectionTimeoutMS=1000) as client:
            try:
                members = [{"_id": 0, "host": f"{self.host}:{self.port}"}]
                client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            except PyMongoError:
                # It was initiated before, or the server is not ready yet.
                return bool(client.admin.command("hello").get("isWritablePrimary"))
        return False


@pytest.fixture
def mongodb_with_users(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(MongodbWithUsers(free_port(), server_directory / "mongodb-users", server_directory / "logs"))
    with running(handle):
        yield handle


async def test_the_user_of_mongodb_can_keep_orders_and_nothing_else(mongodb_with_users: UriHandle) -> None:
    admin: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongodb_with_users.uri)
    admin.admin.command("createUser", "admin", pwd=PASSWORD, roles=["root"])
    admin.close()
    admin = pymongo.MongoClient(mongodb_with_users.uri, username="admin", password=PASSWORD)
    calls = re.findall(
        r"orders\.(createRole|createUser)\((\{.*?\n\})\);", (STORES / "mongodb.js").read_text(), re.DOTALL
    )
    assert [name for name, _ in calls] == ["createRole", "createUser"]
    for name, argument in calls:
        values = yaml.safe_load(argument.replace("passwordPrompt()", f'"{PASSWORD}"'))
        kind = {"createRole": "role", "createUser": "user"}[name]
        admin.orders.command({name: values.pop(kind), **values})
    uri = mongodb_with_users.uri.replace("mongodb://", f"mongodb://orders:{PASSWORD}@") + "&authSource=orders"
    config = OrdersConfig(
        admin=Listen(port=1),
        http=Http(port=1),
        mongodb=MongoDB(uri=uri, database="orders", timeout_seconds=PATIENCE),
        products=HttpUpstream(url="http://none"),
        inventory=GrpcUpstream(target="none"),
        kafka=OrdersKafka(bootstrap_servers="none", partitions=0),
    )
    assert await orders.migrate(config, []) == 0
    async with create_client(config.mongodb) as client:
        collection = OrdersCollection(client["orders"], timeout_seconds=PATIENCE)
        await check_indexes(collection)
        await collection.ping()
        plain = collection.pymongo_collection
        await plain.insert_one({"_id": uuid4(), "user": "ann", "status": "pending"})
        await plain.update_one({"user": "ann"}, {"$set": {"status": "confirmed"}})
        async with await plain.aggregate([{"$match": {"user": "ann"}}, {"$count": "n"}]) as cursor:
            assert [d["n"] async for d in cursor] == [1]
        await collection.find_latest([{"_id": uuid4()}])
        assert admin.orders.barriers.find_one({}) == {"_id": "orders", "count": 1}
        for refused in (
            plain.delete_one({"user": "ann"}),
            client["orders"]["other"].insert_one({}),
            client["products"]["orders"].find_one(),
            client["orders"].command("dropDatabase"),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                await refused
        # The role of an earlier version did not allow the barrier.
        role = admin.orders.command("rolesInfo", "orders", showPrivileges=True)["roles"][0]
        earlier = [p for p in role["privileges"] if p["resource"]["collection"] == "orders"]
        admin.orders.command("updateRole", "orders", privileges=earlier)
        ids = [uuid4(), uuid4()]
        await plain.insert_one({"_id": ids[0], "user": "ben"})
        found = await collection.find_latest([{"_id": order_id} for order_id in ids])
        assert found == [{"_id": ids[0], "user": "ben"}]
        assert admin.orders.barriers.find_one({}) == {"_id": "orders", "count": 1}
    admin.close()


@pytest.fixture
async def kafka_with_users(server_directory: Path, tmp_path: Path) -> AsyncIterator[KafkaWithUsers]:
    """Apache Kafka with the users and rules of the example."""
    assert apache.why_unavailable() is None
    handle = KafkaWithUsers(server_directory / "kafka-users", server_directory / "logs")
    with running(handle):
        admin = AdminClient({"bootstrap.servers": handle.bootstrap_servers})
        for call in example_calls(tmp_path):
            if call[0] == "kafka-configs.sh":
                assert PASSWORD not in " ".join(call)
                user = UserScramCredentialUpsertion(
                    option(call, "--entity-name"),
                    ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096),
                    PASSWORD.encode(),
                )
                for done in admin.alter_user_scram_credentials([user]).values():
                    await asyncio.to_thread(done.result, PATIENCE)
            else:
                for done in admin.create_acls(acl_bindings(call)).values():
                    await asyncio.to_thread(done.result, PATIENCE)
        yield handle


async def test_the_users_of_kafka_can_publish_and_mail_and_nothing_else(
    kafka_with_users: KafkaWithUsers, mail: MailHandle, tmp_path: Path
) -> None:
    kafka = kafka_with_users
    config = OrdersKafka(
        bootstrap_servers=kafka.services, options=kafka.options("orders"), partitions=2, create_seconds=PATIENCE
    )
    topics = orders._topics(config)
    # The second call sets what the existing topic leaves open.
    for _ in range(2):
        assert await ensure_topics(config, "market.orders", topics, PATIENCE, apply_settings=True)
    email = f"{uuid4().hex}@example.test"
    service = ServiceProcess(
        "notifications",
        {
            "admin": {"port": free_port()},
            "http": {"port": free_port()},
            "kafka": {
                "bootstrap_servers": kafka.services,
                "options": kafka.options("notifications"),
                "partitions": 2,
            },
            "smtp": {"host": "127.0.0.1", "port": mail.smtp_port, "tls": "none"},
            "mail": {"from": "Market <shop@market.test>"},
        },
        tmp_path,
    )
    service.start()
    try:
        await service.ready()
        publish(kafka, "orders", events.TOPIC, event(email=email))
        await until(lambda: mails_to(mail, email), PATIENCE, lambda: f"a mail\n{service.log}")
        # The record of the first start, and that of the mail.
        await until(lambda: sent_log_records(kafka) == 2, PATIENCE, lambda: f"the sent log\n{service.log}")
        assert "AUTHORIZATION" not in service.log.upper()
    finally:
        await service.stop()
    for user, topic in (
        ("notifications", events.TOPIC),
        ("orders", "notifications.sent"),
        ("orders", "notifications.deferred"),
        ("orders", "orders.dead-letter"),
        ("orders", "another"),
    ):
        with pytest.raises(KafkaException) as refused:
            publish(kafka, user, topic, event())
        assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED, (user, topic)


def publish(kafka: KafkaWithUsers, user: str, topic: str, value: dict[str, Any]) -> None:
    """Publish an event as the user. Raises KafkaException."""
    failures: list[KafkaError] = []
    producer = Producer(
        {"bootstrap.servers": kafka.services, "enable.idempotence": True, "acks": "all", **kafka.options(user)}
    )
    producer.produce(
        topic,
        key=value["subject"],
        value=json.dumps(value),
        headers={events.CONTENT_TYPE_HEADER: events.CONTENT_TYPE},
        on_delivery=lambda error, _: failures.append(error) if error else None,
    )
    assert producer.flush(PATIENCE) == 0
    if failures:
        raise KafkaException(failures[0])


async def mails_to(mail: MailHandle, email: str) -> list[Any]:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{mail.url}/api/messages", params={"to": email})
    return list(response.json()["items"])


def sent_log_records(kafka: KafkaWithUsers) -> int:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test"})
    try:
        _, high = consumer.get_watermark_offsets(TopicPartition("notifications.sent", 0), timeout=PATIENCE)
    finally:
        consumer.close()
    return int(high)
