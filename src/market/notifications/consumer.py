"""The Kafka consumer: one thread that polls, commits and answers rebalances, whatever the mails do.

The classic group protocol with cooperative rebalancing: it works on Apache Kafka 4 and on librdkafka's
own broker, and a partition that stays is not interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.process.health import Health
from market.notifications import config, metrics
from market.notifications.clients import as_bytes, connection, headers_of
from market.notifications.domain import Message
from market.notifications.progress import Progress, Room, start_of

T = TypeVar("T")
Rebalance = Callable[[Consumer, list[TopicPartition]], None]
Points = dict[Progress, tuple[int, str]]
log = logs.get_logger("consumer")

CALL_SECONDS = 5.0
COMMIT_SECONDS = 0.1
# Messages handed over to the event loop together.
BATCH = 100


class Intake(Protocol):
    """Where messages go: lanes.Lanes in every real run."""

    def add(self, messages: list[tuple[Progress, Message]]) -> None: ...

    def release(self, progresses: list[Progress], seconds: float) -> Coroutine[Any, Any, None]: ...


class Away(Protocol):
    @property
    def away(self) -> bool: ...


class Reader:
    """Owns the thread and the group membership. `start` returns when the group has answered with partitions, and their offsets are set."""

    def __init__(
        self, kafka: config.Kafka, intake: Intake, server: Away, room: Room, health: Health, faults: Faults | None
    ) -> None:
        self._config = kafka
        self._intake = intake
        self._server = server
        self._room = room
        self._health = health
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self._assigned = asyncio.Event()
        self._stopping = threading.Event()
        self._grace = kafka.revoke_seconds
        self._progress: dict[int, Progress] = {}
        self._paused: set[int] = set()
        # Where this process stood in partitions that it had before: they do not start at the end again.
        self._known: dict[int, int] = {}
        self._topic_is_new = False
        # What the one asynchronous commit under way would settle.
        self._under_way: Points | None = None
        self._broker_away = False
        # What a rebalance raised; see _kept.
        self._failure: Exception | None = None
        self._commit_at = self._observe_at = 0.0
        self._said: set[str] = set()

    # --- of the event loop

    async def start(self) -> None:
        """Waits for the broker, the topic and the partitions; says each once. It goes on from there by itself."""
        self._health.set_missing("kafka", "connecting")
        # A topic that is not there yet begins after us: all of it is for us.
        self._topic_is_new = await self._health.wait_for("kafka", self._ask_for_topic) is None
        if self._topic_is_new:
            await self._health.wait_for(f"topic {self._config.topic}", self._need_topic)
        self._health.set_missing("partitions", "waiting for the group")
        self._thread.start()
        await self._assigned.wait()

    async def stop(self, grace: float) -> None:
        """Reads no more, lets what is under way finish (at most `grace` seconds), commits, leaves the group."""
        self._grace = max(0.0, grace - 1)
        self._stopping.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    async def _ask_for_topic(self) -> int | None:
        """How many partitions the topic has; None: it is not there. Raises KafkaException."""

        def ask() -> int | None:
            # A client of its own, so that a broker that came late is asked at once.
            consumer = Consumer(self._settings())
            try:
                found = consumer.list_topics(self._config.topic, timeout=2).topics[self._config.topic]
            finally:
                consumer.close()
            if found.error is None:
                return len(found.partitions)
            if found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                return None
            raise KafkaException(found.error)

        return await asyncio.to_thread(ask)

    async def _need_topic(self) -> None:
        if await self._ask_for_topic() is None:
            raise LookupError("it does not exist yet")

    # --- of the thread

    def _settings(self) -> dict[str, Any]:
        session = int(self._config.session_timeout_seconds * 1000)
        return {
            **connection(self._config),
            "group.id": self._config.group,
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session,
            "heartbeat.interval.ms": max(100, session // 10),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # We are told, and go on from the earliest with an alarm.
            "auto.offset.reset": "error",
            "allow.auto.create.topics": self._config.auto_create_topics,
            # One message may have 4 MiB; what librdkafka holds beside our own memory is limited too.
            "max.partition.fetch.bytes": events.MAX_MESSAGE_BYTES + 65_536,
            "fetch.max.bytes": 16 * 1024 * 1024,
            "receive.message.max.bytes": 24 * 1024 * 1024,
            "queued.max.messages.kbytes": 16 * 1024,
            "queued.min.messages": 1_000,
            "fetch.wait.max.ms": 100,
            "topic.metadata.refresh.interval.ms": 30_000,
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._under_way = self._failure = None
            consumer = Consumer(self._settings())
            try:
                consumer.subscribe(
                    [self._config.topic],
                    on_assign=self._kept(self._on_assign),
                    on_revoke=self._kept(self._on_revoke),
                    on_lost=self._kept(self._on_lost),
                )
                self._poll(consumer)
            except Exception as e:
                self._say_once(f"reading failed, joining again: {type(e).__name__}: {e}")
                self._stopping.wait(1.0)
            finally:
                # Close calls on_revoke where partitions are still ours.
                with contextlib.suppress(Exception):
                    consumer.close()
                self._forget(list(self._progress), commit=False)

    def _poll(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            self._pause_or_resume(consumer)
            batch: list[tuple[Progress, Message]] = []
            found = consumer.poll(0.05)
            if self._failure is not None:
                raise self._failure
            while found is not None:
                self._accept(consumer, found, batch)
                if len(batch) >= BATCH or self._room.full:
                    break
                found = consumer.poll(0)
            if batch:
                self._loop.call_soon_threadsafe(self._intake.add, batch)
            now = time.monotonic()
            if now >= self._commit_at:
                self._commit_at = now + COMMIT_SECONDS
                self._commit(consumer, list(self._progress.values()))
            if now >= self._observe_at:
                self._observe_at = now + 1.0
                self._observe(consumer)

    def _accept(self, consumer: Consumer, found: KafkaMessage, batch: list[tuple[Progress, Message]]) -> None:
        error = found.error()
        partition = found.partition()
        if error is not None:
            if error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:
                self._go_on_from_earliest(consumer, partition, str(error.str()))
            elif error.fatal():
                raise KafkaException(error)
            else:
                self._say_once(f"reading failed: {error.str()}")
            return
        offset = found.offset()
        assert partition is not None
        assert offset is not None
        progress = self._progress.get(partition)
        # Without one it is a leftover of a partition that was taken from us.
        if progress is None or not progress.take(offset):
            return
        message = Message(
            found.topic() or "", partition, offset, as_bytes(found.key()), as_bytes(found.value()), headers_of(found)
        )
        self._room.take(message.size)
        batch.append((progress, message))

    def _pause_or_resume(self, consumer: Consumer) -> None:
        full = self._room.full
        metrics.PAUSED.labels("memory").set(int(full))
        wanted = set(self._progress) if full or self._server.away else set()
        for change, partitions in ((consumer.pause, wanted - self._paused), (consumer.resume, self._paused - wanted)):
            if partitions := partitions & set(self._progress):
                change([TopicPartition(self._config.topic, p) for p in partitions])
        self._paused = wanted

    # --- rebalances, called from within poll() and close()

    def _kept(self, callback: Rebalance) -> Rebalance:
        """The callback, its exception kept for _poll: confluent-kafka mangles what a callback raises."""

        def call(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except Exception as e:
                self._failure = e

        return call

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        starts = self._starts(consumer, partitions) if partitions else []
        for start in starts:
            self._progress[start.partition] = Progress(start.partition, start.offset, start.metadata)
        self._assign(consumer, starts)
        log.info("reading", partitions=sorted(self._progress))
        self._said.clear()
        self._health.set_missing("kafka", None)
        self._health.set_missing("partitions", None)
        self._loop.call_soon_threadsafe(self._assigned.set)

    def _starts(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Where each partition begins, with its note; what had no committed offset has one now. Raises KafkaException."""
        starts = []
        new = []
        for found in consumer.committed(partitions, timeout=CALL_SECONDS):
            if found.error is not None:
                raise KafkaException(found.error)
            low, high = consumer.get_watermark_offsets(found, timeout=CALL_SECONDS)
            start = start_of(
                (found.offset, found.metadata) if found.offset >= 0 else None,
                low,
                high,
                known=self._known.get(found.partition),
                topic_is_new=self._topic_is_new,
                replay_missed=self._config.replay_missed,
            )
            if start.alarm:
                self._alarm(found.partition, start.alarm)
            starts.append(TopicPartition(found.topic, found.partition, start.offset, start.note or ""))
            if start.offset != found.offset:
                new.append(starts[-1])
        if new:
            for result in consumer.commit(offsets=new, asynchronous=False):
                if result.error is not None:
                    raise KafkaException(result.error)
        return starts

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        mine = [p.partition for p in partitions if p.partition in self._progress]
        leaving = [self._progress[p] for p in mine]
        if leaving:
            seconds = self._grace if self._stopping.is_set() else self._config.revoke_seconds
            # No message arrives meanwhile: this thread is the one that polls.
            self._in_loop(self._intake.release(leaving, seconds), seconds + 5)
            self._commit(consumer, leaving, wait=True)
            self._forget(mine, commit=True)
        consumer.incremental_unassign(partitions)
        if mine:
            log.info("gave back", partitions=sorted(mine))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        mine = [p.partition for p in partitions]
        log.warning("lost the partitions; what is under way may be mailed by another too", partitions=sorted(mine))
        self._health.set_missing("partitions", "lost; joining the group again")
        self._forget(mine, commit=False)
        consumer.incremental_unassign(partitions)

    def _forget(self, partitions: list[int], *, commit: bool) -> None:
        """Ends the partitions' progress. Without a commit, what is not under way is dropped at once, and nothing is waited for."""
        gone = [self._progress.pop(p) for p in partitions if p in self._progress]
        for progress in gone:
            self._known[progress.partition] = progress.position
            self._paused.discard(progress.partition)
            with contextlib.suppress(KeyError):
                metrics.LAG.remove(str(progress.partition))
        if gone and not commit:
            self._in_loop(self._intake.release(gone, 0), 5)

    def _go_on_from_earliest(self, consumer: Consumer, partition: int, reason: str) -> None:
        old = self._progress.get(partition)
        if old is None:
            return
        self._alarm(partition, reason)
        here = TopicPartition(self._config.topic, partition)
        low, _ = consumer.get_watermark_offsets(here, timeout=CALL_SECONDS)
        self._in_loop(self._intake.release([old], self._config.revoke_seconds), self._config.revoke_seconds + 5)
        consumer.incremental_unassign([here])
        self._progress[partition] = Progress(partition, low)
        # Not yet committed, whether or not a message follows.
        self._progress[partition].committed((-1, ""))
        self._assign(consumer, [TopicPartition(self._config.topic, partition, low)])

    def _assign(self, consumer: Consumer, starts: list[TopicPartition]) -> None:
        """Assign the partitions from their offsets, unpaused."""
        partitions = [TopicPartition(s.topic, s.partition, s.offset) for s in starts]
        # librdkafka keeps the pause of an earlier assignment.
        consumer.resume(partitions)
        consumer.incremental_assign(partitions)
        self._paused -= {s.partition for s in starts}

    def _alarm(self, partition: int, reason: str) -> None:
        metrics.RESETS.inc()
        log.error("the offset is out of range; going on from the earliest", partition=partition, reason=reason)

    # --- commits

    def _commit(self, consumer: Consumer, progresses: list[Progress], *, wait: bool = False) -> None:
        """Commits what has changed. Unless `wait`, one commit is under way at most."""
        if self._under_way is not None and not wait:
            return
        points = {p: point for p in progresses if (point := p.to_commit()) is not None}
        if not points:
            return
        offsets = [
            TopicPartition(self._config.topic, p.partition, offset, note) for p, (offset, note) in points.items()
        ]
        try:
            if self._faults:
                self._in_loop(self._faults.reach("notifications.before-commit"), 300)
            if wait:
                self._settle(points, None, consumer.commit(offsets=offsets, asynchronous=False))
            else:
                consumer.commit(offsets=offsets, asynchronous=True)
                self._under_way = points
        except Exception as e:
            metrics.COMMIT_FAILURES.inc()
            self._say_once(f"commit failed: {e}")

    def _on_commit(self, error: KafkaError | None, results: list[TopicPartition]) -> None:
        points, self._under_way = self._under_way, None
        if points is not None:
            self._settle(points, error, results)

    def _settle(self, points: Points, error: KafkaError | None, results: list[TopicPartition]) -> None:
        failed = {r.partition: r.error for r in results if r.error is not None}
        for progress, point in points.items():
            if problem := failed.get(progress.partition) or error:
                # It is made again, for to_commit still differs.
                metrics.COMMIT_FAILURES.inc()
                self._say_once(f"commit failed: {problem.str()}")
            else:
                progress.committed(point)

    # --- watching

    def _observe(self, consumer: Consumer) -> None:
        for partition, progress in self._progress.items():
            _, high = consumer.get_watermark_offsets(TopicPartition(self._config.topic, partition), cached=True)
            if high >= 0:
                metrics.LAG.labels(str(partition)).set(max(0, high - progress.position))
        if self._broker_away:
            try:
                consumer.list_topics(self._config.topic, timeout=0.5)
            except KafkaException:
                return
            self._broker_away = False
            self._health.set_missing("kafka", None)
            self._said.clear()
            log.info("kafka is there")

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._assigned.is_set() and not self._broker_away:
            self._broker_away = True
            self._health.set_missing("kafka", "no broker answers")
            log.warning("waiting for kafka", reason="no broker answers")

    def _say_once(self, text: str) -> None:
        """Each thing once, until partitions are assigned or the broker is back."""
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            log.warning(text[:300])

    def _in_loop(self, work: Awaitable[T], seconds: float) -> T:
        """Runs it in the event loop, and waits for it here."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(seconds)
