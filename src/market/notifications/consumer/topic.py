"""Queries the broker for the topic's id and for offsets. All calls block, so call them in a thread."""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from market.contracts import events
from market.kit.kafka_settings import client_settings, consumer_settings
from market.notifications import config

_CLIENT_ID = "market.notifications"
_CALL_TIMEOUT_SECONDS = 5.0


class PartitionOffsets(NamedTuple):
    """The offsets of a partition.

    low, high: the first offset that the broker has, and the offset after the last one
    committed: the group's committed offset. None if there is none
    """

    low: int
    high: int
    committed: int | None

    @property
    def lag(self) -> int:
        """The number of messages after the committed offset."""
        return max(0, self.high - max(self.low, self.committed or 0))


class TopicDescriber:
    """Queries the broker with clients of its own, which connect on first use. Thread-safe."""

    def __init__(self, kafka: config.Kafka) -> None:
        self._config = kafka
        self._topic = kafka.topic
        self._consumer: Consumer | None = None
        self._lock = Lock()
        self._admin = AdminClient(client_settings(kafka, _CLIENT_ID))

    def topic_id(self) -> str:
        """Return the topic's unique id (KIP-516). Raises KafkaException.

        Return an empty string if the topic does not exist, or if the broker does not support topic ids.
        """
        described = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_CALL_TIMEOUT_SECONDS)
        try:
            return str(described[self._topic].result(2 * _CALL_TIMEOUT_SECONDS).topic_id)
        except KafkaException as e:
            if e.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return ""
            raise

    def offsets(self) -> dict[int, PartitionOffsets]:
        """Return the offsets of each partition. Raises KafkaException."""
        with self._lock:
            return self._offsets()

    def _offsets(self) -> dict[int, PartitionOffsets]:
        if self._consumer is None:
            settings = consumer_settings(
                self._config, _CLIENT_ID, self._config.group, max_message_bytes=events.MAX_MESSAGE_BYTES
            )
            # The consumer does not subscribe, so it reads the group's offsets without joining the group. With
            # read_uncommitted, the end offset includes the messages of open transactions.
            self._consumer = Consumer({**settings, "isolation.level": "read_uncommitted"})
        consumer = self._consumer
        topic = consumer.list_topics(self._topic, timeout=_CALL_TIMEOUT_SECONDS).topics[self._topic]
        if topic.error is not None:
            raise KafkaException(topic.error)
        partitions = [TopicPartition(self._topic, partition) for partition in topic.partitions]
        offsets = {}
        for committed in consumer.committed(partitions, timeout=_CALL_TIMEOUT_SECONDS):
            if committed.error is not None:
                raise KafkaException(committed.error)
            low, high = consumer.get_watermark_offsets(committed, timeout=_CALL_TIMEOUT_SECONDS)
            offsets[committed.partition] = PartitionOffsets(
                low, high, committed.offset if committed.offset >= 0 else None
            )
        return offsets

    def close(self) -> None:
        """Close the consumer, unless another call is still using it after 1 s."""
        if self._lock.acquire(timeout=1):
            consumer, self._consumer = self._consumer, None
            self._lock.release()
            if consumer is not None:
                consumer.close()
