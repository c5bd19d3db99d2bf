"""Where consumption starts when the group's offsets, partitions or the topic are not what they were."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from market.kit.process.health import Health
from market.notifications import metrics
from market.notifications.config import Config
from market.notifications.consumer.start import StartOffsets
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.sent_log.log import SentLog
from tests.notifications.conftest import PARTITIONS, Mailing, event, message_ids
from tests.support.waiting import until


@pytest.fixture
def admin(mailing: Mailing) -> AdminClient:
    """An admin client of the real broker; the embedded one has no such requests."""
    if mailing.broker != "apache":
        pytest.skip("the embedded broker has no requests for groups, partitions and topics")
    return AdminClient({"bootstrap.servers": mailing.bootstrap_servers, "log_level": 2})


def _events(mailing: Mailing, number: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**event(email=mailing.mailbox), **changes} for _ in range(number)]


def _starts(*reasons: str) -> float:
    """Return how many partitions this process has started without a usable offset, for the reasons."""
    # The broker also deletes the offsets of a deleted topic, sooner or later.
    reasons = reasons or ("no-offset", "new-topic")
    return sum(float(metrics.STARTS_WITHOUT_OFFSET.labels(reason)._value.get()) for reason in reasons)


async def _delete_group(mailing: Mailing, admin: AdminClient) -> None:
    async def deleted() -> bool:
        try:
            await asyncio.to_thread(admin.delete_consumer_groups([mailing.topic])[mailing.topic].result, 60)
        except KafkaException:
            # The member that left is still part of it for a moment.
            return False
        return True

    await until(deleted, what="the group is deleted")


async def _recreate_topic(mailing: Mailing, admin: AdminClient) -> None:
    await asyncio.to_thread(admin.delete_topics([mailing.topic])[mailing.topic].result, 60)
    await until(lambda: admin.list_topics(timeout=60).topics.get(mailing.topic) is None, what="the topic is deleted")
    await asyncio.to_thread(mailing.create_topic)


async def _is_mailed(mailing: Mailing, expected: list[dict[str, Any]]) -> None:
    """Wait for the events' mails, and assert that there is no other and none twice."""
    await mailing.wait_for_mails(len(expected))
    await asyncio.sleep(0.5)
    assert sorted(m["message_id"] for m in await mailing.mails()) == message_ids(expected)


async def test_events_published_after_the_group_lost_its_offsets_are_mailed_and_none_twice(
    mailing: Mailing, admin: AdminClient
) -> None:
    before_first_start = _events(mailing, 4)
    mailing.publish(*before_first_start)
    # So that the first start is clearly later than these events.
    mailed = _events(mailing, 10, time="2026-01-01T00:00:00Z")
    first_starts, starts = _starts("first-start"), _starts("no-offset")
    async with mailing.running():
        mailing.publish(*mailed)
        await mailing.wait_for_mails(10)
    # More if joining the group failed and was repeated, here and in the other tests.
    assert _starts("first-start") >= first_starts + PARTITIONS
    assert _starts("no-offset") == starts
    await _delete_group(mailing, admin)
    missed = _events(mailing, 50)
    mailing.publish(*missed)
    async with mailing.running(kafka={"first_start_tolerance_seconds": 0}):
        await _is_mailed(mailing, [*mailed, *missed])
    assert _starts("no-offset") >= starts + PARTITIONS


