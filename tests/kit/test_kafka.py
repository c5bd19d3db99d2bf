"""The Kafka producer and topics: every message gets one result, in the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from market.kit.config import Kafka
from market.kit.kafka import (
    DeliveryResult,
    Producer,
    watermark_offsets,
)
from market.kit.kafka_settings import client_settings, consumer_settings, producer_settings
from market.kit.process.tasks import periodic_tasks
from market.kit.topics import Topic, TopicKeeper, ensure_topics
from tests.support.clocks import FakeClock
from tests.support.kafka import cause_fatal_error
from tests.support.waiting import until

NOBODY = "127.0.0.1:1"


class Results:
    """Collects what a producer reports, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, DeliveryResult]]] = []

    async def __call__(self, results: list[tuple[str, DeliveryResult]]) -> None:
        self.calls.append(results)

    @property
    def all(self) -> dict[str, DeliveryResult]:
        return {token: result for call in self.calls for token, result in call}


@pytest.fixture
async def make() -> AsyncIterator[Any]:
    """Makes producers that do not outlive the test."""
    made: list[Producer[str]] = []

    def produce(servers: str, results: Results | None = None, *, options: Any = None, **settings: Any) -> Producer[str]:
        config = Kafka(bootstrap_servers=servers, options=options or {})
        settings = {"max_message_bytes": 1_000_000, "delivery_seconds": 60, **settings}
        producer: Producer[str] = Producer(config, "test", on_delivery=results, **settings)
        made.append(producer)
        return producer

    yield produce
    for producer in made:
        await producer.close(0)


@pytest.fixture
async def topic(kafka: Any) -> str:
    name = f"kit-{uuid4().hex[:8]}"
    # The embedded broker creates a topic on first use, and by no other means.
    config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
    assert kafka.kind == "embedded" or await ensure_topics(config, "test", [Topic(name, 1, 1)], 60)
    return name


async def test_every_message_is_acknowledged_with_its_token(make: Any, kafka: Any, topic: str) -> None:
    results = Results()
    producer = make(kafka.bootstrap_servers, results)
    for n in range(50):
        assert producer.send(topic, b"value", key=b"key", headers=[("n", b"1")], token=str(n))
    await until(lambda: len(results.all) == 50)
    assert set(results.all) == {str(n) for n in range(50)}
    assert all(result.error is None and not result.permanent for result in results.all.values())
    # Batched: not one wake-up of the loop per message.
    assert len(results.calls) < 50
    # librdkafka counts a message until its callback has returned in the polling thread.
    await until(lambda: producer.pending == 0, what="no message is pending")


async def test_deliver_returns_once_the_message_is_in_the_topic(make: Any, kafka: Any, topic: str) -> None:
    producer = make(kafka.bootstrap_servers)
    await producer.send_and_wait(topic, b"value", key=b"key", headers=[("name", b"header")], partition=0)

    def read() -> Any:
        config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
        settings = consumer_settings(config, "test", f"test-{uuid4()}", max_message_bytes=1_000_000)
        consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
        consumer.subscribe([topic])
        try:
            while (message := consumer.poll(60)) is None or message.error():
                pass
            return message
        finally:
            consumer.close()

    message = await asyncio.to_thread(read)
    assert (message.key(), message.value(), message.headers()) == (b"key", b"value", [("name", b"header")])


async def test_a_message_that_is_too_large_fails_permanently_and_at_once(make: Any) -> None:
    results = Results()
    producer = make(NOBODY, results, max_message_bytes=2_000)
    assert producer.send("topic", bytes(3_000), token="large")
    await until(lambda: results.all)
    assert results.all["large"].permanent
    with pytest.raises(KafkaException) as caught:
        await producer.send_and_wait("topic", bytes(3_000))
    assert caught.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


async def test_a_message_that_no_broker_accepts_in_time_fails_temporarily(make: Any) -> None:
    results = Results()
    producer = make(NOBODY, results, delivery_seconds=0.3)
    assert producer.send("topic", b"", token="lost")
    with pytest.raises(KafkaException):
        await producer.send_and_wait("topic", b"")
    await until(lambda: results.all)
    assert results.all["lost"].error is not None
    assert not results.all["lost"].permanent


async def test_a_full_queue_accepts_no_message_and_reports_nothing(make: Any) -> None:
    results = Results()
    producer = make(NOBODY, results, options={"queue.buffering.max.messages": "1"})
    assert producer.send("topic", b"", token="first")
    assert not producer.send("topic", b"", token="second")
    with pytest.raises(KafkaException) as caught:
        await producer.send_and_wait("topic", b"")
    assert caught.value.args[0].code() == KafkaError._QUEUE_FULL
    producer.fail_pending()
    await until(lambda: results.all)
    assert set(results.all) == {"first"}


async def test_close_gives_up_pending_messages(make: Any) -> None:
    results = Results()
    producer = make(NOBODY, results)
    waiting = asyncio.create_task(producer.send_and_wait("topic", b""))
    assert producer.send("topic", b"", token="open")
    await asyncio.sleep(0)
    # librdkafka also counts its own events, such as a refused connection, until they are polled.
    assert producer.pending >= 2
    await producer.close(0.05)
    with pytest.raises(KafkaException):
        await waiting
    assert results.all == {}


