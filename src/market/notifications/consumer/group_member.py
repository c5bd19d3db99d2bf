"""A member of a consumer group.

The member polls, commits and rebalances in a thread of its own, so that slow mail delivery does not delay any of this.
It uses the classic group protocol, because both Apache Kafka 4 and the embedded broker (librdkafka's mock cluster)
support it. Rebalancing is cooperative: partitions that stay assigned are read without interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.kit.faults import Faults
from market.kit.kafka_settings import consumer_settings
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tasks import FAILURES
from market.notifications import config, metrics
from market.notifications.consumer.assignment import Assignment, EventLoopRunner
from market.notifications.consumer.committer import OffsetCommitter
from market.notifications.consumer.dispatcher import Availability, Dispatcher
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.offsets import OffsetTracker
from market.notifications.consumer.start import SentLogForConsumer, StartOffsets
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import Message, PendingMessage
from market.notifications.events.parsing import to_message

# Returns the pending message of a record that was read.
ToPending = Callable[[Message], PendingMessage]
RebalanceCallback = Callable[[Consumer, list[TopicPartition]], None]
log = logs.get_logger("consumer")

_POLL_SECONDS = 0.05
_COMMIT_INTERVAL_SECONDS = 0.1
_BROKER_CHECK_INTERVAL_SECONDS = 1.0
_REJOIN_SECONDS = 1.0
# The maximum number of messages that are passed to the event loop together.
_MAX_BATCH_SIZE = 100
_FAULT_TIMEOUT_SECONDS = 300
_MAX_BURST_SECONDS = 0.5
# The fetch size of a rate-limited member, in bytes per partition. A larger message is fetched alone.
_RATE_LIMITED_FETCH_BYTES = 262_144


class RateLimiter:
    """Limits the number of messages per second.

    After an idle period, up to half a second's worth of messages may pass at once.

    clock: returns seconds, like time.monotonic
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_seconds = 1 / per_second
        self._clock = clock
        self._next_at = clock()

    def reserve(self) -> float:
        """Return for how many seconds the next message has to wait; 0 or less if it may be processed now."""
        now = self._clock()
        self._next_at = max(self._next_at, now - _MAX_BURST_SECONDS) + self._interval_seconds
        return self._next_at - now


class RejoinRequested(Exception):
    """The member has to leave the group and join it again; the text says why."""


