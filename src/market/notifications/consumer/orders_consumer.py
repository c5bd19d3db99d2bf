"""The consumer of order events. A dedicated thread polls, commits and rebalances, so slow mails do not delay these.

It uses the classic group protocol with cooperative rebalancing, which works with Apache Kafka 4 and with the
embedded broker alike, and does not interrupt partitions that stay assigned.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.kit.faults import Faults
from market.kit.kafka import consumer_settings
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tasks import FAILURES
from market.notifications import config, metrics
from market.notifications.consumer.committer import OffsetCommitter
from market.notifications.consumer.dispatcher import Availability, Dispatcher, Handler
from market.notifications.consumer.lag import LagObserver
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.offsets import OffsetTracker
from market.notifications.consumer.start import SentLogForConsumer, StartOffsets, count_reset
from market.notifications.consumer.topic import TopicDescriber
from market.notifications.domain import Message
from market.notifications.events.parsing import to_message

T = TypeVar("T")
RebalanceCallback = Callable[[Consumer, list[TopicPartition]], None]
log = logs.get_logger("consumer")

_CALL_TIMEOUT_SECONDS = 5.0
_POLL_SECONDS = 0.05
_COMMIT_INTERVAL_SECONDS = 0.1
_BROKER_CHECK_INTERVAL_SECONDS = 1.0
_REJOIN_SECONDS = 1.0
_TOPIC_CHECK_INTERVAL_SECONDS = 5.0
# Messages handed over to the event loop at once.
_MAX_BATCH_SIZE = 100
_FAULT_TIMEOUT_SECONDS = 300


class OrdersConsumer:
    """A member of the consumer group, and the thread that it runs in. Must be constructed inside a running event loop.

    handler: makes one attempt at processing a message, in the event loop
    mail_server: partitions are paused while it is unavailable
    sent_log: the sent log, where the group's first start is recorded
    max_concurrency: how many messages are in flight at once
    """

    def __init__(
        self,
        kafka: config.Kafka,
        memory: config.Memory,
        handler: Handler,
        mail_server: Availability,
        sent_log: SentLogForConsumer,
        *,
        max_concurrency: int,
        health: Health,
        faults: Faults | None,
    ) -> None:
        self._config = kafka
        self._memory = MemoryBudget(memory.max_messages, memory.max_bytes)
        self._dispatcher = Dispatcher(handler, mail_server, self._memory, max_concurrency=max_concurrency)
        self._mail_server = mail_server
        self._sent_log = sent_log
        self._topic = TopicDescriber(kafka)
        self._starts = StartOffsets(kafka, self._topic, sent_log)
        self._lag = LagObserver(
            self._topic.offsets, self._positions, health, stalled_after_seconds=kafka.stalled_after_seconds
        )
        self._health = health
        self._faults = faults
        self._committer = OffsetCommitter(
            kafka.topic, self._reach_failure_point, lambda reason: self._warn_once("commit failed", reason)
        )
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="orders-consumer", daemon=True)
        self._assigned = asyncio.Event()
        self._stopping = threading.Event()
        self._stop_seconds = kafka.revoke_timeout_seconds
        self._trackers: dict[int, OffsetTracker] = {}
        self._paused: set[int] = set()
        # Why the consumer has to rejoin the group; empty if it does not have to.
        self._rejoin_reason = ""
        self._brokers_down = False
        # What a rebalance callback raised; see _keep_exception.
        self._rebalance_error: Exception | None = None
        self._commit_at = self._check_brokers_at = 0.0
        self._warned: set[tuple[str, str]] = set()

    # --- in the event loop

    async def start(self) -> None:
        """Wait for the broker and the topic, join the group, and wait until it has assigned partitions (possibly none).

        After that, lost connections and rebalances are handled in the background.
        """
        self._health.set_unready("kafka", "connecting")
        # A topic that does not exist yet has no events from before the start, so all of its events are mailed.
        self._starts.topic_is_new = not await self._health.wait_for("kafka", self._topic_exists)
        if self._starts.topic_is_new:
            await self._health.wait_for(f"topic {self._config.topic}", self._require_topic)
        await self._health.wait_for("sent log", self._starts.prepare)
        self._health.set_unready("partitions", "joining the group")
        self._thread.start()
        await self._assigned.wait()

    async def stop(self, grace: float) -> None:
        """Stop polling, let mails in flight finish (at most `grace` seconds), commit, leave the group."""
        self._stop_seconds = max(0.0, grace - 1)
        self._stopping.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        await self._dispatcher.close()
        await asyncio.to_thread(self._topic.close)

    async def check_topic(self) -> float:
        """Rejoin the group if the topic was recreated: a running consumer would skip the beginning of the new topic.

        Return the seconds until the next check. Raises KafkaException.
        """
        if self._assigned.is_set() and self._trackers:
            topic_id = await asyncio.to_thread(self._topic.topic_id)
            known = {tracker.topic_id for tracker in list(self._trackers.values())} - {""}
            if topic_id and known and topic_id not in known:
                self._rejoin_reason = "the topic was deleted and created again"
        return _TOPIC_CHECK_INTERVAL_SECONDS

    async def observe_lag(self) -> float:
        """Update lag metrics and readiness. Return the seconds until the next call. Raises KafkaException."""
        return await self._lag.observe() if self._assigned.is_set() and not self._stopping.is_set() else 0.1

    def _positions(self) -> dict[int, int]:
        """Return the next offset to read of each assigned partition that is not paused."""
        trackers = list(self._trackers.items())
        return {partition: tracker.next_to_read for partition, tracker in trackers if partition not in self._paused}

    async def _topic_exists(self) -> bool:
        """Return whether the topic exists. Raises KafkaException."""

        def describe() -> bool:
            # A new client each time, because librdkafka backs off after a failed connection.
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

    async def _require_topic(self) -> None:
        if not await self._topic_exists():
            raise LookupError("it does not exist yet")

    # --- in the consumer's thread

    def _settings(self) -> dict[str, Any]:
        session_ms = int(self._config.session_timeout_seconds * 1000)
        settings = consumer_settings(
            self._config, "market.notifications", self._config.group, max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        return {
            **settings,
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": max(100, session_ms // 10),
            # Report an out-of-range offset as an error, so that the reset is counted and logged.
            "auto.offset.reset": "error",
            # Distinguishes a partition that was read to its end from a stalled one.
            "enable.partition.eof": True,
            "allow.auto.create.topics": self._config.partitions == 0,
            # Messages may have up to 4 MiB. librdkafka's buffers, which the memory budget excludes, are limited here.
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
            except Exception as e:
                FAILURES.labels("orders-consumer").inc()
                self._health.set_unready("partitions", "rejoining the group")
                self._warn_once("consumer failed, rejoining the group", f"{type(e).__name__}: {e}")
                self._stopping.wait(_REJOIN_SECONDS)

    def _consume(self) -> None:
        """Join the group, consume until this process stops, and leave. Any error is raised after leaving."""
        self._rebalance_error = None
        self._rejoin_reason = ""
        self._committer.reset()
        consumer = Consumer(self._settings())
        try:
            consumer.subscribe(
                [self._config.topic],
                on_assign=self._keep_exception(self._on_assign),
                on_revoke=self._keep_exception(self._on_revoke),
                on_lost=self._keep_exception(self._on_lost),
            )
            self._poll(consumer)
        finally:
            # Calls _on_revoke for the partitions that are still assigned.
            with contextlib.suppress(Exception):
                consumer.close()
            self._forget(list(self._trackers), drop_messages=True)

    def _poll(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            self._pause_or_resume(consumer)
            batch: list[tuple[OffsetTracker, Message]] = []
            record = consumer.poll(_POLL_SECONDS)
            if self._rebalance_error is not None:
                raise self._rebalance_error
            if self._rejoin_reason:
                raise RuntimeError(self._rejoin_reason)
            while record is not None:
                self._accept(consumer, record, batch)
                if len(batch) >= _MAX_BATCH_SIZE or self._memory.exhausted:
                    break
                record = consumer.poll(0)
            if batch:
                self._loop.call_soon_threadsafe(self._dispatcher.submit, batch)
            now = time.monotonic()
            if now >= self._commit_at:
                self._commit_at = now + _COMMIT_INTERVAL_SECONDS
                self._committer.commit(consumer, self._trackers.values())
            if now >= self._check_brokers_at:
                self._check_brokers_at = now + _BROKER_CHECK_INTERVAL_SECONDS
                self._check_brokers(consumer)

    def _accept(self, consumer: Consumer, record: KafkaMessage, batch: list[tuple[OffsetTracker, Message]]) -> None:
        error = record.error()
        partition = record.partition()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                tracker, end = self._trackers.get(-1 if partition is None else partition), record.offset()
                if tracker is not None and end is not None:
                    tracker.reach_end(end)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:
                self._reset_offset(consumer, partition, str(error.str()))
            elif error.fatal():
                raise KafkaException(error)
            else:
                self._warn_once("fetch failed", error.str())
            return
        message = to_message(record)
        tracker = self._trackers.get(message.partition)
        # Without a tracker the partition was revoked after the message was fetched.
        if tracker is not None and tracker.add(message.offset):
            self._memory.acquire(message.size)
            batch.append((tracker, message))

    def _pause_or_resume(self, consumer: Consumer) -> None:
        """Apply backpressure: pause all partitions while memory is exhausted or the mail server is unavailable."""
        exhausted = self._memory.exhausted
        metrics.PAUSED.labels("memory").set(int(exhausted))
        assigned = set(self._trackers)
        paused = assigned if exhausted or not self._mail_server.available else set()
        if to_pause := paused - self._paused:
            consumer.pause(self._topic_partitions(to_pause))
        if to_resume := (self._paused - paused) & assigned:
            consumer.resume(self._topic_partitions(to_resume))
        self._paused = set(paused)

    def _topic_partitions(self, partitions: set[int]) -> list[TopicPartition]:
        return [TopicPartition(self._config.topic, partition) for partition in partitions]

    # --- rebalances: called from poll() and close(), in the consumer's thread

    def _keep_exception(self, callback: RebalanceCallback) -> RebalanceCallback:
        """Wrap a rebalance callback so that `_poll` raises its exception, which confluent-kafka would swallow."""

        def call(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except Exception as e:
                self._rebalance_error = e

        return call

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            # Before the committed offsets are read: whatever another member mails up to then must be found.
            self._loop.call_soon_threadsafe(self._sent_log.invalidate_sent_ids)
        topic_id = self._topic.topic_id() if partitions else ""
        starts = self._starts.commit_start_offsets(consumer, partitions, topic_id) if partitions else []
        for start in starts:
            self._trackers[start.partition] = OffsetTracker(start.partition, start.offset, start.metadata, topic_id)
        self._assign(consumer, starts)
        metrics.ASSIGNED.set(len(self._trackers))
        log.info("partitions assigned", partitions=sorted(self._trackers))
        self._warned.clear()
        self._health.set_ready("kafka")
        self._health.set_ready("partitions")
        self._loop.call_soon_threadsafe(self._assigned.set)

    def _assign(self, consumer: Consumer, starts: list[TopicPartition]) -> None:
        """Assign the partitions at their offsets, and resume them."""
        partitions = [TopicPartition(start.topic, start.partition, start.offset) for start in starts]
        # librdkafka keeps the pause of an earlier assignment.
        consumer.resume(partitions)
        consumer.incremental_assign(partitions)
        self._paused -= {start.partition for start in starts}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        revoked = [p.partition for p in partitions if p.partition in self._trackers]
        trackers = [self._trackers[partition] for partition in revoked]
        if trackers:
            seconds = self._stop_seconds if self._stopping.is_set() else self._config.revoke_timeout_seconds
            # No message arrives meanwhile: this thread is the one that polls.
            self._run_in_loop(self._dispatcher.revoke(trackers, seconds), seconds + _CALL_TIMEOUT_SECONDS)
            self._committer.commit(consumer, trackers, wait=True)
            self._forget(revoked)
        consumer.incremental_unassign(partitions)
        if revoked:
            log.info("partitions revoked", partitions=sorted(revoked))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lost = [p.partition for p in partitions]
        # Another member may have them already, and mail what is in flight here.
        log.warning("partitions lost, mails in flight may be repeated", partitions=sorted(lost))
        self._health.set_unready("partitions", "lost; rejoining the group")
        self._forget(lost, drop_messages=True)
        consumer.incremental_unassign(partitions)

    def _forget(self, partitions: list[int], *, drop_messages: bool = False) -> None:
        """Remove the partitions' trackers. With `drop_messages`, drop their messages without waiting for any."""
        trackers = [self._trackers.pop(partition) for partition in partitions if partition in self._trackers]
        for tracker in trackers:
            self._starts.remember(tracker)
            self._paused.discard(tracker.partition)
        metrics.ASSIGNED.set(len(self._trackers))
        if trackers and drop_messages:
            self._run_in_loop(self._dispatcher.revoke(trackers, 0), _CALL_TIMEOUT_SECONDS)

    def _reset_offset(self, consumer: Consumer, partition: int, reason: str) -> None:
        old = self._trackers.get(partition)
        if old is None:
            return
        count_reset(partition, reason)
        offset = self._starts.replay_from(consumer, partition, old.topic_id)
        seconds = self._config.revoke_timeout_seconds
        self._run_in_loop(self._dispatcher.revoke([old], seconds), seconds + _CALL_TIMEOUT_SECONDS)
        consumer.incremental_unassign(self._topic_partitions({partition}))
        self._trackers[partition] = OffsetTracker(partition, offset, topic_id=old.topic_id)
        self._trackers[partition].mark_uncommitted()
        self._assign(consumer, [TopicPartition(self._config.topic, partition, offset)])

    # --- availability of the brokers, and failures

    def _check_brokers(self, consumer: Consumer) -> None:
        if self._brokers_down:
            try:
                consumer.list_topics(self._config.topic, timeout=0.5)
            except KafkaException:
                return
            self._brokers_down = False
            self._health.set_ready("kafka")
            self._warned.clear()
            log.info("dependency available", dependency="kafka")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._assigned.is_set() and not self._brokers_down:
            self._brokers_down = True
            self._health.set_unready("kafka", "all brokers are down")
            log.warning("waiting for dependency", dependency="kafka", reason="all brokers are down")

    def _warn_once(self, event: str, reason: str) -> None:
        """Log each event and reason once, until partitions are assigned or the broker is available again."""
        if (event, reason) not in self._warned and len(self._warned) < 100:
            self._warned.add((event, reason))
            log.warning(event, reason=reason[:300])

    def _reach_failure_point(self) -> None:
        if self._faults:
            self._run_in_loop(self._faults.fire_if_armed("notifications.before-commit"), _FAULT_TIMEOUT_SECONDS)

    def _run_in_loop(self, work: Awaitable[T], timeout_seconds: float) -> T:
        """Run a coroutine in the event loop, and block until it has finished. Raises TimeoutError."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout_seconds)
