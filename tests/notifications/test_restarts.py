"""No event is lost by crashes, rebalances, restarts of the broker or offsets out of range."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from market_dev.stack.kafka.broker import EmbeddedKafka

from market.kit.faults import Faults
from market.kit.process.lifecycle import Process
from market.notifications import metrics
from tests.notifications.conftest import PARTITIONS, Mailing, event, is_paused, message_ids
from tests.support.ports import free_port
from tests.support.servers import KafkaHandle, ServerHandle
from tests.support.waiting import until, wait_until


class HeldMails(Faults):
    """Holds mails before they are sent, until `released` is set."""

    def __init__(self) -> None:
        self.reached, self.released = asyncio.Event(), asyncio.Event()

    async def fire_if_armed(self, name: str) -> None:
        if name == "notifications.before-mail":
            self.reached.set()
            await self.released.wait()


@pytest.mark.parametrize(
    ("point", "mails"),
    [("notifications.before-mail", 1), ("notifications.after-mail", 2), ("notifications.before-commit", 2)],
)
async def test_the_mail_is_sent_after_a_crash_at_any_failure_point(mailing: Mailing, point: str, mails: int) -> None:
    first = mailing.start_process(testing=True, kafka={"session_timeout_seconds": mailing.short_session_seconds})
    await first.ready()
    first.arm(point)
    mine = event(email=mailing.mailbox)
    mailing.publish(mine)
    assert await first.exited() == -signal.SIGKILL
    assert sum(mailing.committed_offsets().values()) == 0
    second = mailing.start_process(testing=True)
    found = await mailing.wait_for_mails(mails)
    await mailing.wait_committed(1)
    assert await second.stop() == 0
    # Repeated only if it had been accepted before the crash, and then with the same Message-ID.
    assert [m["message_id"] for m in found] == message_ids([mine]) * mails


async def test_a_restart_while_a_mail_is_retried_does_not_repeat_the_mails_after_it(mailing: Mailing) -> None:
    full = f"full-{mailing.mailbox}"
    await mailing.inject_faults({"mode": "452", "stage": "rcpt", "to": full})
    stuck, behind = event(email=full), [event(email=mailing.mailbox) for _ in range(20)]
    # However long the other mails take, the first is not stored as a deferred mail.
    async with mailing.running(retry={"in_memory_seconds": 600}):
        mailing.publish(stuck, *behind, partition=1)
        await mailing.wait_for_mails(20)
    assert mailing.committed_offsets()[1] == 0
    await mailing.inject_faults()
    async with mailing.running():
        await mailing.wait_for_mails(1, full)
        await mailing.wait_committed(21)
        mailing.publish(event(email=full), partition=1)
        await mailing.wait_for_mails(2, full)
    assert len(await mailing.mails()) == 20
    assert mailing.committed_offsets()[1] == 22


async def test_a_second_member_takes_over_partitions_with_mails_in_flight_and_none_is_lost_or_repeated(
    mailing: Mailing,
) -> None:
    await mailing.inject_faults({"mode": "hang", "stage": "data", "times": 3, "seconds": 2})
    mine = [event(email=mailing.mailbox) for _ in range(120)]
    async with mailing.running():
        mailing.publish(*mine[:60])
        await mailing.wait_for_mails(5)
        other = mailing.start_process()
        await other.ready()
        mailing.publish(*mine[60:])
        await mailing.wait_for_mails(120)
        await mailing.wait_committed(120)
        assert await other.stop() == 0
        assert "partitions assigned" in other.log
    assert sorted(m["message_id"] for m in await mailing.mails()) == message_ids(mine)


async def test_partitions_that_are_revoked_and_assigned_again_are_consumed_again(mailing: Mailing) -> None:
    async with mailing.running():
        other = mailing.start_process()
        await other.ready()
        assert await other.stop() == 0
        await until(_has_all_partitions)
        mine = [event(email=mailing.mailbox) for _ in range(PARTITIONS)]
        for partition, one in enumerate(mine):
            mailing.publish(one, partition=partition)
        found = await mailing.wait_for_mails(PARTITIONS)
        await mailing.wait_committed(PARTITIONS)
    assert sorted(m["message_id"] for m in found) == message_ids(mine)


async def test_partitions_that_are_revoked_while_paused_are_consumed_when_they_are_assigned_again(
    mailing: Mailing,
) -> None:
    held = HeldMails()
    async with mailing.running(Process(faults=held), memory={"max_messages": 8}, kafka={"revoke_timeout_seconds": 0.2}):
        # These exhaust the memory budget, which pauses every partition.
        first = [event(email=mailing.mailbox) for _ in range(8)]
        mailing.publish(*first, partition=0)
        async with asyncio.timeout(60):
            await held.reached.wait()
        await until(lambda: is_paused("memory"))
        other = mailing.start_process(smtp={"port": 1})
        await other.ready()
        # Consumption resumes while the other member has some of the paused partitions.
        held.released.set()
        await until(lambda: not is_paused("memory"))
        assert await other.stop() == 0
        await until(_has_all_partitions)
        mine = [event(email=mailing.mailbox) for _ in range(PARTITIONS)]
        for partition, one in enumerate(mine):
            mailing.publish(one, partition=partition)
        await mailing.wait_committed(8 + PARTITIONS)
    assert sorted({m["message_id"] for m in await mailing.mails()}) == message_ids([*first, *mine])


async def test_a_process_suspended_for_longer_than_its_session_loses_its_partitions_and_rejoins(
    mailing: Mailing,
) -> None:
    process = mailing.start_process(kafka={"session_timeout_seconds": 6})
    await process.ready()
    before = [event(email=mailing.mailbox) for _ in range(5)]
    mailing.publish(*before)
    await mailing.wait_for_mails(5)
    await mailing.wait_committed(5)
    assert process.process is not None
    process.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(8)
    if mailing.broker == "apache":
        # The broker may have been suspended as well, with the machine.
        await until(lambda: _has_no_member(mailing))
    mine = [event(email=mailing.mailbox) for _ in range(5)]
    mailing.publish(*mine)
    process.process.send_signal(signal.SIGCONT)
    await mailing.wait_committed(10)
    assert await process.stop() == 0
    found = [m["message_id"] for m in await mailing.mails()]
    assert sorted(found[:5]) == message_ids(before)
    # A mail in flight when the loss was noticed may be repeated.
    assert sorted(set(found[5:])) == message_ids(mine)
    assert "partitions lost" in process.log


async def test_stopping_lets_mails_in_flight_finish_and_commits_them(mailing: Mailing) -> None:
    process = mailing.start_process(testing=True)
    await process.ready()
    process.arm("notifications.before-mail", "pause 5")
    mailing.publish(event(email=mailing.mailbox))
    await until(lambda: process.reached("notifications.before-mail"))
    assert await process.stop() == 0
    assert len(await mailing.mails()) == 1
    assert sum(mailing.committed_offsets().values()) == 1


async def test_a_committed_offset_out_of_range_is_reset_to_the_earliest_and_counted(
    mailing: Mailing,
) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker takes commits only from members of the group")
    mine = [event(email=mailing.mailbox) for _ in range(6)]
    async with mailing.running():
        pass
    mailing.publish(*mine, partition=3)
    _set_offset(mailing, 3, 99)
    before = metrics.OFFSET_RESETS._value.get()
    async with mailing.running():
        found = await mailing.wait_for_mails(6)
        # More than once if joining failed after the reset and was repeated.
        assert metrics.OFFSET_RESETS._value.get() > before
        await mailing.wait_committed(6)
    assert sorted(m["message_id"] for m in found) == message_ids(mine)


async def test_messages_deleted_while_paused_are_skipped_and_counted(mailing: Mailing) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker cannot delete messages")
    admin = AdminClient({"bootstrap.servers": mailing.bootstrap_servers})
    before = metrics.OFFSET_RESETS._value.get()
    # The mail server is unavailable, so consumption is paused at offset 1 while the messages after it are deleted.
    async with mailing.running(smtp={"port": 1}):
        mailing.publish(event(email=mailing.mailbox), partition=0)
        await until(is_paused)
        mailing.publish(*(event(email=mailing.mailbox) for _ in range(5)), partition=0)
        await asyncio.sleep(0.3)
    for future in admin.delete_records([TopicPartition(mailing.topic, 0, 4)]).values():
        await asyncio.to_thread(future.result, 60)
    async with mailing.running():
        await mailing.wait_for_mails(2)
        await mailing.wait_committed(6)
    assert metrics.OFFSET_RESETS._value.get() > before


async def test_a_position_that_gets_out_of_range_is_reset_to_the_earliest_and_counted(
    mailing: Mailing,
) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker cannot delete messages")
    admin = AdminClient({"bootstrap.servers": mailing.bootstrap_servers})
    before = metrics.OFFSET_RESETS._value.get()
    held = HeldMails()
    async with mailing.running(Process(faults=held), memory={"max_messages": 1}):
        # The first exhausts the memory budget, which pauses the partition; the next ones are deleted before they are
        # read.
        mailing.publish(event(email=mailing.mailbox), partition=0)
        async with asyncio.timeout(60):
            await held.reached.wait()
        mailing.publish(*(event(email=mailing.mailbox) for _ in range(5)), partition=0)
        for future in admin.delete_records([TopicPartition(mailing.topic, 0, 4)]).values():
            await asyncio.to_thread(future.result, 60)
        held.released.set()
        await mailing.wait_for_mails(3)
        await mailing.wait_committed(6)
    assert metrics.OFFSET_RESETS._value.get() > before


async def test_consumption_resumes_after_the_broker_was_killed_and_restarted(
    mailing: Mailing, kafka: KafkaHandle
) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker loses its messages when it stops")
    async with mailing.running() as process:

        async def no_dependency_is_unavailable() -> bool:
            return not await process.health.unavailable_dependencies()

        mailing.publish(event(email=mailing.mailbox))
        await mailing.wait_for_mails(1)
        await mailing.wait_committed(1)
        kafka.kill()
        await until(process.health.unavailable_dependencies)
        await asyncio.to_thread(kafka.restart, 120)
        mailing.publish(event(email=mailing.mailbox))
        await mailing.wait_for_mails(2)
        await mailing.wait_committed(2)
        await until(lambda: not process.health.unready_reasons())
        await until(no_dependency_is_unavailable, what="all dependencies are available")


async def test_an_embedded_broker_that_is_restarted_empty_is_consumed_from_its_beginning(
    mail: Any, catcher: Any, tmp_path: Path
) -> None:
    broker = ServerHandle(EmbeddedKafka(free_port(), tmp_path / "kafka", tmp_path))
    await asyncio.to_thread(broker.start)
    try:
        mailing = Mailing(f"127.0.0.1:{broker.port}", mail.smtp_port, catcher, tmp_path, "embedded", 6)
        mailing.create_topic()
        async with mailing.running(kafka={"session_timeout_seconds": 6}):
            mailing.publish(*(event(email=mailing.mailbox) for _ in range(3)), partition=0)
            await mailing.wait_for_mails(3)
            await mailing.wait_committed(3)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.restart)
            # Published before the consumer has rejoined its group, and at offsets below its last one.
            mailing.publish(*(event(email=mailing.mailbox) for _ in range(2)), partition=0)
            await mailing.wait_for_mails(5, seconds=120)
            await mailing.wait_committed(2)
    finally:
        await asyncio.to_thread(broker.stop)


def _has_all_partitions() -> bool:
    """Return whether this process was assigned every partition."""
    return bool(metrics.ASSIGNED._value.get() == PARTITIONS)


async def _has_no_member(mailing: Mailing) -> bool:
    admin = AdminClient({"bootstrap.servers": mailing.bootstrap_servers, "log_level": 2})
    return not (
        await asyncio.to_thread(admin.describe_consumer_groups([mailing.topic])[mailing.topic].result, 60)
    ).members


async def _is_ready(process: Process) -> bool:
    return not process.health.unready_reasons()


def _set_offset(mailing: Mailing, partition: int, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": mailing.bootstrap_servers, "group.id": mailing.topic, "log_level": 2})

    def committed() -> bool:
        try:
            consumer.commit(offsets=[TopicPartition(mailing.topic, partition, offset)], asynchronous=False)
        except KafkaException as e:
            # The member that left is still part of the group for a moment, and then only members may commit.
            if e.args[0].code() not in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS):
                raise
            return False
        return True

    try:
        wait_until(committed, what="the offset is committed")
    finally:
        consumer.close()
    assert mailing.committed_offsets()[partition] == offset
    assert len(mailing.committed_offsets()) == PARTITIONS
