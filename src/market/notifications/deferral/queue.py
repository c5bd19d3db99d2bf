"""The topic of deferred mails, which wait in Kafka instead of in memory.

Each record contains the original message. Its headers say when the mail is due, and where the original message is. If a
mail is deferred again, a new record is appended. The records of a partition are read in order: a record that is not due
yet makes the later ones wait. docs/decisions/0015-deferred-mails.md has the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from market.contracts import events
from market.kit.kafka import Producer
from market.kit.topics import Topic
from market.notifications import config, metrics
from market.notifications.domain import Deferral, Message, PendingMessage

_CLIENT_ID = "market.notifications"
# Headers of a record, in addition to those of the original message. Times are Unix milliseconds.
FIRST, DUE, ATTEMPTS, RESERVED, REASON, TOPIC, PARTITION, OFFSET = (
    f"deferred-{name}" for name in ("first", "due", "attempts", "reserved", "reason", "topic", "partition", "offset")
)
_ADDED_HEADERS = {FIRST, DUE, ATTEMPTS, RESERVED, REASON, TOPIC, PARTITION, OFFSET}
# A message of the maximum size, and the headers above.
_MAX_MESSAGE_BYTES = events.MAX_MESSAGE_BYTES + 65_536
_CLOSE_SECONDS = 2.0


def deferred_topic_definition(kafka: config.Kafka) -> Topic:
    """Return the definition of the topic of deferred mails."""
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": str(events.RETENTION_MS),
        "max.message.bytes": str(_MAX_MESSAGE_BYTES),
        "min.insync.replicas": str(kafka.min_insync),
    }
    return Topic(kafka.deferred_topic_name, kafka.partitions, kafka.replication, settings)


class DeferredMailWriter:
    """Appends deferred mails to their topic. The Kafka producer is created on first use.

    on_failure: called when a write has failed, but may be retried
    """

    def __init__(self, kafka: config.Kafka, on_failure: Callable[[], None] | None = None) -> None:
        self._config = kafka
        self._on_failure = on_failure
        self._producer: Producer[None] | None = None

    async def append(self, message: Message, deferral: Deferral) -> None:
        """Append a deferred mail, and return once Kafka has acknowledged it. Raises KafkaException."""
        headers: list[tuple[str, str | bytes | None]] = [
            *message.headers,
            (FIRST, _milliseconds(deferral.first_deferred_at)),
            (DUE, _milliseconds(deferral.due_at)),
            (ATTEMPTS, str(deferral.attempts)),
            (RESERVED, "1" if deferral.reserved else "0"),
            (REASON, deferral.reason.encode()[:1_000]),
            (TOPIC, message.topic),
            (PARTITION, str(message.partition)),
            (OFFSET, str(message.offset)),
        ]
        if self._producer is None:
            self._producer = Producer(
                self._config, _CLIENT_ID, max_message_bytes=_MAX_MESSAGE_BYTES, on_failure=self._on_failure
            )
        await self._producer.send_and_wait(
            self._config.deferred_topic_name, message.value, key=message.key, headers=headers
        )

    async def close(self) -> None:
        """Wait up to 2 s for outstanding acknowledgements, and close the producer."""
        if self._producer is not None:
            await self._producer.close(_CLOSE_SECONDS)


class DeferredMailRestorer:
    """Restores deferred mails from their records, and reports the age of the oldest one.

    The age is that of the oldest mail read in the current and the previous window of time. A window is at least as long
    as the time between two attempts, so normally every deferred mail is read in one of them. While the mail server is
    unavailable, or while many mails are due at the same time, a mail may not be read for longer. Then the reported age
    may be too low, or 0.

    window_seconds: the length of a window, at least the maximum time between two attempts at a mail
    clock: returns Unix time in seconds
    """

    def __init__(self, window_seconds: float, *, clock: Callable[[], float] = time.time) -> None:
        self._window_seconds = window_seconds
        self._clock = clock
        # The earliest first deferral of the current and the previous window, in Unix seconds.
        self._current: float | None = None
        self._previous: float | None = None
        self._window_began = clock()

    def restore(self, record: Message) -> PendingMessage:
        """Return the deferred mail in a record: the original message, and its deferral.

        If the headers are missing or malformed, the mail counts as first deferred now, and as due now.
        """
        headers = tuple((name, value) for name, value in record.headers if name not in _ADDED_HEADERS)
        original = Message(
            record.header(TOPIC) or record.topic,
            _number(record, PARTITION, record.partition),
            _number(record, OFFSET, record.offset),
            record.key,
            record.value,
            headers,
        )
        now_ms = int(self._clock() * 1000)
        deferral = Deferral(
            first_deferred_at=_time(_number(record, FIRST, now_ms), now_ms),
            due_at=_time(_number(record, DUE, now_ms), now_ms),
            attempts=_number(record, ATTEMPTS, 0),
            reserved=record.header(RESERVED) == "1",
            reason=record.header(REASON, "utf-8"),
        )
        first = deferral.first_deferred_at.timestamp()
        self._current = first if self._current is None else min(first, self._current)
        return PendingMessage(original, record.offset, deferral=deferral)

    def observe(self, *, empty: bool) -> None:
        """Update the metric.

        empty: whether the partitions that this process reads contain no deferred mail
        """
        now = self._clock()
        if empty:
            self._current = self._previous = None
        if now - self._window_began >= self._window_seconds:
            self._current, self._previous, self._window_began = None, self._current, now
        known = [first for first in (self._current, self._previous) if first is not None]
        metrics.DEFERRED_OLDEST.set(max(0.0, now - min(known)) if known else 0.0)


def _milliseconds(moment: datetime) -> str:
    return str(int(moment.timestamp() * 1000))


def _time(milliseconds: int, default: int) -> datetime:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(default / 1000, UTC)


def _number(record: Message, name: str, default: int) -> int:
    with suppress(ValueError):
        return int(record.header(name))
    return default
