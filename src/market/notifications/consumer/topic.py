"""What the broker knows of the topic and of the group's offsets. Everything here blocks, and belongs in a thread."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from market.contracts import events
from market.kit.kafka import client_settings, consumer_settings
from market.notifications import config

_CLIENT_ID = "market.notifications"
_CALL_TIMEOUT_SECONDS = 5.0


class TopicDescriber:
    """Owns an admin client, which connects when it is used for the first time. Thread-safe."""

    def __init__(self, kafka: config.Kafka) -> None:
        self._config = kafka
        self._topic = kafka.topic
        self._admin = AdminClient(client_settings(kafka, _CLIENT_ID))

    def topic_id(self) -> str:
        """Return the id that a topic gets when it is created; empty if the broker has no such ids, or no such topic.

        Raises KafkaException.
        """
        if self._admin.list_topics(self._topic, timeout=_CALL_TIMEOUT_SECONDS).controller_id < 0:
            # The embedded broker.
            return ""
        described = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_CALL_TIMEOUT_SECONDS)
        try:
            return str(described[self._topic].result(2 * _CALL_TIMEOUT_SECONDS).topic_id)
        except KafkaException as e:
            if e.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return ""
            raise

    def partitions_and_offsets(self) -> tuple[set[int], bool]:
        """Return the topic's partitions, and whether the group has an offset in any of them. Raises KafkaException."""
        settings = consumer_settings(
            self._config, _CLIENT_ID, self._config.group, max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        # Reads offsets of the group without being a member of it.
        consumer = Consumer(settings)
        try:
            partitions = set(
                consumer.list_topics(self._topic, timeout=_CALL_TIMEOUT_SECONDS).topics[self._topic].partitions
            )
            wanted = [TopicPartition(self._topic, partition) for partition in partitions]
            committed = consumer.committed(wanted, timeout=_CALL_TIMEOUT_SECONDS)
        finally:
            consumer.close()
        for one in committed:
            if one.error is not None:
                raise KafkaException(one.error)
        return partitions, any(one.offset >= 0 for one in committed)