async def test_an_error_in_the_callback_does_not_stop_later_results(make: Any) -> None:
    seen: list[str] = []

    async def fail(results: list[tuple[str, DeliveryResult]]) -> None:
        seen.extend(token for token, _ in results)
        raise RuntimeError("on purpose")

    producer = make(NOBODY, fail, max_message_bytes=2_000)
    for token in ("one", "two"):
        producer.send("topic", bytes(3_000), token=token)
        await until(lambda token=token: token in seen)


async def test_a_fatal_error_loses_no_result_of_what_was_in_flight(make: Any, kafka: Any, topic: str) -> None:
    results = Results()
    producer = make(kafka.bootstrap_servers, results)
    first = producer._librdkafka
    await producer.send_and_wait(topic, b"first")
    waiting = asyncio.create_task(producer.send_and_wait(topic, b"awaited"))
    kafka.pause()
    try:
        for n in range(300):
            assert producer.send(topic, b"value", key=b"key", token=str(n))
        # By now, librdkafka has sent them, and waits for the response.
        await asyncio.sleep(0.5)
        cause_fatal_error(producer)
        await until(lambda: len(results.all) == 300, what="all results")
        with pytest.raises(KafkaException):
            await waiting
    finally:
        kafka.resume()
    assert not any(result.permanent for result in results.all.values())
    # The results arrive at once. The producer is replaced a second after it was created at the earliest.
    await until(lambda: producer._librdkafka is not first, what="a new producer")
    await producer.send_and_wait(topic, b"by the new producer")
    assert sum(len(call) for call in results.calls) == 300
    await until(lambda: producer.pending == 0)


async def test_a_late_error_of_a_replaced_producer_does_not_replace_its_successor(make: Any, kafka: Any) -> None:
    producer = make(kafka.bootstrap_servers)
    first = producer._librdkafka
    cause_fatal_error(producer)
    # Two reports of the same error: by the callback, and by this call.
    with pytest.raises(KafkaException):
        await producer.send_and_wait("topic", b"")
    await until(lambda: producer._librdkafka is not first, what="a new producer")
    second = producer._librdkafka
    await asyncio.sleep(1.5)
    assert producer._librdkafka is second


async def test_ensure_topics_creates_what_does_not_exist(kafka: Any) -> None:
    config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
    name = new_name()
    topic = Topic(name, 2, 1, {"retention.ms": "3600000"})
    if kafka.kind == "embedded":
        assert not await ensure_topics(config, "test", [topic], 1)
        return
    assert await ensure_topics(config, "test", [topic], 60)
    partitions, settings = await asyncio.to_thread(described, config, name)
    assert (partitions, settings["retention.ms"]) == (2, "3600000")


