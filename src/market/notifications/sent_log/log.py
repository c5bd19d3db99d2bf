"""The sent log: which events were mailed, and when the group started for the first time.

An event may be read again because offsets were lost, or because it was published again. Then the log tells whether it
was mailed. The log is a topic of its own, so that it survives a loss of the group's offsets or of the events' topic.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime

from confluent_kafka import KafkaException

from market.contracts import events
from market.kit.kafka import Producer
from market.kit.process import logs
from market.kit.topics import Topic, ensure_topics
from market.notifications import config, metrics
from market.notifications.domain import FirstStart
from market.notifications.sent_log import reader

log = logs.get_logger("sent-log")

_CLIENT_ID = "market.notifications"
_CREATE_TIMEOUT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_FLUSH_INTERVAL_SECONDS = 0.2
# How long the ids stay in memory after the last lookup.
_KEEP_SECONDS = 600.0
_DIGEST_BYTES = 8
_MAX_DIGESTS_IN_RECORD = 8_000
_MAX_UNWRITTEN = 50_000


def sent_log_topic_definition(kafka: config.Kafka) -> Topic:
    """Return the definition of the topic of the sent log."""
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": str(events.RETENTION_MS),
        # The broker sets the timestamps, including that of the first start.
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(kafka.min_insync),
    }
    return Topic(kafka.sent_log_topic_name, 1, kafka.replication, settings)


class RecentDigests:
    """64-bit digests of the latest event ids. Contains at most `max_ids`; when it is full, it drops the older half."""

    def __init__(self, max_ids: int) -> None:
        self._generation_size = max(1, max_ids // 2)
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, digests: Iterable[bytes]) -> None:
        """Add digests. If there are too many, drop the older half."""
        for digest in digests:
            self._new.add(int.from_bytes(digest, "big"))
            if len(self._new) >= self._generation_size:
                self._new, self._old = set(), self._new

    def __contains__(self, digest: bytes) -> bool:
        number = int.from_bytes(digest, "big")
        return number in self._new or number in self._old

    def __len__(self) -> int:
        return len(self._new) + len(self._old)


class SentLog:
    """Writes the ids of mailed events, in batches, and reads them when an event has to be looked up.

    A mail may be repeated if the process crashes before its event's id is written. Must be used in one event loop.

    max_ids: how many ids are kept in memory
    on_failure: called when a write has failed, but may be retried
    """

    def __init__(self, kafka: config.Kafka, *, max_ids: int, on_failure: Callable[[], None] | None = None) -> None:
        self._config = kafka
        self._on_failure = on_failure
        self._max_ids = max_ids
        self._producer: Producer[None] | None = None
        # Full only while Kafka is unavailable. Then the oldest digests are dropped.
        self._unwritten: deque[bytes] = deque(maxlen=_MAX_UNWRITTEN)
        self._ids: RecentDigests | None = None
        self._used_at = 0.0
        # Set by `invalidate_sent_ids`. A read in progress at that time is repeated.
        self._invalidated = False
        self._loading = asyncio.Lock()
        self._writing = asyncio.Lock()

    def connect(self) -> None:
        """Create the producer, if there is none yet.

        librdkafka's idempotent producers mostly send their first message only half a second after they have found the
        broker, so the service creates it at its start, before it has anything to write.
        """
        self._connected_producer()

    async def read_first_start(self) -> FirstStart:
        """Create the topic if it does not exist, and return what it records about the first start.

        Raises KafkaException or TimeoutError.
        """
        c = self._config
        topics = [] if c.is_embedded_broker else [sent_log_topic_definition(c)]
        if not await ensure_topics(c, _CLIENT_ID, topics, _CREATE_TIMEOUT_SECONDS):
            raise TimeoutError("the topic of the sent log could not be created")
        return await asyncio.to_thread(reader.read_first_start, self._config)

    async def record_start(self, *, first: bool) -> None:
        """Record that the group has started. Raises KafkaException.

        first: whether this is the group's first start. False if the group had offsets before the log existed.
        """
        await self._write(reader.STARTED if first else reader.RESUMED, None)

    def add(self, event_id: str) -> None:
        """Record that the event was mailed. `flush` writes its id."""
        digest = _digest(event_id)
        self._unwritten.append(digest)
        if self._ids is not None:
            self._ids.add([digest])

    async def contains(self, event_id: str) -> bool:
        """Return whether the log contains the event. The log is read first if necessary. Return False if that fails."""
        # No id is written while the log is read, so each id is either in `_unwritten` or in what is read.
        async with self._loading, self._writing:
            while self._ids is None:
                self._invalidated = False
                try:
                    ids = await asyncio.to_thread(self._load)
                except KafkaException as e:
                    metrics.SENT_LOG_FAILURES.inc()
                    log.error("reading the sent log failed, mails may be repeated", reason=e.args[0].str())
                    return False
                if not self._invalidated:
                    ids.add(self._unwritten)
                    self._ids = ids
                    log.info("sent log read", ids=len(ids))
        self._used_at = time.monotonic()
        return _digest(event_id) in self._ids

    async def was_mailed(self, event_id: str, since: datetime | None) -> bool:
        """Read the log from Kafka, and return whether it contains the event. Raises KafkaException.

        Unlike `contains`, this reads the log each time and keeps no ids in memory.

        since: the log is read from this time on. None: from its beginning
        """
        digest = _digest(event_id)
        # A batch that is being written is neither in `_unwritten` nor in the log, so wait for it.
        async with self._writing:
            is_unwritten = digest in self._unwritten
        return is_unwritten or await asyncio.to_thread(self._has, digest, since)

    def invalidate_sent_ids(self) -> None:
        """Drop the cached ids of mailed events, so that the next lookup reads the log again."""
        self._ids = None
        self._invalidated = True

    async def flush(self) -> float:
        """Write the ids that are not written yet, and return the seconds until the next call. Raises KafkaException."""
        if self._ids is not None and time.monotonic() - self._used_at > _KEEP_SECONDS:
            self._ids = None
        async with self._writing:
            while self._unwritten:
                batch = [self._unwritten.popleft() for _ in range(min(len(self._unwritten), _MAX_DIGESTS_IN_RECORD))]
                try:
                    await self._write(None, b"".join(batch))
                except BaseException:
                    metrics.SENT_LOG_FAILURES.inc()
                    put_back(batch, self._unwritten)
                    raise
        return _FLUSH_INTERVAL_SECONDS

    async def close(self) -> None:
        """Write the ids that are not written yet, waiting up to 2 s, and close the producer."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.flush()
        except (KafkaException, TimeoutError):
            log.warning("writing the sent log failed, mails may be repeated", mails=len(self._unwritten))
        if self._producer is not None:
            await self._producer.close(_CLOSE_SECONDS)

    async def _write(self, key: bytes | None, value: bytes | None) -> None:
        producer = self._connected_producer()
        await producer.send_and_wait(self._config.sent_log_topic_name, value, key=key, partition=reader.PARTITION)

    def _connected_producer(self) -> Producer[None]:
        if self._producer is None:
            self._producer = Producer(
                self._config, _CLIENT_ID, max_message_bytes=reader.MAX_RECORD_BYTES, on_failure=self._on_failure
            )
        return self._producer

    def _load(self) -> RecentDigests:
        ids = RecentDigests(self._max_ids)
        for value in reader.read_values(self._config):
            ids.add(_digests_in(value))
        return ids

    def _has(self, digest: bytes, since: datetime | None) -> bool:
        return any(digest in _digests_in(value) for value in reader.read_values(self._config, since))


def put_back(batch: list[bytes], unwritten: deque[bytes]) -> None:
    """Put a batch back at the front of `unwritten`. If not all digests fit, drop the oldest ones."""
    assert unwritten.maxlen is not None
    free = unwritten.maxlen - len(unwritten)
    unwritten.extendleft(reversed(batch[max(0, len(batch) - free) :]))


def _digests_in(value: bytes) -> Iterable[bytes]:
    return (value[n : n + _DIGEST_BYTES] for n in range(0, len(value), _DIGEST_BYTES))


def _digest(event_id: str) -> bytes:
    return hashlib.blake2b(event_id.encode(), digest_size=_DIGEST_BYTES).digest()
