"""Outbound to Kafka: dead letters."""

from __future__ import annotations

import asyncio
from datetime import datetime
from threading import Event, Thread
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from market.contracts import events
from market.notifications import config
from market.notifications.domain import Message

# Beside the original's own headers, which are kept.
REASON, TIME, TOPIC, PARTITION, OFFSET = (
    f"dead-letter-{n}" for n in ("reason", "time", "topic", "partition", "offset")
)
# The letter's value was left out, because the topic took no message of that size; the origin still has it.
OMITTED = "dead-letter-value-omitted"
# A record without a value that says of an earlier letter of the same partition that it is done with, and how.
MARK_OF, MARK_ACTION = "dead-letter-done", "dead-letter-action"

Headers = list[tuple[str, str | bytes | None]]


def connection(kafka: config.Kafka) -> dict[str, Any]:
    """Settings that every Kafka client of ours shares. What is logged, we log."""
    return {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": "notifications",
        "log_level": 2,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "socket.connection.setup.timeout.ms": 5_000,
        **kafka.options,
    }


def headers_of(record: KafkaMessage) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((k, as_bytes(v)) for k, v in _pairs(record.headers()))


def as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _pairs(headers: Any) -> Headers:
    return list(headers or [])


class DeadLetters:
    """Puts aside what cannot be handled. Owns the producer, made when the first letter is written."""

    def __init__(self, kafka: config.Kafka) -> None:
        self._config = kafka
        self._producer: Producer | None = None
        self._thread: Thread | None = None
        self._closing = Event()

    async def write(self, message: Message, reason: str, now: datetime) -> None:
        """Returns when Kafka has acknowledged the letter. Raises KafkaException."""
        headers: Headers = [
            *message.headers,
            (REASON, reason.encode()[:1_000]),
            (TIME, now.isoformat(timespec="milliseconds").encode()),
            (TOPIC, message.topic.encode()),
            (PARTITION, str(message.partition).encode()),
            (OFFSET, str(message.offset).encode()),
        ]
        try:
            await self._send(message.key, message.value, headers)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            await self._send(message.key, None, [*headers, (OMITTED, b"1")])

    async def mark(self, partition: int, offset: int, key: bytes | None, action: str, now: datetime) -> None:
        """Says that the letter is done with. Lies in the letter's own partition, so that it is never older than the letter."""
        headers: Headers = [
            (MARK_OF, f"{partition}-{offset}".encode()),
            (MARK_ACTION, action.encode()),
            (TIME, now.isoformat(timespec="milliseconds").encode()),
        ]
        await self._send(key, None, headers, partition)

    async def _send(self, key: bytes | None, value: bytes | None, headers: Headers, partition: int = -1) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: KafkaError | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(KafkaException(error))

        def delivered(error: KafkaError | None, _: Any) -> None:
            loop.call_soon_threadsafe(settle, error)

        self._running().produce(
            self._config.dead_letter_topic,
            key=key,
            value=value,
            headers=headers,
            partition=partition,
            on_delivery=delivered,
        )
        await done

    def _running(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                {
                    **connection(self._config),
                    "acks": "all",
                    "linger.ms": 0,
                    "message.timeout.ms": 10_000,
                    # The original and our headers.
                    "message.max.bytes": events.MAX_MESSAGE_BYTES + 65_536,
                }
            )
            self._thread = Thread(target=self._serve, name="dead-letters", daemon=True)
            self._thread.start()
        return self._producer

    def _serve(self) -> None:
        while not self._closing.is_set():
            if self._producer is not None:
                self._producer.poll(0.1)

    async def close(self) -> None:
        if self._producer is not None and self._thread is not None:
            await asyncio.to_thread(self._producer.flush, 2)
            self._closing.set()
            await asyncio.to_thread(self._thread.join)
