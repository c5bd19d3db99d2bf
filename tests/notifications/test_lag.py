"""The lag of every partition, from the broker's offsets, and the alarm for partitions that are not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from market.kit.process.health import Health
from market.notifications import metrics
from market.notifications.app import Clients
from market.notifications.consumer.lag import LagObserver
from market.notifications.consumer.topic import PartitionOffsets
from market.notifications.domain import Mail
from tests.notifications.conftest import PARTITIONS, Mailing, event, is_paused
from tests.support.waiting import until


def _lag() -> dict[int, float]:
    """Return the lag of each partition as this process reports it."""
    return {int(sample.labels["partition"]): sample.value for sample in metrics.LAG.collect()[0].samples}


def test_the_lag_is_what_is_not_committed() -> None:
    assert PartitionOffsets(low=2, high=9, committed=5).lag == 4
    assert PartitionOffsets(low=2, high=9, committed=None).lag == 7
    # Messages that the topic has no more are not counted, nor is an offset of a topic that was created again.
    assert PartitionOffsets(low=4, high=9, committed=1).lag == 5
    assert PartitionOffsets(low=0, high=3, committed=40).lag == 0


async def test_the_lag_of_partitions_that_are_paused_or_assigned_to_another_member_is_reported(
    mailing: Mailing,
) -> None:
    unavailable = {"port": 1}
    async with mailing.running(smtp=unavailable):
        other = mailing.start_process(smtp=unavailable)
        await other.ready()
        await until(lambda: metrics.ASSIGNED._value.get() < PARTITIONS)
        for partition in range(PARTITIONS):
            mailing.publish(event(email=mailing.mailbox), partition=partition)
        await until(is_paused)
        # Published while consumption is paused, so that nobody reads them.
        for partition in range(PARTITIONS):
            mailing.publish(*(event(email=mailing.mailbox) for _ in range(partition)), partition=partition)
        expected = {partition: partition + 1.0 for partition in range(PARTITIONS)}
        await until(lambda: _lag() == expected, what=lambda: f"{_lag()} is {expected}")


async def test_an_assigned_partition_that_is_not_read_is_reported_and_ends_readiness(mailing: Mailing) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker has no transactions that withhold messages")
    transactional = Producer(
        {"bootstrap.servers": mailing.bootstrap_servers, "transactional.id": uuid4().hex, "log_level": 2}
    )
    transactional.init_transactions(60)
    async with mailing.running(kafka={"stalled_after_seconds": 1}) as process:
        mailing.publish(event(email=mailing.mailbox), partition=2)
        await mailing.wait_for_mails(1)
        transactional.begin_transaction()
        transactional.produce(mailing.topic, b"unfinished", partition=2)
        transactional.flush(60)
        # Withheld, because it is behind the open transaction.
        mailing.publish(event(email=mailing.mailbox), partition=2)
        reasons = {"consumption": "partition 2 has made no progress for 1 s at offset 1"}
        await until(lambda: process.health.unready_reasons() == reasons, what=lambda: process.health.unready_reasons())
        assert metrics.STALLED.labels("2")._value.get() == 1
        await until(lambda: _lag() == {0: 0, 1: 0, 2: 2, 3: 0}, what=lambda: str(_lag()))
        transactional.abort_transaction(60)
        await mailing.wait_for_mails(2)

        await until(lambda: not process.health.unready_reasons())
        # The record that ended the transaction is not a message, and is read and committed all the same.
        await until(lambda: _lag() == dict.fromkeys(range(PARTITIONS), 0.0), what=lambda: str(_lag()))


class HangingMailServer:
    """Replies to no mail until `released` is set."""

    available = True

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def send(self, _: Mail) -> None:
        await self.released.wait()

    async def wait_until_available(self) -> None:
        """Return at once."""

    async def close(self) -> None:
        """There is no connection."""


async def test_messages_that_are_read_but_not_processed_end_readiness(mailing: Mailing) -> None:
    mail_server = HangingMailServer()
    async with mailing.running(
        clients=Clients(mail_server), kafka={"stalled_after_seconds": 1}, smtp={"timeout_seconds": 0.1}
    ) as process:
        assert process.health.unready_reasons() == {}
        mailing.publish(event(email=mailing.mailbox))
        await until(lambda: list(process.health.unready_reasons()) == ["mailing"])
        assert metrics.PROCESSING_STALLED._value.get() == 1
        mail_server.released.set()

        await until(lambda: not process.health.unready_reasons())
        assert metrics.PROCESSING_STALLED._value.get() == 0
        await mailing.wait_committed(1)


async def test_a_partition_is_stalled_only_if_it_has_unread_messages_and_none_is_read_for_too_long() -> None:
    health, now, reading = Health(), [0.0], {0: 5}
    health.started = True
    high = {0: 5}

    def offsets() -> dict[int, PartitionOffsets]:
        return {partition: PartitionOffsets(0, end, 0) for partition, end in high.items()}

    observer = LagObserver(offsets, lambda: reading, health, stalled_after_seconds=60, clock=lambda: now[0])

    async def is_ready(at: float, change: Callable[[], None] = lambda: None) -> bool:
        now[0] = at
        change()
        await observer.observe()
        return not health.unready_reasons()

    assert await is_ready(1000)
    assert await is_ready(2000, lambda: high.update({0: 9}))
    assert await is_ready(2050)
    assert await is_ready(2059, lambda: reading.update({0: 6}))
    assert await is_ready(2118)
    assert not await is_ready(2119)
    assert not await is_ready(2200)
    assert await is_ready(2201, lambda: reading.update({0: 9}))
    high[0] = 12
    assert await is_ready(2300)
    # Paused, or assigned to another member.
    assert await is_ready(2500, reading.clear)
    assert await is_ready(2600, lambda: reading.update({0: 9}))


async def test_a_stalled_partition_of_deferred_mails_is_reported_without_affecting_readiness() -> None:
    now = [0.0]
    observer = LagObserver(
        lambda: {0: PartitionOffsets(0, 9, 0)},
        lambda: {0: 5},
        None,
        stalled_after_seconds=60,
        lag_metric=metrics.DEFERRED,
        stalled_metric=metrics.DEFERRED_STALLED,
        clock=lambda: now[0],
    )
    await observer.observe()
    now[0] = 60.0
    await observer.observe()
    assert metrics.DEFERRED_STALLED.labels("0")._value.get() == 1