@pytest.mark.usefixtures("admin")
async def test_a_reset_in_the_process_that_made_the_first_start_skips_the_events_before_it(mailing: Mailing) -> None:
    hour_ago_ms = int(time.time() * 1000) - 3_600_000
    for _ in range(3):
        mailing.producer.produce(mailing.topic, b"{}", partition=0, timestamp=hour_ago_ms)
    assert mailing.producer.flush(60) == 0
    kafka = msgspec.convert(mailing.config(), Config, strict=False).kafka
    topic, sent_log = TopicDescriber(kafka), SentLog(kafka, max_ids=10)
    consumer = Consumer({"bootstrap.servers": mailing.bootstrap_servers, "group.id": mailing.topic, "log_level": 2})
    starts = StartOffsets(kafka, topic, sent_log)

    async def find_offset() -> int:
        topic_id = await asyncio.to_thread(topic.topic_id)
        assert topic_id
        return await asyncio.to_thread(starts.offset_after_first_start, consumer, 0, topic_id)

    try:
        await Health().wait_for("sent log", starts.prepare)
        for _ in range(2):
            mailing.producer.produce(mailing.topic, b"{}", partition=0)
        assert mailing.producer.flush(60) == 0
        assert await Health().wait_for("offset", find_offset) == 3
    finally:
        consumer.close()
        topic.close()
        await sent_log.close()


async def test_events_in_partitions_that_were_added_while_the_service_was_down_are_mailed(
    mailing: Mailing, admin: AdminClient
) -> None:
    async with mailing.running():
        pass
    starts = _starts("no-offset")
    await asyncio.to_thread(
        admin.create_partitions([NewPartitions(mailing.topic, PARTITIONS + 2)])[mailing.topic].result, 60
    )
    await until(lambda: len(mailing.producer.list_topics(mailing.topic).topics[mailing.topic].partitions) == 6)
    missed = _events(mailing, 60)
    for n, one in enumerate(missed):
        mailing.publish(one, partition=n % (PARTITIONS + 2))
    async with mailing.running():
        await _is_mailed(mailing, missed)
    assert _starts("no-offset") >= starts + 2


@pytest.mark.parametrize("while_down", [True, False])
async def test_a_topic_that_was_deleted_and_created_again_is_mailed_from_its_first_event(
    mailing: Mailing, admin: AdminClient, while_down: bool
) -> None:
    old, new = _events(mailing, 20), _events(mailing, 80)
    starts = _starts()

    async def recreate() -> None:
        await _recreate_topic(mailing, admin)
        for n, one in enumerate(new):
            mailing.publish(one, partition=n % PARTITIONS)

    async with mailing.running():
        mailing.publish(*old)
        await mailing.wait_for_mails(20)
        await mailing.wait_committed(20)
        if not while_down:
            await recreate()
            await _is_mailed(mailing, [*old, *new])
    if while_down:
        await recreate()
        async with mailing.running():
            await _is_mailed(mailing, [*old, *new])
    assert _starts() >= starts + PARTITIONS


async def test_events_that_are_published_again_in_a_new_topic_are_not_mailed_again(
    mailing: Mailing, admin: AdminClient
) -> None:
    # As `reconcile --topic --repair` publishes them: with their ids and their time.
    mailed = _events(mailing, 30, time="2026-01-01T00:00:00Z")
    never_mailed = _events(mailing, 5, time="2026-01-01T00:00:00Z")
    async with mailing.running():
        mailing.publish(*mailed)
        await mailing.wait_for_mails(30)
    await _recreate_topic(mailing, admin)
    before = metrics.SKIPPED_EVENTS.labels("duplicate")._value.get()
    async with mailing.running():
        mailing.publish(*mailed, *never_mailed)
        await mailing.wait_committed(35)
        await _is_mailed(mailing, [*mailed, *never_mailed])
    assert metrics.SKIPPED_EVENTS.labels("duplicate")._value.get() >= before + 30


async def test_mails_are_sent_although_the_sent_log_can_be_neither_read_nor_written(
    mailing: Mailing, admin: AdminClient
) -> None:
    failures = metrics.SENT_LOG_FAILURES._value.get()
    async with mailing.running():
        await asyncio.to_thread(admin.delete_topics([mailing.sent_topic])[mailing.sent_topic].result, 60)
        events = _events(mailing, 3, time="2026-01-01T00:00:00Z")
        mailing.publish(*events)
        await _is_mailed(mailing, events)
        await mailing.wait_committed(3)
        # A broker that still knew the topic when it was read fails the write, after the write's deadline.
        await until(lambda: metrics.SENT_LOG_FAILURES._value.get() > failures, what="a failure of the sent log")
