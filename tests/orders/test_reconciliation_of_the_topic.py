"""What reconciliation concludes from an event that the topic does not have: the broker says what it has deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from market.contracts import events
from market.kit.errors import Unavailable
from market.orders.config import Kafka
from market.orders.reconciliation.scratch import ScratchDatabase
from market.orders.reconciliation.topic_reader import TopicReader
from tests.support.servers import KafkaHandle, kafka_server, running
from tests.support.waiting import PATIENCE, wait_until

from .catalogue import FakeCatalogue
from .reconciliation import RECOVERY, copy_order, isolated_service, place_and_publish, reconcile
from .service import MakeSettings, Service, get_document
from .stock import Stock
from .topic import Topic

MISSING, UNDECIDED = "event-not-in-topic", "event-possibly-deleted"


@pytest.fixture
def broker_directory(server_directory: Path) -> Path:
    return server_directory / f"kafka-{uuid4().hex[:8]}"


@pytest.fixture
def bootstrap_servers(kafka: Any, server_directory: Path, broker_directory: Path) -> Iterator[str]:
    """The address of a broker whose topic has no other test's events."""
    server = kafka_server(broker_directory, server_directory / "logs", kafka.kind)
    with running(KafkaHandle(server)):
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def own_topic(bootstrap_servers: str) -> Iterator[Topic]:
    topic = Topic(bootstrap_servers)
    yield topic
    topic.close()


@pytest.fixture
async def lamp(catalogue: FakeCatalogue, stock: Stock) -> str:
    """A product with 50 units."""
    product_id = catalogue.add()
    await stock.set(product_id, 50)
    return product_id


@pytest.fixture
async def service(
    make_settings: MakeSettings, bootstrap_servers: str, postgres: Any, kafka: Any
) -> AsyncIterator[Service]:
    own_kafka = {"bootstrap_servers": bootstrap_servers, "partitions": 4 if kafka.kind == "apache" else 0}
    settings = make_settings(database=f"orders_{uuid4().hex[:8]}", recovery=RECOVERY, kafka=own_kafka)
    async with isolated_service(settings, postgres) as service:
        yield service


async def copy_from(service: Service, order_id: str, days: float, stock: Stock, product_id: str) -> str:
    """Copy the order to one that was confirmed `days` ago, with its stock reserved, and no event in the topic."""
    copy_id = await copy_order(service, order_id)
    confirmed_at = (await get_document(service, UUID(order_id)))["confirmed_at"] - timedelta(days=days)
    await service.documents.update_one({"_id": UUID(copy_id)}, {"$set": {"confirmed_at": confirmed_at}})
    await stock.reserve(copy_id, product_id, 2)
    return copy_id


def set_topic(bootstrap_servers: str, settings: Mapping[str, str]) -> None:
    """Change settings of the topic, as an operator does."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    entries = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in settings.items()]
    resource = ConfigResource(ConfigResource.Type.TOPIC, events.TOPIC, incremental_configs=entries)
    [altered] = admin.incremental_alter_configs([resource]).values()
    altered.result(60)

    def in_force() -> bool:
        [described] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, events.TOPIC)]).values()
        found = described.result(60)
        return all(found[name].value == value for name, value in settings.items())

    # The broker learns of it from the controller, a moment later.
    wait_until(in_force, what=f"{settings} in force")


async def test_the_topics_own_retention_decides_which_events_are_missing(
    service: Service, bootstrap_servers: str, own_topic: Topic, lamp: str, stock: Stock, kafka: Any
) -> None:
    if kafka.kind == "embedded":
        return
    intact = await place_and_publish(service, lamp, own_topic)
    ten, forty = [await copy_from(service, intact, days, stock, lamp) for days in (10, 40)]
    await asyncio.sleep(1.2)

    async def found() -> dict[str, list[tuple[str, bool | None]]]:
        report = await reconcile(service, topic=True)
        assert report.summary["complete"], report.summary
        return {order_id: report.differences_of(order_id) for order_id in (intact, ten, forty)}

    # 30 days, as the service has created it.
    assert await found() == {intact: [], ten: [(MISSING, None)], forty: []}
    set_topic(bootstrap_servers, {"retention.ms": str(7 * 24 * 3600 * 1000)})
    assert await found() == {intact: [], ten: [], forty: []}
    # Consumers recognize a repetition for 30 days only, so an older event is not published again.
    set_topic(bootstrap_servers, {"retention.ms": "-1"})
    assert await found() == {intact: [], ten: [(MISSING, None)], forty: [(UNDECIDED, None)]}
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences_of(ten) == [(MISSING, True)]
    assert repaired.differences_of(forty) == [(UNDECIDED, None)]
    assert [len((await get_document(service, UUID(i))).get("outbox", [])) for i in (ten, forty)] == [1, 0]


async def test_events_that_may_have_been_deleted_are_reported_and_not_published_again(
    service: Service, bootstrap_servers: str, own_topic: Topic, lamp: str, kafka: Any
) -> None:
    if kafka.kind == "embedded":
        return
    deleted, later = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    [message] = own_topic.messages_of(deleted)
    # What an operator does who has no space left.
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    [done] = admin.delete_records([TopicPartition(events.TOPIC, message.partition(), message.offset() + 1)]).values()
    assert done.result(60).low_watermark == message.offset() + 1
    await asyncio.sleep(1.2)
    for repair in (False, True):
        report = await reconcile(service, repair=repair, topic=True)
        assert report.differences_of(deleted) == [(UNDECIDED, None)]
        assert [d for d in report.differences if d["id"] != deleted and d["id"] != later] == []
        assert "outbox" not in await get_document(service, UUID(deleted))
    # With a size limit, the broker itself may delete events, so this one is not reported as missing.
    set_topic(bootstrap_servers, {"retention.bytes": "1000000000"})
    assert (await reconcile(service, topic=True)).differences == []


async def test_a_damaged_batch_ends_the_reading_with_its_error(
    bootstrap_servers: str, broker_directory: Path, kafka: Any
) -> None:
    if kafka.kind == "embedded":
        # It keeps its messages in memory.
        return
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(events.TOPIC, 1)])[events.TOPIC].result(60)
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": "gzip", "log_level": 2})
    failures: list[KafkaError] = []
    producer.produce(
        events.TOPIC, b"a" * 10_000, partition=0, on_delivery=lambda e, _: None if e is None else failures.append(e)
    )
    assert producer.flush(60) == 0
    assert not failures
    [path] = [p for p in broker_directory.rglob(f"{events.TOPIC}-*/*.log") if p.stat().st_size]
    # The batch's header has 61 bytes. What follows it is no longer the compressed message.
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(61)
        file.write(b"x" * (size - 61))
    scratch = ScratchDatabase(str(broker_directory))
    reader = TopicReader(Kafka(bootstrap_servers=bootstrap_servers), scratch, max_empty_polls=1)
    try:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Unavailable, match=r"^the topic cannot be read to its end: Decompression "):
                await reader.read_to_end(lambda *_: None)
    finally:
        await reader.close()
        scratch.close()
