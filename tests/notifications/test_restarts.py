"""Deaths, rebalances and offsets that are gone: nothing is skipped."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from market_dev.stack.kafka.broker import EmbeddedKafka

from market.kit.faults import Faults
from market.kit.process.lifecycle import Process
from market.notifications import metrics
from tests.notifications.conftest import PARTITIONS, Post, event, free_port, until
from tests.support.servers import ServerHandle as Handle


def _ids(events: list[dict]) -> list[str]:  # type: ignore[type-arg]
    return sorted(f"<{e['id']}@market.test>" for e in events)


class Held(Faults):
    """Lets no mail out until `free` is set."""

    def __init__(self) -> None:
        self.reached, self.free = asyncio.Event(), asyncio.Event()

    async def reach(self, name: str) -> None:
        if name == "notifications.before-mail":
            self.reached.set()
            await self.free.wait()


async def _paused() -> bool:
    return bool(metrics.PAUSED.labels("mail-server")._value.get() == 1)


@pytest.mark.parametrize(
    ("point", "mails"),
    [("notifications.before-mail", 1), ("notifications.after-mail", 2), ("notifications.before-commit", 2)],
)
async def test_a_death_at_any_point_is_followed_by_the_mail(post: Post, points: Path, point: str, mails: int) -> None:
    faults = {"testing": True, "faults": {"directory": str(points)}}
    first = post.spawn(**faults, kafka={"session_timeout_seconds": post.short_session})
    await post.ready(first)
    (points / point).write_text("crash")
    mine = event(email=post.mailbox)
    post.publish(mine)
    assert await asyncio.to_thread(first.wait, 60) == -signal.SIGKILL
    assert sum(post.committed().values()) == 0
    second = post.spawn(**faults)
    found = await post.count(mails)
    await post.all_committed(1)
    await post.end(second)
    # Repeated only where it had been accepted before the death, and then to be known as the same.
    assert [m["message_id"] for m in found] == _ids([mine]) * mails


async def test_a_restart_during_a_long_retry_does_not_repeat_the_mails_behind_it(post: Post) -> None:
    full = f"full-{post.mailbox}"
    await post.misbehave({"mode": "452", "stage": "rcpt", "to": full})
    stuck, behind = event(email=full), [event(email=post.mailbox) for _ in range(20)]
    async with post.reading():
        post.publish(stuck, *behind, partition=1)
        await post.count(20)
    assert post.committed()[1] == 0
    await post.misbehave()
    async with post.reading():
        await post.count(1, full)
        await post.all_committed(21)
        post.publish(event(email=full), partition=1)
        await post.count(2, full)
    assert len(await post.mails()) == 20
    assert post.committed()[1] == 22


async def test_a_second_consumer_takes_over_partitions_with_mails_in_flight_and_nothing_is_lost_or_repeated(
    post: Post,
) -> None:
    await post.misbehave({"mode": "hang", "stage": "data", "times": 3, "seconds": 2})
    mine = [event(email=post.mailbox) for _ in range(120)]
    async with post.reading():
        post.publish(*mine[:60])
        await post.count(5)
        other = post.spawn()
        await post.ready(other)
        post.publish(*mine[60:])
        await post.count(120)
        await post.all_committed(120)
        await post.end(other)
        assert "reading" in other.log_file.read_text()  # type: ignore[attr-defined]
    assert sorted(m["message_id"] for m in await post.mails()) == _ids(mine)


async def test_partitions_that_are_revoked_and_assigned_again_are_read_again(post: Post) -> None:
    async with post.reading():
        other = post.spawn()
        await post.ready(other)
        await post.end(other)
        await until(lambda: _has_all_partitions(post))
        mine = [event(email=post.mailbox) for _ in range(PARTITIONS)]
        for partition, one in enumerate(mine):
            post.publish(one, partition=partition)
        found = await post.count(PARTITIONS)
        await post.all_committed(PARTITIONS)
    assert sorted(m["message_id"] for m in found) == _ids(mine)


async def test_partitions_that_are_revoked_while_paused_are_read_when_they_are_assigned_again(post: Post) -> None:
    held = Held()
    async with post.reading(Process(faults=held), memory={"messages": 8}, kafka={"revoke_seconds": 0.2}):
        # These fill the memory, which pauses every partition.
        first = [event(email=post.mailbox) for _ in range(8)]
        post.publish(*first, partition=0)
        async with asyncio.timeout(60):
            await held.reached.wait()
        await until(_is_full)
        other = post.spawn(smtp={"port": 1})
        await post.ready(other)
        # Reading goes on while the other member has some of the paused partitions.
        held.free.set()
        await until(_has_memory)
        await post.end(other)
        await until(lambda: _has_all_partitions(post))
        mine = [event(email=post.mailbox) for _ in range(PARTITIONS)]
        for partition, one in enumerate(mine):
            post.publish(one, partition=partition)
        await post.all_committed(8 + PARTITIONS)
    assert sorted({m["message_id"] for m in await post.mails()}) == _ids([*first, *mine])


async def test_a_reader_that_was_stopped_longer_than_its_session_lost_its_partitions_and_reads_on(post: Post) -> None:
    process = post.spawn(kafka={"session_timeout_seconds": 6})
    await post.ready(process)
    before = [event(email=post.mailbox) for _ in range(5)]
    post.publish(*before)
    await post.count(5)
    await post.all_committed(5)
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(8)
    if post.kind == "apache":
        # It, too, may have stood still.
        await until(lambda: _has_no_member(post))
    mine = [event(email=post.mailbox) for _ in range(5)]
    post.publish(*mine)
    process.send_signal(signal.SIGCONT)
    await post.all_committed(10)
    await post.end(process)
    found = [m["message_id"] for m in await post.mails()]
    assert sorted(found[:5]) == _ids(before)
    # One that was under way when it noticed the loss may come twice.
    assert sorted(set(found[5:])) == _ids(mine)
    assert "lost the partitions" in process.log_file.read_text()  # type: ignore[attr-defined]


async def test_a_stop_lets_mails_under_way_finish_and_commits_them(post: Post, points: Path) -> None:
    process = post.spawn(testing=True, faults={"directory": str(points)})
    await post.ready(process)
    (points / "notifications.before-mail").write_text("pause 5")
    post.publish(event(email=post.mailbox))

    async def under_way() -> bool:
        return (points / "notifications.before-mail.done").exists()

    await until(under_way)
    await post.end(process)
    assert len(await post.mails()) == 1
    assert sum(post.committed().values()) == 1


async def test_a_committed_offset_that_the_topic_no_longer_has_goes_on_from_the_earliest_with_an_alarm(
    post: Post,
) -> None:
    if post.kind != "apache":
        pytest.skip("the embedded broker lets only members of the group commit")
    mine = [event(email=post.mailbox) for _ in range(6)]
    async with post.reading():
        pass
    post.publish(*mine, partition=3)
    _set_offset(post, 3, 99)
    before = metrics.RESETS._value.get()
    async with post.reading():
        found = await post.count(6)
        # Once more for each attempt at joining that failed behind it.
        assert metrics.RESETS._value.get() > before
        await post.all_committed(6)
    assert sorted(m["message_id"] for m in found) == _ids(mine)


async def test_messages_deleted_under_a_paused_reader_are_passed_with_an_alarm(post: Post, kafka: object) -> None:
    if post.kind != "apache":
        pytest.skip("the embedded broker deletes nothing")
    admin = AdminClient({"bootstrap.servers": post.bootstrap_servers})
    before = metrics.RESETS._value.get()
    # The mail server is away, so the reader is paused at offset 1 while what follows goes away.
    async with post.reading(smtp={"port": 1}) as _:
        post.publish(event(email=post.mailbox), partition=0)
        await until(_paused)
        post.publish(*(event(email=post.mailbox) for _ in range(5)), partition=0)
        await asyncio.sleep(0.3)
    for future in admin.delete_records([TopicPartition(post.topic, 0, 4)]).values():
        await asyncio.to_thread(future.result, 60)
    async with post.reading():
        await post.count(2)
        await post.all_committed(6)
    assert metrics.RESETS._value.get() > before


async def test_an_offset_that_goes_out_of_range_while_reading_goes_on_from_the_earliest(
    post: Post, kafka: object
) -> None:
    if post.kind != "apache":
        pytest.skip("the embedded broker deletes nothing")
    admin = AdminClient({"bootstrap.servers": post.bootstrap_servers})
    before = metrics.RESETS._value.get()
    held = Held()
    async with post.reading(Process(faults=held), memory={"messages": 1}):
        # The first fills the memory and pauses the partition; the next ones go before they are read.
        post.publish(event(email=post.mailbox), partition=0)
        async with asyncio.timeout(60):
            await held.reached.wait()
        post.publish(*(event(email=post.mailbox) for _ in range(5)), partition=0)
        for future in admin.delete_records([TopicPartition(post.topic, 0, 4)]).values():
            await asyncio.to_thread(future.result, 60)
        held.free.set()
        await post.count(3)
        await post.all_committed(6)
    assert metrics.RESETS._value.get() > before


async def test_a_broker_that_dies_and_comes_back_is_gone_on_with(post: Post, kafka: object) -> None:
    if post.kind != "apache":
        pytest.skip("the embedded broker forgets everything when it stops")
    async with post.reading() as process:
        post.publish(event(email=post.mailbox))
        await post.count(1)
        await post.all_committed(1)
        kafka.kill()  # type: ignore[attr-defined]

        async def unready() -> bool:
            return bool(await process.health.not_ready())

        await until(unready)
        await asyncio.to_thread(kafka.restart, 120)  # type: ignore[attr-defined]
        post.publish(event(email=post.mailbox))
        await post.count(2)
        await post.all_committed(2)
        assert await until(lambda: _ready(process))


async def test_an_embedded_broker_that_comes_back_empty_is_read_from_its_beginning(
    mail: Any, sink: Any, tmp_path: Path
) -> None:
    broker = Handle(EmbeddedKafka(free_port(), tmp_path / "kafka", tmp_path))
    await asyncio.to_thread(broker.start)
    try:
        post = Post(f"127.0.0.1:{broker.port}", mail.smtp_port, sink, tmp_path, "embedded", 6)
        post.make_topic()
        async with post.reading(kafka={"session_timeout_seconds": 6}):
            post.publish(*(event(email=post.mailbox) for _ in range(3)), partition=0)
            await post.count(3)
            await post.all_committed(3)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.restart)
            # Published before the consumer is back in its group, and before its offset.
            post.publish(*(event(email=post.mailbox) for _ in range(2)), partition=0)
            await post.count(5, seconds=120)
            await post.all_committed(2)
    finally:
        await asyncio.to_thread(broker.stop)


async def _has_all_partitions(post: Post) -> bool:
    """Return whether this process was assigned every partition."""
    return {int(sample.labels["partition"]) for sample in metrics.LAG.collect()[0].samples} == set(range(PARTITIONS))


async def _has_memory() -> bool:
    return bool(metrics.PAUSED.labels("memory")._value.get() == 0)


async def _is_full() -> bool:
    return not await _has_memory()


async def _has_no_member(post: Post) -> bool:
    admin = AdminClient({"bootstrap.servers": post.bootstrap_servers, "log_level": 2})
    return not (await asyncio.to_thread(admin.describe_consumer_groups([post.topic])[post.topic].result, 60)).members


async def _ready(process: object) -> bool:
    return not await process.health.not_ready()  # type: ignore[attr-defined]


def _set_offset(post: Post, partition: int, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": post.bootstrap_servers, "group.id": post.topic, "log_level": 2})
    consumer.commit(offsets=[TopicPartition(post.topic, partition, offset)], asynchronous=False)
    consumer.close()
    assert post.committed()[partition] == offset
    assert len(post.committed()) == PARTITIONS
