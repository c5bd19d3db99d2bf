"""Reads dead letters, and whether they were replayed or dropped.

Kafka cannot delete a single message. If a dead letter is replayed or dropped, a mark is written instead: a record in
the same partition, without a value, that refers to the dead letter (writer.MARK_OF). A dead letter without a mark is
open. Both expire with the topic's retention, the mark after its dead letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.kit.kafka import consumer_settings
from market.notifications import config
from market.notifications.dead_letters import writer
from market.notifications.domain import Message
from market.notifications.events.parsing import to_message

_ADDED_HEADERS = {writer.REASON, writer.TIME, writer.TOPIC, writer.PARTITION, writer.OFFSET, writer.OMITTED}
_READ_SECONDS = 10.0


class RecordPosition(NamedTuple):
    """Where a record is in Kafka."""

    topic: str
    partition: int
    offset: int


class Resolution(NamedTuple):
    """What an operator did with a dead letter: the action (replayed or dropped), and its time in ISO 8601."""

    action: str
    at: str


@dataclass(slots=True)
class DeadLetter:
    """A dead letter, except for its value, which `original_message` reads.

    `id` is its position in the dead letter topic: PARTITION-OFFSET.
    """

    partition: int
    offset: int
    key: bytes | None
    # In bytes.
    value_size: int
    headers: tuple[tuple[str, bytes | None], ...]
    # None while the dead letter is open.
    resolution: Resolution | None = None

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"

    def header(self, name: str) -> str:
        """Return the last header of that name as text, or an empty string if there is none."""
        values = (value for key, value in reversed(self.headers) if key == name and value is not None)
        return next((value.decode("utf-8", "replace") for value in values), "")

    @property
    def origin(self) -> RecordPosition:
        """The position of the original message; -1 for a number that is missing or malformed."""
        return RecordPosition(self.header(writer.TOPIC), self._number(writer.PARTITION), self._number(writer.OFFSET))

    def summary(self) -> dict[str, Any]:
        """Return the fields that `list --json` prints, as JSON types."""
        return {
            "id": self.id,
            "time": self.header(writer.TIME),
            "reason": self.header(writer.REASON),
            "key": None if self.key is None else self.key.decode("utf-8", "replace"),
            "origin": self.origin._asdict(),
            "bytes": self.value_size,
            "status": self.resolution.action if self.resolution else "open",
            "done_at": self.resolution.at if self.resolution else None,
        }

    def _number(self, name: str) -> int:
        with suppress(ValueError):
            return int(self.header(name))
        return -1


class DeadLetterReader:
    """Reads the dead letter topic without joining a group or committing offsets. Its methods block."""

    def __init__(self, kafka: config.Kafka) -> None:
        self._topic = kafka.dead_letter_topic
        settings = consumer_settings(
            kafka, "market.notifications", f"{kafka.group}-dead-letters", max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        self._consumer = Consumer(
            {
                **settings,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
            }
        )

    def close(self) -> None:
        """Close the connections to Kafka."""
        self._consumer.close()

    def read_all(self) -> list[DeadLetter]:
        """Return all dead letters in the topic, oldest first. Raises KafkaException or TimeoutError."""
        found: dict[str, DeadLetter] = {}
        for record in self._records():
            message = to_message(record)
            letter = DeadLetter(
                message.partition, message.offset, message.key, len(message.value or b""), message.headers
            )
            if marked := letter.header(writer.MARK_OF):
                if marked in found and found[marked].resolution is None:
                    found[marked].resolution = Resolution(letter.header(writer.MARK_ACTION), letter.header(writer.TIME))
            else:
                found[letter.id] = letter
        return sorted(found.values(), key=lambda letter: (letter.header(writer.TIME), letter.partition, letter.offset))

    def original_message(self, letter: DeadLetter) -> Message:
        """Return the message as it was before it became a dead letter.

        Raises KafkaException, or LookupError if it cannot be read: the topic no longer has it, or Kafka has not
        returned it within 10 s, or has reported an error.
        """
        position = RecordPosition(self._topic, letter.partition, letter.offset)
        if letter.header(writer.OMITTED):
            # The value was omitted, so it is read from the original topic.
            position = letter.origin
        message = self._read_one(position)
        headers = tuple((name, value) for name, value in letter.headers if name not in _ADDED_HEADERS)
        return Message(*letter.origin, message.key, message.value, headers)

    def _records(self) -> Iterator[KafkaMessage]:
        """Yield the records of every partition, up to its end at the time of the call."""
        topic = self._consumer.list_topics(self._topic, timeout=_READ_SECONDS).topics[self._topic]
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return
        if topic.error is not None:
            raise KafkaException(topic.error)
        starts, ends = {}, {}
        for partition in topic.partitions:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, partition), timeout=_READ_SECONDS
            )
            if low < high:
                starts[partition], ends[partition] = low, high
        self._consumer.assign([TopicPartition(self._topic, partition, low) for partition, low in starts.items()])
        while ends:
            record = self._consumer.poll(_READ_SECONDS)
            if record is None:
                raise TimeoutError(f"{self._topic}: no response within {_READ_SECONDS:.0f} s")
            error, partition, offset = record.error(), record.partition(), record.offset() or 0
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if partition not in ends:
                continue
            end = ends[partition]
            if error is None and offset < end:
                yield record
            if error is not None or offset >= end - 1:
                del ends[partition]

    def _read_one(self, position: RecordPosition) -> Message:
        topic, partition, offset = position
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        record = self._consumer.poll(_READ_SECONDS)
        if record is None or record.error() is not None or record.offset() != offset:
            raise LookupError(
                f"the message at {partition}-{offset} of {topic} is no longer there or cannot be read now"
            )
        return to_message(record)