class GroupMember:
    """Reads the partitions that the group assigns to it, and passes their messages to the dispatcher.

    Must be constructed inside a running event loop. Does not connect before `start`.

    to_pending: returns the pending message of a record. If it is a deferred mail that is not due yet, its partition is
        paused until then
    mail_server: all partitions are paused while the mail server is unavailable
    rate_limiter: limits how many messages are passed on per second. Does not count a message for which its partition
        was paused until it was due. None: no limit
    on_assignment: called in the member's thread with the number of assigned partitions
    health: reports the process as unready until the member has joined the group, and while its partitions are lost.
        Reports Kafka as unavailable while all brokers are down. None: nothing is reported
    """

    def __init__(
        self,
        kafka: config.Kafka,
        dispatcher: Dispatcher,
        memory: MemoryBudget,
        mail_server: Availability,
        topic: TopicDescriber,
        starts: StartOffsets,
        sent_log: SentLogForConsumer,
        *,
        to_pending: ToPending,
        rate_limiter: RateLimiter | None,
        on_assignment: Callable[[int], None],
        health: Health | None,
        faults: Faults | None,
    ) -> None:
        self._config = kafka
        self._dispatcher = dispatcher
        self._memory = memory
        self._mail_server = mail_server
        self._to_pending = to_pending
        self._rate_limiter = rate_limiter
        self._health = health
        self._faults = faults
        self._runner = EventLoopRunner()
        self._committer = OffsetCommitter(
            kafka.topic, self._before_commit, lambda reason: self._warn_once("commit failed", reason)
        )
        self.assignment = Assignment(
            kafka,
            self._runner,
            dispatcher,
            self._committer,
            topic,
            starts,
            sent_log,
            memory,
            on_changed=on_assignment,
            on_assigned=self._on_assigned,
            on_lost=lambda: self._set_unready("partitions", "lost; rejoining the group"),
        )
        self._thread = threading.Thread(target=self._run, name=f"consumer {kafka.topic}", daemon=True)
        # Set when the group has assigned partitions, possibly none, for the first time.
        self.joined = asyncio.Event()
        self._stopping = threading.Event()
        # Set by `rejoin`, otherwise empty.
        self._rejoin_reason = ""
        self._brokers_down = False
        # The exception of a rebalance callback, for `_read` to raise.
        self._rebalance_error: Exception | None = None
        self._commit_at = self._check_brokers_at = 0.0
        self._warned: set[tuple[str, str]] = set()

    # The following methods are called in the event loop.

    def start(self) -> None:
        """Join the group, in the member's thread."""
        self._thread.start()

    async def stop(self, grace_seconds: float) -> None:
        """Stop polling, wait up to `grace_seconds` for messages in flight, commit, and leave the group."""
        self.assignment.revoke_seconds = max(0.0, grace_seconds - 1)
        self._stopping.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def rejoin(self, reason: str) -> None:
        """Request that the member's thread leaves the group and joins it again. Does not wait. Thread-safe."""
        self._rejoin_reason = reason

    @property
    def consuming(self) -> bool:
        """Whether the member has joined the group and is not stopping."""
        return self.joined.is_set() and not self._stopping.is_set()

    async def topic_exists(self) -> bool:
        """Return whether the topic exists. Raises KafkaException."""

        def describe() -> bool:
            # A new client each time, because librdkafka waits longer before each new attempt to connect.
            consumer = Consumer(self._settings())
            try:
                topic = consumer.list_topics(self._config.topic, timeout=2).topics[self._config.topic]
            finally:
                consumer.close()
            if topic.error is None:
                return True
            if topic.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                return False
            raise KafkaException(topic.error)

        return await asyncio.to_thread(describe)

    # The following methods are called in the member's thread.

    def _settings(self) -> dict[str, Any]:
        session_ms = int(self._config.session_timeout_seconds * 1000)
        settings = consumer_settings(
            self._config, "market.notifications", self._config.group, max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        return {
            **settings,
            # Fetch little in advance, because the rate limit often pauses partitions, and a paused partition's
            # prefetched messages are dropped and fetched again.
            **({"max.partition.fetch.bytes": _RATE_LIMITED_FETCH_BYTES} if self._rate_limiter is not None else {}),
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": max(100, session_ms // 10),
            # Report an out-of-range offset as an error, so that the reset is counted and logged.
            "auto.offset.reset": "error",
            # Report the end of a partition, to distinguish a fully read partition from a stalled one.
            "enable.partition.eof": True,
            "allow.auto.create.topics": self._config.is_embedded_broker,
            # These settings limit librdkafka's buffers, which the memory budget does not include. A message may have up
            # to 4 MiB.
            "fetch.max.bytes": 16 * 1024 * 1024,
            "receive.message.max.bytes": 24 * 1024 * 1024,
            "queued.min.messages": 1_000,
            "fetch.wait.max.ms": 100,
            "error_cb": self._on_error,
            "on_commit": self._committer.on_commit,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._consume()
            except RejoinRequested as e:
                self._set_unready("partitions", "rejoining the group")
                log.warning("rejoining the group", topic=self._config.topic, reason=str(e))
                self._stopping.wait(_REJOIN_SECONDS)
            except Exception as e:
                FAILURES.labels(f"{self._config.topic}-consumer").inc()
                self._set_unready("partitions", "rejoining the group")
                self._warn_once("consumer failed, rejoining the group", f"{type(e).__name__}: {e}")
                self._stopping.wait(_REJOIN_SECONDS)

    def _consume(self) -> None:
        """Join the group, consume until the member is stopped, and leave the group, even if an exception is raised."""
        self._rebalance_error = None
        self._rejoin_reason = ""
        self._committer.reset()
        consumer = Consumer(self._settings())
        try:
            consumer.subscribe(
                [self._config.topic],
                on_assign=self._keep_exception(self.assignment.assign),
                on_revoke=self._keep_exception(self.assignment.revoke),
                on_lost=self._keep_exception(self.assignment.lose),
            )
            self._poll(consumer)
        finally:
            # This calls assignment.revoke for the partitions that are still assigned.
            with contextlib.suppress(Exception):
                consumer.close()
            self.assignment.remove(list(self.assignment.trackers), drop_messages=True)

    def _poll(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            self._pause_or_resume(consumer)
            batch = self.assignment.take_due() if self._mail_server.available else []
            try:
                self._read(consumer, batch)
            finally:
                self._submit(batch)
            now = time.monotonic()
            if now >= self._commit_at:
                self._commit_at = now + _COMMIT_INTERVAL_SECONDS
                self._committer.commit(consumer, self.assignment.trackers.values())
            if now >= self._check_brokers_at:
                self._check_brokers_at = now + _BROKER_CHECK_INTERVAL_SECONDS
                self._check_brokers(consumer)

    def _read(self, consumer: Consumer, batch: list[tuple[OffsetTracker, PendingMessage]]) -> None:
        """Fetch messages, and add them to the batch.

        Raises RejoinRequested if `rejoin` was called, KafkaException, and the exception of a rebalance callback.
        """
        # This also calls the rebalance callbacks, if necessary.
        record = consumer.poll(_POLL_SECONDS)
        if self._rebalance_error is not None:
            raise self._rebalance_error
        if self._rejoin_reason:
            raise RejoinRequested(self._rejoin_reason)
        while record is not None:
            self._accept(consumer, record, batch)
            if len(batch) >= _MAX_BATCH_SIZE or self._memory.exhausted:
                break
            record = consumer.poll(0)

    def _submit(self, batch: list[tuple[OffsetTracker, PendingMessage]]) -> None:
        """Pass the batch to the dispatcher, without the messages of partitions that are no longer assigned."""
        assigned = []
        for tracker, pending in batch:
            if self.assignment.is_assigned(tracker):
                assigned.append((tracker, pending))
            else:
                self._memory.release(pending.message.size)
        if assigned:
            self._runner.loop.call_soon_threadsafe(self._dispatcher.submit, assigned)

    def _accept(
        self, consumer: Consumer, record: KafkaMessage, batch: list[tuple[OffsetTracker, PendingMessage]]
    ) -> None:
        error = record.error()
        if error is not None:
            self._handle_error(consumer, record, error)
            return
        message = to_message(record)
        tracker = self.assignment.trackers.get(message.partition)
        # If there is no tracker, the partition was revoked after the message was fetched.
        if tracker is not None and tracker.add(message.offset):
            pending = self._to_pending(message)
            self._memory.acquire(pending.message.size)
            wait = pending.seconds_until_due(time.time())
            if wait <= 0 and self._rate_limiter is not None:
                wait = self._rate_limiter.reserve()
            if wait <= 0:
                batch.append((tracker, pending))
            else:
                self.assignment.park(consumer, tracker, pending, wait)

    def _handle_error(self, consumer: Consumer, record: KafkaMessage, error: KafkaError) -> None:
        """Handle what `poll` returned instead of a message. Raises KafkaException."""
        partition, offset = record.partition(), record.offset()
        if error.code() == KafkaError._PARTITION_EOF and partition is not None and offset is not None:
            if (tracker := self.assignment.trackers.get(partition)) is not None:
                tracker.reach_end(offset)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:
            self.assignment.reset(consumer, partition, str(error.str()))
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._warn_once("fetch failed", error.str())

    def _pause_or_resume(self, consumer: Consumer) -> None:
        """Apply backpressure: pause all partitions while memory is exhausted or the mail server is unavailable."""
        exhausted = self._memory.exhausted
        metrics.PAUSED.labels("memory").set(int(exhausted))
        paused = exhausted or not self._mail_server.available
        self.assignment.pause_only(
            consumer, set(self.assignment.trackers) if paused else self.assignment.parked_partitions
        )

    def _keep_exception(self, callback: RebalanceCallback) -> RebalanceCallback:
        """Wrap a rebalance callback. confluent-kafka ignores its exceptions, so they are kept for `_read` to raise."""

        def call(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except Exception as e:
                self._rebalance_error = e

        return call

    def _set_unready(self, dependency: str, reason: str) -> None:
        if self._health is not None:
            self._health.set_unready(dependency, reason)

    def _set_ready(self, dependency: str) -> None:
        if self._health is not None:
            self._health.set_ready(dependency)

    def _on_assigned(self) -> None:
        self._warned.clear()
        self._set_ready("kafka")
        self._set_ready("partitions")
        self._runner.loop.call_soon_threadsafe(self.joined.set)

    def _check_brokers(self, consumer: Consumer) -> None:
        if self._brokers_down:
            try:
                consumer.list_topics(self._config.topic, timeout=0.5)
            except KafkaException:
                return
            self._brokers_down = False
            if self._health is not None:
                self._health.set_available("kafka")
            self._warned.clear()
            log.info("dependency available", dependency="kafka")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self.joined.is_set() and not self._brokers_down:
            self._brokers_down = True
            if self._health is not None:
                self._health.set_unavailable("kafka", "all brokers are down")
            log.warning("waiting for dependency", dependency="kafka", reason="all brokers are down")

    def _warn_once(self, event: str, reason: str) -> None:
        """Log a warning, but not again with the same reason until partitions are assigned or a broker is available."""
        if (event, reason) not in self._warned and len(self._warned) < 100:
            self._warned.add((event, reason))
            log.warning(event, reason=reason[:300])

    def _before_commit(self) -> None:
        if self._faults:
            self._runner.run(self._faults.fire_if_armed("notifications.before-commit"), _FAULT_TIMEOUT_SECONDS)
