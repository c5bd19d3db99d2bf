"""Commits the offsets of settled messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, KafkaError, TopicPartition

from market.notifications import metrics
from market.notifications.consumer.offsets import CommitPoint, OffsetTracker

CommitPoints = dict[OffsetTracker, CommitPoint]


class OffsetCommitter:
    """Commits offsets in the consumer's thread, with at most one asynchronous commit in flight.

    If a commit fails, the next commit includes the same partitions.

    before_commit: called before each commit. If it blocks, the commit waits
    on_failure: called with the error if a commit fails
    """

    def __init__(self, topic: str, before_commit: Callable[[], None], on_failure: Callable[[str], None]) -> None:
        self._topic = topic
        self._before_commit = before_commit
        self._on_failure = on_failure
        self._in_flight: CommitPoints | None = None

    def reset(self) -> None:
        """Ignore the commit in flight, because the consumer that sent it was closed."""
        self._in_flight = None

    def commit(self, consumer: Consumer, trackers: Iterable[OffsetTracker], *, wait: bool = False) -> None:
        """Commit the offsets that have changed. With `wait`, block until the broker has accepted or rejected them.

        Failures are passed to `on_failure`, not raised.
        """
        if self._in_flight is not None and not wait:
            return
        points = {tracker: point for tracker in trackers if (point := tracker.next_commit()) is not None}
        if not points:
            return
        offsets = [
            TopicPartition(self._topic, tracker.partition, point.offset, point.metadata)
            for tracker, point in points.items()
        ]
        try:
            self._before_commit()
            if wait:
                self._record(points, None, consumer.commit(offsets=offsets, asynchronous=False))
            else:
                consumer.commit(offsets=offsets, asynchronous=True)
                self._in_flight = points
        except Exception as e:
            self._failed(str(e))

    def on_commit(self, error: KafkaError | None, results: list[TopicPartition]) -> None:
        """Handle the result of the asynchronous commit. This is librdkafka's `on_commit` callback."""
        points, self._in_flight = self._in_flight, None
        if points is not None:
            self._record(points, error, results)

    def _record(self, points: CommitPoints, error: KafkaError | None, results: list[TopicPartition]) -> None:
        errors = {result.partition: result.error for result in results if result.error is not None}
        for tracker, point in points.items():
            if failure := errors.get(tracker.partition) or error:
                self._failed(failure.str())
            else:
                tracker.mark_committed(point)

    def _failed(self, reason: str) -> None:
        metrics.COMMIT_FAILURES.inc()
        self._on_failure(reason)
