"""Reads the topic of the sent log. All functions block, so call them in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.kit.kafka import watermark_offsets
from market.kit.kafka_settings import consumer_settings
from market.notifications import config
from market.notifications.domain import FirstStart

# The keys of records without ids. STARTED is written at the group's first start, and its timestamp is the time of that
# start. RESUMED is written instead if the group had offsets before the log existed.
STARTED, RESUMED = b"started", b"continued"
# All records are in one partition, so that the first record of the log is known.
PARTITION = 0
MAX_RECORD_BYTES = 1_048_576

_CALL_TIMEOUT_SECONDS = 5.0
_READ_TIMEOUT_SECONDS = 60.0


def read_first_start(kafka: config.Kafka) -> FirstStart:
    """Return what the log records about the group's first start. Raises KafkaException."""
    with _consumer(kafka) as consumer:
        low, high = _offsets(consumer, kafka)
        if high == 0:
            return FirstStart(log_is_empty=True, started_ms=None)
        if low > 0:
            # The record of the first start has expired.
            return FirstStart(log_is_empty=False, started_ms=None)
        first = next(_records(consumer, kafka, 0, 1))
        kind, timestamp = first.timestamp()
        known = first.key() == STARTED and kind != TIMESTAMP_NOT_AVAILABLE
        return FirstStart(log_is_empty=False, started_ms=timestamp if known else None)


def read_values(kafka: config.Kafka, since: datetime | None = None) -> Iterator[bytes]:
    """Yield the values of the records. Raises KafkaException.

    Records that were written before `since`, or longer ago than Kafka keeps events, are skipped. (The embedded broker
    cannot look up offsets by time, so its log is read from the beginning.)
    """
    since_ms = int(time.time() * 1000) - events.RETENTION_MS
    if since is not None:
        since_ms = max(since_ms, int(since.timestamp() * 1000))
    with _consumer(kafka) as consumer:
        low, high = _offsets(consumer, kafka)
        partition = TopicPartition(kafka.sent_log_topic_name, PARTITION, since_ms)
        [found] = consumer.offsets_for_times([partition], timeout=_CALL_TIMEOUT_SECONDS)
        if found.error is not None or kafka.is_embedded_broker:
            start = low
        else:
            start = max(low, found.offset) if found.offset >= 0 else high
        for record in _records(consumer, kafka, start, high):
            value = record.value()
            if isinstance(value, bytes):
                yield value


@contextmanager
def _consumer(kafka: config.Kafka) -> Iterator[Consumer]:
    settings = consumer_settings(
        kafka, "market.notifications", f"{kafka.group}.sent-log", max_message_bytes=MAX_RECORD_BYTES
    )
    consumer = Consumer(
        {
            **settings,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "allow.auto.create.topics": kafka.is_embedded_broker,
        }
    )
    try:
        # This also creates the topic if the broker is the embedded one.
        topic = consumer.list_topics(kafka.sent_log_topic_name, timeout=_CALL_TIMEOUT_SECONDS).topics[
            kafka.sent_log_topic_name
        ]
        if topic.error is not None:
            raise KafkaException(topic.error)
        yield consumer
    finally:
        consumer.close()


def _offsets(consumer: Consumer, kafka: config.Kafka) -> tuple[int, int]:
    """Return the first offset, and the offset after the last one."""
    partition = TopicPartition(kafka.sent_log_topic_name, PARTITION)
    return watermark_offsets(consumer, partition, deadline=time.monotonic() + _CALL_TIMEOUT_SECONDS)


def _records(consumer: Consumer, kafka: config.Kafka, start: int, known_end: int) -> Iterator[KafkaMessage]:
    """Yield the records from `start` to the current end of the log. Raises KafkaException.

    known_end: an end offset that the caller has seen. If `start` is not below it, nothing is read. Otherwise, records
        that were appended since then are read, too.
    """
    deadline = time.monotonic() + _READ_TIMEOUT_SECONDS
    if start >= known_end:
        return
    consumer.assign([TopicPartition(kafka.sent_log_topic_name, PARTITION, start)])
    while time.monotonic() < deadline:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if (error := record.error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return
            if error.code() == KafkaError._AUTO_OFFSET_RESET or error.fatal():
                raise KafkaException(error)
            continue
        yield record
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