async def test_every_topic_has_an_id(kafka: Any, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

    def topic_ids() -> list[str]:
        names = [topic, "orders"] if kafka.kind == "embedded" else [topic]
        described = admin.describe_topics(TopicCollection(names), request_timeout=60)
        return [str(future.result(60).topic_id) for future in described.values()]

    # Creates the topic on the embedded broker. Apache Kafka's broker may learn of it later than the controller.
    await until(lambda: admin.list_topics(topic, timeout=60).topics[topic].error is None)
    ids = await asyncio.to_thread(topic_ids)
    assert all(len(topic_id) == 22 for topic_id in ids)
    assert await asyncio.to_thread(topic_ids) == ids


async def test_ensure_topics_keeps_what_an_operator_has_set(kafka: Any) -> None:
    config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
    if kafka.kind == "embedded":
        return
    set_by_operator = {"retention.ms": "600000", "max.message.bytes": "900000", "min.insync.replicas": "1"}
    name = new_name()
    assert await ensure_topics(config, "test", [Topic(name, 5, 1, set_by_operator)], 60)
    wanted = {"retention.ms": "3600000", "max.message.bytes": "800000", "segment.bytes": "2000000"}
    topic = Topic(name, 2, 1, wanted)
    assert await ensure_topics(config, "test", [topic], 60)
    before = await asyncio.to_thread(described, config, name)
    assert before[1]["segment.bytes"] == str(2**30)
    assert await ensure_topics(config, "test", [topic], 60, apply_settings=True)
    # Only what had no value of its own is set. The broker describes a new setting a moment after it has accepted it.
    after = (5, {**before[1], "segment.bytes": "2000000"})

    async def is_set() -> bool:
        return await asyncio.to_thread(described, config, name) == after

    await until(is_set, what="the missing setting is set")
    assert await ensure_topics(config, "test", [topic], 60, apply_settings=True)
    assert await is_set()
    assert {n: after[1][n] for n in set_by_operator} == set_by_operator


async def test_a_setting_below_what_the_service_needs_is_logged(kafka: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
    if kafka.kind == "embedded":
        return
    name = new_name()
    assert await ensure_topics(config, "test", [Topic(name, 1, 1, {"max.message.bytes": "900000"})], 60)
    needed = Topic(name, 1, 1, {"max.message.bytes": "4000000"})
    assert await ensure_topics(config, "test", [needed], 60, apply_settings=True)
    assert "topic setting is below what the service needs" in capsys.readouterr().out
    assert (await asyncio.to_thread(described, config, name))[1]["max.message.bytes"] == "900000"


async def test_a_deleted_topic_is_created_again_soon_after_a_message_was_not_delivered(make: Any, kafka: Any) -> None:
    if kafka.kind == "embedded":
        return
    config = Kafka(bootstrap_servers=kafka.bootstrap_servers)
    name = new_name()
    topics = TopicKeeper(config, "test", [Topic(name, 3, 1)])
    results = Results()
    producer = make(kafka.bootstrap_servers, results, delivery_seconds=2, on_failure=topics.check_soon)

    async def send_again() -> float:
        producer.send(name, b"", token=uuid4().hex)
        return 0.5

    async with periodic_tasks({"topics": topics.check, "send": send_again}):
        await until(lambda: acknowledged(results) > 0, what="acknowledged")
        await asyncio.to_thread(delete_topic, config, name)
        await until(lambda: any(result.error for result in results.all.values()), what="a failure")
        failed = asyncio.get_running_loop().time()
        before = acknowledged(results)
        await until(lambda: acknowledged(results) > before, what="acknowledged by the new topic")
        assert asyncio.get_running_loop().time() - failed < 30
    assert (await asyncio.to_thread(described, config, name))[0] == 3


def acknowledged(results: Results) -> int:
    return sum(result.error is None for result in results.all.values())


def new_name() -> str:
    return f"kit-{uuid4().hex[:8]}"


def delete_topic(config: Kafka, name: str) -> None:
    admin = AdminClient(client_settings(config, "test"))
    admin.delete_topics([name])[name].result()


def described(config: Kafka, name: str) -> tuple[int, dict[str, str]]:
    """The topic's number of partitions, and its settings."""
    admin = AdminClient(client_settings(config, "test"))
    partitions = len(admin.list_topics(name, timeout=60).topics[name].partitions)
    [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name)]).values()
    return partitions, {name: entry.value for name, entry in found.result().items()}


async def test_ensure_topics_returns_false_when_no_broker_responds() -> None:
    assert not await ensure_topics(Kafka(bootstrap_servers=NOBODY), "test", [Topic("topic", 1, 1)], 0.5)


async def test_a_topic_that_cannot_be_created_is_logged_once_and_then_once_an_hour(
    kafka: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if kafka.kind == "embedded":
        return
    clock = FakeClock()
    # More replicas than there are brokers.
    topic = Topic(new_name(), partitions=1, replication_factor=9)
    topics = TopicKeeper(Kafka(bootstrap_servers=kafka.bootstrap_servers), "test", [topic], clock=clock)

    async def lines_after(seconds: float) -> int:
        clock.advance(seconds)
        await topics.check()
        return capsys.readouterr().out.count("topic not created")

    assert [await lines_after(seconds) for seconds in (0, 5, 5, 3600, 5)] == [1, 0, 0, 1, 0]


def test_options_reach_every_client_but_cannot_weaken_what_correctness_needs() -> None:
    config = Kafka(
        bootstrap_servers="broker:9092",
        options={"security.protocol": "SSL", "acks": "1", "enable.auto.commit": "true", "linger.ms": "50"},
    )
    producer = producer_settings(config, "test", max_message_bytes=1, delivery_seconds=1, linger_seconds=0)
    consumer = consumer_settings(config, "test", "group", max_message_bytes=1)
    for settings in (client_settings(config, "test"), producer, consumer):
        assert settings["security.protocol"] == "SSL"
        assert settings["bootstrap.servers"] == "broker:9092"
    assert (producer["acks"], producer["linger.ms"]) == ("all", "50")
    assert consumer["enable.auto.commit"] is False


class ConsumerWithErrors:
    """Fails with the errors, one per call, and then returns offsets."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        assert timeout > 0
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return 3, 7


def test_the_offsets_of_a_partition_are_read_as_soon_as_it_has_a_leader() -> None:
    codes = KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._UNKNOWN_PARTITION
    consumer: Any = ConsumerWithErrors(*codes)
    assert watermark_offsets(consumer, TopicPartition("topic", 0), deadline=time.monotonic() + 600) == (3, 7)


@pytest.mark.parametrize(
    ("code", "seconds"), [(KafkaError.NOT_LEADER_FOR_PARTITION, 0), (KafkaError.TOPIC_AUTHORIZATION_FAILED, 600)]
)
def test_reading_offsets_fails_at_the_deadline_and_at_once_for_other_errors(code: int, seconds: int) -> None:
    consumer: Any = ConsumerWithErrors(code)
    with pytest.raises(KafkaException) as e:
        watermark_offsets(consumer, TopicPartition("topic", 0), deadline=time.monotonic() + seconds)
    assert e.value.args[0].code() == code
    assert consumer.codes == []
