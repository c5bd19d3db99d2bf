"""Messages that were read just before a rebalance are processed by one member only."""

from __future__ import annotations

import asyncio
import threading

import msgspec
from confluent_kafka import Consumer, KafkaError, TopicPartition

from market.kit.process.health import Health
from market.kit.process.tasks import FAILURES
from market.notifications import metrics
from market.notifications.config import Config
from market.notifications.consumer.dispatcher import Dispatcher
from market.notifications.consumer.group_member import GroupMember
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.orders_consumer import OrdersConsumer
from market.notifications.consumer.start import StartOffsets
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import Message, PendingMessage
from market.notifications.sent_log.log import SentLog
from tests.notifications.conftest import PARTITIONS, Mailing, event
from tests.support.waiting import until


class AvailableMailServer:
    """A mail server that is always available."""

    available = True

    async def wait_until_available(self) -> None:
        """Return at once."""


class SlowReading:
    """Blocks the consumer's thread while it reads the first message, until `rebalanced` is set."""

    def __init__(self) -> None:
        self.reading, self.rebalanced = threading.Event(), threading.Event()

    def restore(self, record: Message) -> PendingMessage:
        """Return the record as a pending message."""
        self.reading.set()
        assert self.rebalanced.wait(120)
        return PendingMessage(record, record.offset)

    def observe(self, *, empty: bool) -> None:
        """Do nothing."""


class OtherMember:
    """Another member of a group, which reads partitions in a thread of its own."""

    def __init__(self, bootstrap_servers: str, group: str, topic: str) -> None:
        settings = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 200,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 2,
        }
        self._consumer = Consumer(settings)
        self._consumer.subscribe([topic], on_assign=self._assign)
        self.joined = threading.Event()
        self.partitions: set[int] = set()
        self.read: set[bytes] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def stop(self) -> None:
        """Leave the group."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.joined.set()
        self.partitions |= {p.partition for p in partitions}
        consumer.incremental_assign(partitions)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            record = self._consumer.poll(0.05)
            if record is None:
                continue
            error = record.error()
            assert error is None or error.code() == KafkaError._PARTITION_EOF, error
            if error is None:
                self.read.add(record.key() or b"")


async def test_messages_read_before_their_partition_is_revoked_are_left_to_the_next_member(mailing: Mailing) -> None:
    config = msgspec.convert(mailing.config(kafka={"session_timeout_seconds": 6}), Config, strict=False)
    mailing.create_topic(mailing.deferred_topic)
    published = [event() for _ in range(PARTITIONS)]
    for partition, one in enumerate(published):
        mailing.producer.produce(mailing.deferred_topic, b"{}", one["subject"].encode(), partition)
    assert mailing.producer.flush(60) == 0
    keys = {one["subject"].encode() for one in published}
    handled: set[bytes] = set()

    async def handle(pending: PendingMessage) -> None:
        handled.add(pending.message.key or b"")

    slow, sent_log = SlowReading(), SentLog(config.kafka, max_ids=100)
    consumer = OrdersConsumer(
        config, handle, slow, lambda _: "", AvailableMailServer(), sent_log, health=Health(), faults=None
    )
    await consumer.start()
    await until(slow.reading.is_set, what="the first message is being read")
    other = OtherMember(mailing.bootstrap_servers, config.kafka.deferred_group, mailing.deferred_topic)
    try:
        # The other member joins while the first message is being read. Its callback is called when the partitions are
        # about to be revoked; the client queues that event within milliseconds. If it does not, the messages may be
        # handled before their partition is revoked, and the rest of this test is true all the same.
        await until(other.joined.is_set, what="the other member has joined")
        await asyncio.sleep(1)
        slow.rebalanced.set()
        await until(lambda: len(other.partitions) == PARTITIONS // 2, what="partitions are shared")
        await until(lambda: handled | other.read == keys, what="all messages are read")
        await until(lambda: metrics.UNSETTLED._value.get() == 0, what="all messages are settled")
        assert handled.isdisjoint(other.read)
    finally:
        slow.rebalanced.set()
        other.stop()
        await consumer.stop(60)
        await sent_log.close()


async def test_a_member_that_has_to_rejoin_its_group_reads_on_and_counts_no_failure(mailing: Mailing) -> None:
    config = msgspec.convert(mailing.config(), Config, strict=False)
    topic = TopicDescriber(config.kafka)
    sent_log = SentLog(config.kafka, max_ids=1_000)
    memory = MemoryBudget(1_000, 1_000_000)
    handled: set[bytes] = set()

    async def handle(pending: PendingMessage) -> None:
        handled.add(pending.message.key or b"")

    dispatcher = Dispatcher(
        handle, lambda _: "", AvailableMailServer(), memory, max_concurrency=1, max_per_domain=1, max_waiting=1
    )
    assignments: list[int] = []
    member = GroupMember(
        config.kafka,
        dispatcher,
        memory,
        AvailableMailServer(),
        topic,
        StartOffsets(config.kafka, topic, sent_log, read_from_beginning=True),
        sent_log,
        to_pending=lambda message: PendingMessage(message, message.offset),
        rate_limiter=None,
        on_assignment=assignments.append,
        health=None,
        faults=None,
    )
    failures = FAILURES.labels(f"{config.kafka.topic}-consumer")._value.get()
    member.start()
    try:
        await until(lambda: assignments[-1:] == [PARTITIONS], what="the member has joined")
        known = len(assignments)
        member.rejoin("a test")
        await until(
            lambda: 0 in assignments[known:] and assignments[-1] == PARTITIONS, what="the member has left and rejoined"
        )
        published = event()
        mailing.publish(published)
        await until(lambda: handled == {published["subject"].encode()}, what="the message is read")
        assert FAILURES.labels(f"{config.kafka.topic}-consumer")._value.get() == failures
    finally:
        await member.stop(10)
        await dispatcher.close()
        await asyncio.to_thread(topic.close)
        await sent_log.close()
