"""Reads the dead letter topic, without joining a group or committing offsets."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from market.contracts import events
from market.kit.kafka import watermark_offsets
from market.kit.kafka_settings import consumer_settings
from market.notifications import config
from market.notifications.dead_letters import writer
from market.notifications.dead_letters.letters import ADDED_HEADERS, DeadLetter, DeadLetterLog, RecordPosition
from market.notifications.domain import Message
from market.notifications.events.parsing import to_message

# The maximum size of a fetch. It is small, because the process needs memory for its other consumers.
_FETCH_BYTES = 8 * 1024 * 1024
_MAX_POLL_SECONDS = 0.5
# After these errors, librdkafka continues automatically.
_TRANSIENT = frozenset({KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE})


class DeadLetterReader:
    """Reads the dead letter topic. The methods block, and only one of them runs at a time.

    seconds: the time limit of `read_newest`, and of each step of the other methods. If it is exceeded, a method raises
        TimeoutError or KafkaException
    """

    def __init__(self, kafka: config.Kafka, *, seconds: float) -> None:
        self._topic = kafka.dead_letter_topic
        self._seconds = seconds
        settings = consumer_settings(
            kafka, "market.notifications", f"{kafka.group}-dead-letters", max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        self._consumer = Consumer(
            {
                **settings,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
                "fetch.max.bytes": _FETCH_BYTES,
                "queued.max.messages.kbytes": _FETCH_BYTES // 1024,
            }
        )
        # If a caller in the event loop is cancelled, its call goes on in a thread, and `close` has to wait for it.
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections to Kafka."""
        with self._lock:
            self._consumer.close()

    def read_all(self) -> DeadLetterLog:
        """Return all dead letters in the topic. Raises KafkaException or TimeoutError.

        There is no time limit for the whole call: each record may take `seconds`.
        """
        log, _ = self._read_newest(None)
        return log

    def read_newest(self, max_records: int) -> tuple[DeadLetterLog, bool]:
        """Return the newest dead letters, and whether the topic has no others.

        max_records: the maximum number of records to read, including marks and claims; see `share`

        Raises KafkaException or TimeoutError.
        """
        return self._read_newest(max_records)

    def read_from(self, partition: int, offset: int) -> DeadLetterLog:
        """Return the dead letter at that position and all later ones of the partition.

        Return an empty log if the partition does not exist. Raises KafkaException or TimeoutError.
        """
        with self._lock:
            log = DeadLetterLog()
            if partition in self._partitions(deadline=self._deadline()):
                log.next_offsets[partition] = offset
                self._read_to_end(log, partition)
            return log

    def read_on(self, log: DeadLetterLog, partition: int) -> None:
        """Add the partition's records that were written since the last read. Raises KafkaException or TimeoutError."""
        with self._lock:
            self._read_to_end(log, partition)

    def original_message(self, letter: DeadLetter) -> Message:
        """Return the message as it was before it became a dead letter.

        Raises LookupError if Kafka no longer has it, and KafkaException or TimeoutError if it cannot be read now.
        """
        position = RecordPosition(self._topic, letter.partition, letter.offset)
        if letter.header(writer.OMITTED):
            # The dead letter has no value, so the value is read from the original topic.
            position = letter.origin
        with self._lock:
            message = self._read_one(position)
        headers = tuple((name, value) for name, value in letter.headers if name not in ADDED_HEADERS)
        return Message(*letter.origin, message.key, message.value, headers)

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds

    def _read_newest(self, max_records: int | None) -> tuple[DeadLetterLog, bool]:
        with self._lock:
            log = DeadLetterLog()
            deadline = self._deadline()
            partitions = self._partitions(deadline=deadline)
            # `read_all` has no time limit.
            read_deadline = None if max_records is None else deadline
            ranges = self._ends(partitions, deadline=read_deadline)
            lengths = {partition: high - low for partition, (low, high) in ranges.items()}
            shares = lengths if max_records is None else share(lengths, max_records)
            for partition, (_, high) in ranges.items():
                log.next_offsets[partition] = high - shares[partition]
            self._read(log, ranges, deadline=read_deadline)
            return log, shares == lengths

    def _read_to_end(self, log: DeadLetterLog, partition: int) -> None:
        ends = self._ends([partition], deadline=self._deadline())
        self._read(log, ends, deadline=self._deadline())

    def _partitions(self, *, deadline: float) -> list[int]:
        """Return the topic's partitions; none if the topic does not exist."""
        seconds = max(0.1, deadline - time.monotonic())
        topic = self._consumer.list_topics(self._topic, timeout=seconds).topics[self._topic]
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return []
        if topic.error is not None:
            raise KafkaException(topic.error)
        return sorted(topic.partitions)

    def _ends(self, partitions: list[int], *, deadline: float | None) -> dict[int, tuple[int, int]]:
        """Return the first offset of each partition, and the offset after its last one.

        deadline: in seconds of time.monotonic(). None: each partition may take `seconds`
        """
        return {
            partition: watermark_offsets(
                self._consumer, TopicPartition(self._topic, partition), deadline=deadline or self._deadline()
            )
            for partition in partitions
        }

    def _read(self, log: DeadLetterLog, ranges: Mapping[int, tuple[int, int]], *, deadline: float | None) -> None:
        """Add the records from the log's next offsets up to the ends of the ranges.

        deadline: in seconds of time.monotonic(). None: each record may take `seconds`
        """
        ends = {partition: high for partition, (_, high) in ranges.items() if log.next_offsets[partition] < high}
        self._consumer.assign([TopicPartition(self._topic, p, log.next_offsets[p]) for p in ends])
        record_deadline = deadline or self._deadline()
        while ends:
            seconds = record_deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError(f"{self._topic} was not read within {self._seconds:g} s")
            record = self._consumer.poll(min(seconds, _MAX_POLL_SECONDS))
            if record is None:
                continue
            error, partition, offset = record.error(), record.partition(), record.offset() or 0
            if error is not None and error.code() in _TRANSIENT:
                continue
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if partition not in ends:
                continue
            record_deadline = deadline or self._deadline()
            end = ends[partition]
            if error is None and offset < end:
                log.add(to_message(record))
            if error is not None or offset >= end - 1:
                del ends[partition]

    def _read_one(self, position: RecordPosition) -> Message:
        topic, partition, offset = position
        deadline = self._deadline()
        missing = LookupError(f"Kafka no longer has the message at {partition}-{offset} of {topic}")
        if partition < 0 or offset < 0:
            raise missing
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        while (seconds := deadline - time.monotonic()) > 0:
            record = self._consumer.poll(min(seconds, _MAX_POLL_SECONDS))
            if record is None:
                continue
            error = record.error()
            if error is None:
                # If the record no longer exists, the consumer returns a later one.
                if record.offset() != offset:
                    raise missing
                return to_message(record)
            if error.code() in (
                KafkaError._PARTITION_EOF,
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError._UNKNOWN_TOPIC,
                KafkaError._UNKNOWN_PARTITION,
            ):
                raise missing
            if error.code() not in _TRANSIENT:
                raise KafkaException(error)
        raise TimeoutError(f"{topic} was not read within {self._seconds:g} s")


def share(lengths: Mapping[int, int], total: int) -> dict[int, int]:
    """Divide `total` records equally among the partitions. Return the number of records of each partition.

    If a partition has fewer records than its share, the others get the rest.

    lengths: the number of records that each partition has
    """
    shares: dict[int, int] = {}
    remaining = total
    for number, partition in enumerate(sorted(lengths, key=lambda p: lengths[p])):
        shares[partition] = min(lengths[partition], remaining // (len(lengths) - number))
        remaining -= shares[partition]
    return shares
