"""Kafka: the producer bridged into asyncio, and the topics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not say that they export these
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

from market.contracts import events
from market.kit.process import logs
from market.orders.config import Kafka

Token = TypeVar("Token")
log = logs.get_logger("kafka")

# What Kafka will never take, however often it is sent. All else is tried again.
_FOR_GOOD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.POLICY_VIOLATION,
        KafkaError._KEY_SERIALIZATION,
        KafkaError._VALUE_SERIALIZATION,
    }
)


class Outcome:
    """How a message fared. `error` None: acknowledged by all replicas in sync."""

    __slots__ = ("error", "for_good")

    def __init__(self, error: KafkaError | None = None) -> None:
        self.error = None if error is None else str(error)
        self.for_good = error is not None and error.code() in _FOR_GOOD


class Publisher(Generic[Token]):
    """Owns librdkafka's producer and the thread that polls it.

    `acknowledged` is awaited in the loop, with the tokens of all messages whose fate came to be known at once.
    """

    def __init__(self, config: Kafka, acknowledged: Callable[[list[tuple[Token, Outcome]]], Awaitable[None]]) -> None:
        self._settings: dict[str, Any] = {
            "bootstrap.servers": config.bootstrap_servers,
            "client.id": "market.orders",
            "acks": "all",
            "enable.idempotence": True,
            "message.max.bytes": events.MAX_MESSAGE_BYTES,
            # Pinned: Kafka's clients differ in their defaults, and a key must stay in its partition.
            "partitioner": "murmur2_random",
            "linger.ms": 2,
            "message.timeout.ms": int(config.delivery_seconds * 1000),
            "request.timeout.ms": min(10_000, max(1, int(config.delivery_seconds * 1000))),
            "socket.connection.setup.timeout.ms": 3000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "retry.backoff.ms": 50,
            "retry.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
            # What does not fit waits in the outbox, not in memory.
            "queue.buffering.max.messages": 20_000,
            "queue.buffering.max.kbytes": 64 * 1024,
            "log_level": 2,
            **config.options,
        }
        self._acknowledged = acknowledged
        self._done: list[tuple[Token, Outcome]] = []
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._producer = self._make()
        self._thread = threading.Thread(target=self._poll, name="kafka-poll", daemon=True)
        self._thread.start()

    def _make(self) -> Producer:
        return Producer({**self._settings, "error_cb": self._failed})

    def send(self, key: str, value: bytes, headers: list[tuple[str, str | bytes | None]], token: Token) -> bool:
        """Hands the message over; its fate comes to `acknowledged`. False: there is no room just now."""

        def delivered(error: KafkaError | None, _: object) -> None:
            self._report(token, Outcome(error))

        try:
            self._producer.produce(events.TOPIC, value, key.encode(), headers=headers, on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException as e:
            # Refused without being sent: too large, or the producer is broken.
            error = e.args[0]
            self._report(token, Outcome(error))
            if error.fatal():
                self._renew()
        return True

    @property
    def waiting(self) -> int:
        """Messages whose fate is not known."""
        return len(self._producer) + len(self._done)

    def _report(self, token: Token, outcome: Outcome) -> None:
        # In the polling thread. One wake-up of the loop for all that comes until it runs.
        with self._lock:
            self._done.append((token, outcome))
            first = len(self._done) == 1
        if first:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            done, self._done = self._done, []
        task = self._loop.create_task(self._hand_on(done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_on(self, done: list[tuple[Token, Outcome]]) -> None:
        try:
            await self._acknowledged(done)
        except Exception as e:
            # The entries stay in the outbox; the relay's loop comes to them.
            log.warning("acknowledged events could not be cleared", events=len(done), error=str(e)[:200])

    def _failed(self, error: KafkaError) -> None:
        if error.fatal():
            log.error("the producer is broken and is made anew", error=str(error))
            self._loop.call_soon_threadsafe(self._renew)

    def _renew(self) -> None:
        old, self._producer = self._producer, self._make()
        old.purge()
        old.poll(0)

    def _poll(self) -> None:
        while not self._stopping:
            self._producer.poll(0.1)

    async def close(self, seconds: float) -> None:
        """Waits for what is under way, at most so long."""
        end = self._loop.time() + seconds
        while (self.waiting or self._tasks) and self._loop.time() < end:  # noqa: ASYNC110 - fates come from a thread
            await asyncio.sleep(0.01)
        self._stopping = True
        await asyncio.to_thread(self._thread.join, 2)
        self._producer.purge()


async def make_topics(config: Kafka, seconds: float, *, limits: bool = False) -> bool:
    """Makes the topics where they are missing; with `limits`, gives ours to those that are there. Whether Kafka answered
    in time. Two at once are safe."""
    if config.partitions == 0:
        return True
    return await asyncio.to_thread(_make_topics, config, seconds, limits)


def _make_topics(config: Kafka, seconds: float, again: bool) -> bool:
    limits = {
        "retention.ms": str(events.RETENTION_MS),
        "max.message.bytes": str(events.MAX_MESSAGE_BYTES),
        "min.insync.replicas": str(config.min_insync),
    }
    # Kept in a name: a temporary one is collected and loses its work.
    admin = AdminClient({"bootstrap.servers": config.bootstrap_servers, "log_level": 2, **config.options})
    names = (events.TOPIC, events.DEAD_LETTER_TOPIC)
    topics = [
        NewTopic(n, num_partitions=config.partitions, replication_factor=config.replication, config=limits)
        for n in names
    ]
    for name, made in admin.create_topics(topics, operation_timeout=seconds, request_timeout=seconds).items():
        try:
            made.result()
            log.info("topic made", topic=name, partitions=config.partitions)
        except KafkaException as e:
            if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                log.warning("a topic could not be made", topic=name, reason=e.args[0].str())
                return False
    return _give_limits(admin, names, limits, seconds) if again else True


def _give_limits(admin: AdminClient, names: tuple[str, ...], limits: dict[str, str], seconds: float) -> bool:
    resources = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            name,
            incremental_configs=[
                ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in limits.items()
            ],
        )
        for name in names
    ]
    try:
        for done in admin.incremental_alter_configs(resources, request_timeout=seconds).values():
            done.result()
    except KafkaException as e:
        log.warning("the topics' limits could not be set", reason=e.args[0].str())
        return False
    return True
