"""Writes dead letters to their topic, marks them as done, and claims them (see letters.py)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from confluent_kafka import KafkaError, KafkaException

from market.contracts import events
from market.kit.kafka import Producer
from market.kit.topics import Topic
from market.notifications import config
from market.notifications.domain import DeadLetterReason, Message

_CLIENT_ID = "market.notifications"

_PREFIX = "dead-letter-"
# Headers of a dead letter, in addition to those of the original message.
REASON, TIME, TOPIC, PARTITION, OFFSET = (
    f"{_PREFIX}{name}" for name in ("reason", "time", "topic", "partition", "offset")
)
ATTEMPTS = f"{_PREFIX}attempts"
# Set if the value was omitted, because it was too large for the dead letter topic. It is still in the original topic.
OMITTED = f"{_PREFIX}value-omitted"
# Headers of a mark. MARK_OF is the id of the dead letter.
MARK_OF, MARK_ACTION = f"{_PREFIX}done", f"{_PREFIX}action"
# Headers of a record that makes or releases a claim. CLAIM_OF is the id of the dead letter. The record also has
# MARK_ACTION.
CLAIM_OF, CLAIM_TOKEN, CLAIM_UNTIL = (f"{_PREFIX}{name}" for name in ("claim", "claim-token", "claim-until"))
CLAIMED, RELEASED = "claimed", "released"
# The value of the header MARK_OF in a claim. No dead letter has this id, so an earlier version, which does not know
# claims, reads the record as a mark of a dead letter that does not exist, and ignores it.
_NO_DEAD_LETTER = b"claim"

# The limit of the producer. It is larger than that of the topic, so that the broker checks the size of a dead letter.
_MAX_MESSAGE_BYTES = events.MAX_MESSAGE_BYTES + 65_536
_CLOSE_SECONDS = 2.0

_Headers = list[tuple[str, str | bytes | None]]


def dead_letter_topic_definition(kafka: config.Kafka) -> Topic:
    """Return the definition of the dead letter topic."""
    settings = {
        "retention.ms": str(events.RETENTION_MS),
        "max.message.bytes": str(events.MAX_MESSAGE_BYTES),
        "min.insync.replicas": str(kafka.min_insync),
    }
    return Topic(kafka.dead_letter_topic, kafka.partitions, kafka.replication, settings)


class DeadLetterWriter:
    """Writes dead letters, marks and claims. The Kafka producer is created on first use.

    on_failure: called when a write has failed, but may be retried
    """

    def __init__(self, kafka: config.Kafka, on_failure: Callable[[], None] | None = None) -> None:
        self._config = kafka
        self._on_failure = on_failure
        self._producer: Producer[None] | None = None

    async def write(self, message: Message, reason: DeadLetterReason, now: datetime) -> None:
        """Write the message as a dead letter, and wait until Kafka has acknowledged it. Raises KafkaException.

        If the broker rejects the dead letter because of its size, its value is omitted.
        """
        headers: _Headers = [
            # Only this service may set headers with the prefix, not the publisher of the message.
            *((name, value) for name, value in message.headers if not name.startswith(_PREFIX)),
            (REASON, str(reason).encode()[:1_000]),
            (ATTEMPTS, str(reason.attempts).encode()),
            (TIME, _time(now)),
            (TOPIC, message.topic.encode()),
            (PARTITION, str(message.partition).encode()),
            (OFFSET, str(message.offset).encode()),
        ]
        try:
            await self._deliver(message.key, message.value, headers)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            await self._deliver(message.key, None, [*headers, (OMITTED, b"1")])

    async def mark(self, partition: int, offset: int, key: bytes | None, action: str, now: datetime) -> None:
        """Mark the dead letter at `offset` as done. `action` is "replayed" or "dropped". Raises KafkaException."""
        headers: _Headers = [
            (MARK_OF, f"{partition}-{offset}".encode()),
            (MARK_ACTION, action.encode()),
            (TIME, _time(now)),
        ]
        await self._deliver(key, None, headers, partition)

    async def claim(
        self, partition: int, offset: int, key: bytes | None, token: str, now: datetime, until: datetime
    ) -> None:
        """Claim the dead letter at `offset` until `until`. Raises KafkaException.

        To learn whether the claim has taken effect, the caller has to read the partition up to the claim.
        """
        await self._write_claim(CLAIMED, partition, offset, key, token, now, (CLAIM_UNTIL, _time(until)))

    async def release(self, partition: int, offset: int, key: bytes | None, token: str, now: datetime) -> None:
        """Release the claim with that token. Raises KafkaException."""
        await self._write_claim(RELEASED, partition, offset, key, token, now)

    async def _write_claim(
        self,
        action: str,
        partition: int,
        offset: int,
        key: bytes | None,
        token: str,
        now: datetime,
        *others: tuple[str, bytes],
    ) -> None:
        headers: _Headers = [
            (MARK_OF, _NO_DEAD_LETTER),
            (CLAIM_OF, f"{partition}-{offset}".encode()),
            (CLAIM_TOKEN, token.encode()),
            (MARK_ACTION, action.encode()),
            (TIME, _time(now)),
            *others,
        ]
        await self._deliver(key, None, headers, partition)

    async def close(self) -> None:
        """Wait up to 2 s for outstanding acknowledgements, and close the producer."""
        if self._producer is not None:
            await self._producer.close(_CLOSE_SECONDS)

    async def _deliver(self, key: bytes | None, value: bytes | None, headers: _Headers, partition: int = -1) -> None:
        if self._producer is None:
            self._producer = Producer(
                self._config, _CLIENT_ID, max_message_bytes=_MAX_MESSAGE_BYTES, on_failure=self._on_failure
            )
        await self._producer.send_and_wait(
            self._config.dead_letter_topic, value, key=key, headers=headers, partition=partition
        )


def _time(moment: datetime) -> bytes:
    return moment.isoformat(timespec="milliseconds").encode()
