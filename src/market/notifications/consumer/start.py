"""Determines the offsets at which consumption of assigned partitions starts, and commits them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from market.kit.process import logs
from market.notifications import config, metrics
from market.notifications.consumer.offsets import (
    OffsetTracker,
    PartitionState,
    Position,
    StartPosition,
    encode_metadata,
    start_position,
)
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import FirstStart

log = logs.get_logger("consumer")

_CALL_TIMEOUT_SECONDS = 5.0


class SentLogForConsumer(Protocol):
    """What the consumer needs from the sent log. In production: sent_log.log.SentLog."""

    async def read_first_start(self) -> FirstStart:
        """Return what is recorded about the first start. If it raises an exception, the call is retried."""

    async def record_start(self, *, first: bool) -> None:
        """Record a start of the group. If it raises an exception, the call is retried."""

    def invalidate_sent_ids(self) -> None:
        """Drop the cached ids of mailed events, so that the next lookup reads the log again."""


class StartOffsets:
    """Determines where consumption starts, as `offsets.start_position` says, and commits these offsets.

    read_from_beginning: True for the topic of deferred mails. Then a partition without a committed offset is read from
        its beginning, and `prepare` is not called
    """

    def __init__(
        self,
        kafka: config.Kafka,
        topic: TopicDescriber,
        sent_log: SentLogForConsumer,
        *,
        read_from_beginning: bool = False,
    ) -> None:
        self._config = kafka
        self._sent_log = sent_log
        self._topic = topic
        self._read_from_beginning = read_from_beginning
        # True if the topic did not exist when this process started. Then all of its events are mailed.
        self.topic_is_new = False
        # The partitions that existed at the group's first start, and have not been assigned since.
        self._never_assigned: set[int] = set()
        self._first_started_ms: int | None = None
        # This process's last position in each partition that it owned before.
        self._last_positions: dict[int, Position] = {}

    async def prepare(self) -> None:
        """Determine whether this is the group's first start, and record it. Raises KafkaException or TimeoutError."""
        recorded = await self._sent_log.read_first_start()
        self._first_started_ms = recorded.started_ms
        if not recorded.log_is_empty:
            return
        offsets = await asyncio.to_thread(self._topic.offsets)
        has_offsets = any(partition.committed is not None for partition in offsets.values())
        await self._sent_log.record_start(first=not has_offsets)
        if not has_offsets:
            self._never_assigned = set(offsets)
        # Read it again, because the broker sets the time, and another process may have written the first record.
        self._first_started_ms = (await self._sent_log.read_first_start()).started_ms

    # The following methods block. They are called in the consumer's thread.

    def record_position(self, tracker: OffsetTracker) -> None:
        """Record the position of a partition that is no longer assigned."""
        self._last_positions[tracker.partition] = Position(tracker.first_unsettled, tracker.topic_id)

    def commit_start_offsets(
        self, consumer: Consumer, partitions: list[TopicPartition], topic_id: str
    ) -> list[TopicPartition]:
        """Commit the offsets to start from, and return them with their metadata. Raises KafkaException."""
        starts, uncommitted = [], []
        for committed in consumer.committed(partitions, timeout=_CALL_TIMEOUT_SECONDS):
            if committed.error is not None:
                raise KafkaException(committed.error)
            start = self._start(consumer, committed, topic_id)
            metadata = start.metadata
            if metadata is None:
                metadata = encode_metadata(start.offset, start.offset, [], topic_id)
            starts.append(TopicPartition(committed.topic, committed.partition, start.offset, metadata))
            if (start.offset, metadata) != (committed.offset, committed.metadata or ""):
                uncommitted.append(starts[-1])
        if uncommitted:
            for result in consumer.commit(offsets=uncommitted, asynchronous=False):
                if result.error is not None:
                    raise KafkaException(result.error)
        self._never_assigned -= {start.partition for start in starts}
        return starts

    def offset_after_first_start(self, consumer: Consumer, partition: int, topic_id: str) -> int:
        """Return the offset of the first message that was published after the group's first start.

        `first_start_tolerance_seconds` are subtracted from the time of the first start. If that time is unknown, return
        the first offset that the broker has. Raises KafkaException.
        """
        return self._state(consumer, TopicPartition(self._config.topic, partition), topic_id).offset_after_first_start

    def _start(self, consumer: Consumer, committed: TopicPartition, topic_id: str) -> StartPosition:
        state = self._state(consumer, committed, topic_id)
        start = start_position(state, topic_is_new=self.topic_is_new, replay_missed=self._config.replay_missed)
        if start.reset_reason:
            count_reset(committed.partition, start.reset_reason)
        if start.no_offset_reason and not (self._read_from_beginning and start.no_offset_reason == "first-start"):
            metrics.STARTS_WITHOUT_OFFSET.labels(start.no_offset_reason).inc()
            log_start = log.info if start.no_offset_reason == "first-start" else log.error
            log_start(
                "consumption starts without a committed offset",
                topic=committed.topic,
                partition=committed.partition,
                reason=start.no_offset_reason,
                offset=start.offset,
                low=state.low,
                high=state.high,
            )
        return start

    def _state(self, consumer: Consumer, committed: TopicPartition, topic_id: str) -> PartitionState:
        low, high = consumer.get_watermark_offsets(committed, timeout=_CALL_TIMEOUT_SECONDS)
        offset_after_first_start = low
        # The embedded broker (librdkafka's mock cluster) cannot look up offsets by time.
        if self._first_started_ms is not None and topic_id and not self._config.is_embedded_broker:
            since_ms = self._first_started_ms - int(self._config.first_start_tolerance_seconds * 1000)
            partition = TopicPartition(committed.topic, committed.partition, max(0, since_ms))
            [found] = consumer.offsets_for_times([partition], timeout=_CALL_TIMEOUT_SECONDS)
            if found.error is not None:
                raise KafkaException(found.error)
            offset_after_first_start = max(low, found.offset) if found.offset >= 0 else high
        return PartitionState(
            topic_id=topic_id,
            low=low,
            high=high,
            offset_after_first_start=offset_after_first_start,
            committed=(committed.offset, committed.metadata) if committed.offset >= 0 else None,
            last_position=self._last_positions.get(committed.partition),
            may_lack_offset=high == 0 if self._read_from_beginning else committed.partition in self._never_assigned,
        )


def count_reset(partition: int, reason: str) -> None:
    """Count and log that an offset is out of range."""
    metrics.OFFSET_RESETS.inc()
    log.error("offset out of range, resetting", partition=partition, reason=reason)
