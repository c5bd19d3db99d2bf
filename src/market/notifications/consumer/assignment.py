"""The partitions that are assigned to this process, and what happens when they are assigned, revoked or lost.

All methods must be called in the consumer's thread, except for those that are documented as thread-safe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from confluent_kafka import Consumer, TopicPartition

from market.kit.process import logs
from market.notifications import config
from market.notifications.consumer.committer import OffsetCommitter
from market.notifications.consumer.dispatcher import Dispatcher
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.offsets import OffsetTracker
from market.notifications.consumer.start import SentLogForConsumer, StartOffsets, count_reset
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import PendingMessage

T = TypeVar("T")
log = logs.get_logger("consumer")

_CALL_TIMEOUT_SECONDS = 5.0
# A parked message pauses its partition for at least this long. Pausing is expensive, because librdkafka drops the
# partition's prefetched messages, and fetches them again later.
_MIN_PARK_SECONDS = 0.5


class ParkedMessage(NamedTuple):
    """A message that was read, but may not be processed before `until`, a time of time.monotonic()."""

    tracker: OffsetTracker
    pending: PendingMessage
    until: float


class EventLoopRunner:
    """Lets the consumer's thread run coroutines in the event loop. Must be constructed inside the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def run(self, work: Awaitable[T], timeout_seconds: float) -> T:
        """Run a coroutine in the event loop, and block until it has finished. Raises TimeoutError."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(timeout_seconds)


class Assignment:
    """The offset trackers of the assigned partitions, and which partitions are paused.

    on_changed: called with the number of assigned partitions whenever it may have changed
    on_assigned: called after partitions (possibly none) were assigned
    on_lost: called when partitions were lost, before their trackers are removed
    """

    def __init__(
        self,
        kafka: config.Kafka,
        runner: EventLoopRunner,
        dispatcher: Dispatcher,
        committer: OffsetCommitter,
        topic: TopicDescriber,
        starts: StartOffsets,
        sent_log: SentLogForConsumer,
        memory: MemoryBudget,
        *,
        on_changed: Callable[[int], None],
        on_assigned: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._config = kafka
        self._runner = runner
        self._dispatcher = dispatcher
        self._committer = committer
        self._topic = topic
        self._starts = starts
        self._sent_log = sent_log
        self._memory = memory
        self._on_changed = on_changed
        self._on_assigned = on_assigned
        self._on_lost = on_lost
        self.trackers: dict[int, OffsetTracker] = {}
        self.paused: set[int] = set()
        # By partition. A partition with a parked message is paused.
        self._parked: dict[int, ParkedMessage] = {}
        # How long `revoke` waits for messages in flight.
        self.revoke_seconds = kafka.revoke_timeout_seconds

    def positions(self) -> dict[int, int]:
        """Return the next offset to read, by partition, for the partitions that are not paused. Thread-safe."""
        trackers = list(self.trackers.items())
        return {partition: tracker.next_to_read for partition, tracker in trackers if partition not in self.paused}

    def topic_ids(self) -> set[str]:
        """Return the topic ids that the assigned partitions had when they were assigned. Thread-safe."""
        return {tracker.topic_id for tracker in list(self.trackers.values())} - {""}

    def pause_only(self, consumer: Consumer, partitions: set[int]) -> None:
        """Pause these partitions, and resume all others."""
        if to_pause := partitions - self.paused:
            consumer.pause(self._topic_partitions(to_pause))
        if to_resume := (self.paused - partitions) & set(self.trackers):
            consumer.resume(self._topic_partitions(to_resume))
        self.paused = set(partitions)

    def park(self, consumer: Consumer, tracker: OffsetTracker, pending: PendingMessage, seconds: float) -> None:
        """Keep a message that may not be processed yet, and pause its partition."""
        until = time.monotonic() + max(_MIN_PARK_SECONDS, seconds)
        self._parked[tracker.partition] = ParkedMessage(tracker, pending, until)
        if tracker.partition not in self.paused:
            consumer.pause(self._topic_partitions({tracker.partition}))
            self.paused.add(tracker.partition)

    def take_due(self) -> list[tuple[OffsetTracker, PendingMessage]]:
        """Return the parked messages that are due now. Their partitions are resumed by the next `pause_only`."""
        now = time.monotonic()
        due = [parked for parked in self._parked.values() if parked.until <= now]
        for parked in due:
            del self._parked[parked.tracker.partition]
        return [(parked.tracker, parked.pending) for parked in due]

    def is_assigned(self, tracker: OffsetTracker) -> bool:
        """Return whether the tracker belongs to an assigned partition, and not to an earlier assignment."""
        return self.trackers.get(tracker.partition) is tracker

    @property
    def parked_partitions(self) -> set[int]:
        return set(self._parked)

    def assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit the offsets to start from, and start to read the partitions. Raises KafkaException."""
        if partitions:
            # The previous owner may have mailed events that the cache does not contain.
            self._runner.loop.call_soon_threadsafe(self._sent_log.invalidate_sent_ids)
        topic_id = self._topic.topic_id() if partitions else ""
        starts = self._starts.commit_start_offsets(consumer, partitions, topic_id) if partitions else []
        for start in starts:
            self.trackers[start.partition] = OffsetTracker(start.partition, start.offset, start.metadata, topic_id)
        self._assign(consumer, starts)
        self._on_changed(len(self.trackers))
        log.info(
            "partitions assigned",
            topic=self._config.topic,
            partitions=sorted(p.partition for p in partitions),
            all_partitions=sorted(self.trackers),
        )
        self._on_assigned()

    def revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Wait for messages in flight, commit, and stop reading the partitions."""
        revoked = [p.partition for p in partitions if p.partition in self.trackers]
        trackers = [self.trackers[partition] for partition in revoked]
        if trackers:
            # No message is read meanwhile, because this thread is the one that polls.
            self._drop_queued(trackers, self.revoke_seconds)
            self._committer.commit(consumer, trackers, wait=True)
            self.remove(revoked)
        consumer.incremental_unassign(partitions)
        if revoked:
            log.info("partitions revoked", topic=self._config.topic, partitions=sorted(revoked))

    def lose(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Stop reading partitions that were lost. Another member may already process the messages in flight here."""
        lost = [p.partition for p in partitions]
        log.warning(
            "partitions lost, mails in flight may be repeated", topic=self._config.topic, partitions=sorted(lost)
        )
        self._on_lost()
        self.remove(lost, drop_messages=True)
        consumer.incremental_unassign(partitions)

    def remove(self, partitions: list[int], *, drop_messages: bool = False) -> None:
        """Remove the trackers of the partitions.

        drop_messages: also drop the partitions' messages, without waiting for those in flight
        """
        trackers = [self.trackers.pop(partition) for partition in partitions if partition in self.trackers]
        for tracker in trackers:
            self._starts.record_position(tracker)
            self.paused.discard(tracker.partition)
            self._drop_parked(tracker.partition)
        self._on_changed(len(self.trackers))
        if trackers and drop_messages:
            self._drop_queued(trackers, 0)

    def reset(self, consumer: Consumer, partition: int, reason: str) -> None:
        """Read a partition from the first message after the group's first start, because its offset is out of range.

        Raises KafkaException.
        """
        old = self.trackers.get(partition)
        if old is None:
            return
        count_reset(partition, reason)
        offset = self._starts.offset_after_first_start(consumer, partition, old.topic_id)
        self._drop_parked(partition)
        self._drop_queued([old], self._config.revoke_timeout_seconds)
        consumer.incremental_unassign(self._topic_partitions({partition}))
        self.trackers[partition] = OffsetTracker(partition, offset, topic_id=old.topic_id)
        self.trackers[partition].mark_uncommitted()
        self._assign(consumer, [TopicPartition(self._config.topic, partition, offset)])

    def _assign(self, consumer: Consumer, starts: list[TopicPartition]) -> None:
        """Start reading the partitions at the given offsets."""
        partitions = [TopicPartition(start.topic, start.partition, start.offset) for start in starts]
        # A partition that was paused in an earlier assignment would otherwise still be paused in librdkafka.
        consumer.resume(partitions)
        consumer.incremental_assign(partitions)
        self.paused -= {start.partition for start in starts}

    def _drop_parked(self, partition: int) -> None:
        if parked := self._parked.pop(partition, None):
            self._memory.release(parked.pending.message.size)

    def _drop_queued(self, trackers: list[OffsetTracker], seconds: float) -> None:
        """Drop the partitions' queued messages, and wait up to `seconds` for those in flight."""
        self._runner.run(self._dispatcher.revoke(trackers, seconds), seconds + _CALL_TIMEOUT_SECONDS)

    def _topic_partitions(self, partitions: set[int]) -> list[TopicPartition]:
        return [TopicPartition(self._config.topic, partition) for partition in partitions]
