"""Kafka: a producer for asyncio, and the offsets of a partition.

    producer = Producer(config.kafka, "market.orders", max_message_bytes=4_194_304, on_delivery=clear_outbox)
    producer.send("orders", value, key=b"...", headers=[], token=order_id)   # the result is passed to clear_outbox
    await producer.send_and_wait("orders.dead-letter", value)                # returns once acknowledged

librdkafka runs callbacks in the thread that polls it. This module passes the results on to the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Producer as _Librdkafka

from market.kit.config import ConfigError, Kafka
from market.kit.kafka_settings import producer_settings, reason_for_refusal
from market.kit.process import logs
from market.kit.process.tasks import count_failure

Token = TypeVar("Token")
Headers = Sequence[tuple[str, str | bytes | None]]
log = logs.get_logger("kafka")

# The minimum time between two replacements of a librdkafka producer.
_MIN_REPLACE_SECONDS = 1.0

# A message that failed with one of these errors will never be accepted. After other errors, it can be sent again.
_PERMANENT = frozenset(
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

# The partition has no leader at the moment, or a new one that the client does not know yet. For a partition without a
# leader, librdkafka may report the error "unknown partition".
_NO_LEADER = frozenset(
    {KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._UNKNOWN_PARTITION}
)
_NO_LEADER_RETRY_SECONDS = 0.1


def watermark_offsets(consumer: Consumer, partition: TopicPartition, *, deadline: float) -> tuple[int, int]:
    """Return the first offset of the partition, and the offset after the last one. Blocks. Raises KafkaException.

    While the partition has no leader, for example because its broker is restarting, the call is retried.

    deadline: when to give up, in seconds of time.monotonic(). The last attempt may take until 0.1 s later
    """
    while True:
        try:
            low, high = consumer.get_watermark_offsets(partition, timeout=max(0.1, deadline - time.monotonic()))
            return low, high
        except KafkaException as e:
            if e.args[0].code() not in _NO_LEADER or time.monotonic() + _NO_LEADER_RETRY_SECONDS > deadline:
                raise
            time.sleep(_NO_LEADER_RETRY_SECONDS)


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The delivery result of a message. `error` is None once all in-sync replicas have acknowledged it."""

    error: KafkaError | None = None

    @property
    def permanent(self) -> bool:
        """Whether Kafka would reject the same message again."""
        return self.error is not None and self.error.code() in _PERMANENT


class Producer(Generic[Token]):
    """A librdkafka producer, and the thread that polls it. Must be constructed inside a running event loop.

    Raises ConfigError if librdkafka refuses the settings.

    client_id: the name of this client in the broker's logs and metrics.
    max_message_bytes: the maximum size of a message, including key and headers. A larger message is not sent, and its
        delivery result is a permanent error.
    delivery_seconds: how long a message may wait for its acknowledgement, retries included.
    linger_seconds: how long a message may wait to be sent in a batch with others.
    on_delivery: awaited in the event loop with a list of `(token, result)`: the results that have arrived since the
        last call. Each message that `send` accepted is in one of these lists. Exceptions are logged.
    on_failure: called, in any thread, when a delivery has failed but may be retried. Pass `TopicKeeper.check_soon`,
        because the topic may be missing.

    A fatal error makes a librdkafka producer unusable: all its pending messages fail. It is replaced by a new one, at
    most once a second.
    """

    def __init__(
        self,
        config: Kafka,
        client_id: str,
        *,
        max_message_bytes: int,
        delivery_seconds: float = 10.0,
        linger_seconds: float = 0.0,
        on_delivery: Callable[[list[tuple[Token, DeliveryResult]]], Awaitable[None]] | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._settings = producer_settings(
            config,
            client_id,
            max_message_bytes=max_message_bytes,
            delivery_seconds=delivery_seconds,
            linger_seconds=linger_seconds,
        )
        self._on_delivery = on_delivery
        self._on_failure = on_failure
        self._results: list[tuple[Token, DeliveryResult]] = []
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._replacing = False
        self._created_at = 0.0
        # Replaced librdkafka producers whose last results have not been polled yet.
        self._retired: list[_Librdkafka] = []
        try:
            self._librdkafka = self._create()
        except KafkaException as e:
            reason = reason_for_refusal(config, e)
            raise ConfigError(f"kafka: librdkafka refuses the settings, kafka.options included: {reason}") from None
        self._thread = threading.Thread(target=self._poll, name=f"kafka {client_id}", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """The number of messages whose delivery result is not known yet."""
        return len(self._librdkafka) + sum(len(old) for old in tuple(self._retired)) + len(self._results)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        token: Token,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int = -1,
    ) -> bool:
        """Queue a message. Return False if the queue is full, so the message was not accepted.

        token: any value. `on_delivery` gets it with the delivery result of the message.
        """

        def delivered(error: KafkaError | None, _: object) -> None:
            self._report(token, DeliveryResult(error))

        try:
            self._librdkafka.produce(
                topic, value, key, partition=partition, headers=list(headers), on_delivery=delivered
            )
        except BufferError:
            return False
        except KafkaException as e:
            # The message was rejected before it was sent: it is too large, or the producer has had a fatal error.
            self._report(token, DeliveryResult(e.args[0]))
            self._replace_if_fatal(e.args[0], self._librdkafka)
        return True

    async def send_and_wait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int = -1,
    ) -> None:
        """Send a message, and return once all in-sync replicas have acknowledged it.

        Raises KafkaException if the delivery failed. If the caller is cancelled, the message is still sent.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()

        def resolve(error: KafkaError | None) -> None:
            if waiter.done():
                return
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(KafkaException(error))

        def delivered(error: KafkaError | None, _: object) -> None:
            self._notify_failure(DeliveryResult(error))
            self._loop.call_soon_threadsafe(resolve, error)

        try:
            self._librdkafka.produce(
                topic, value, key, partition=partition, headers=list(headers), on_delivery=delivered
            )
        except BufferError:
            raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
        except KafkaException as e:
            self._replace_if_fatal(e.args[0], self._librdkafka)
            raise
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def fail_pending(self) -> None:
        """Stop sending the pending messages, and report them as failed. Kafka may have received some of them."""
        self._librdkafka.purge()

    async def close(self, timeout_seconds: float) -> None:
        """Wait up to `timeout_seconds` for the pending messages, and stop.

        Messages that are then still pending are dropped, and `on_delivery` does not get their results.
        """
        end = self._loop.time() + timeout_seconds
        while (self.pending or self._tasks) and self._loop.time() < end:  # noqa: ASYNC110 - results come from a thread
            await asyncio.sleep(0.01)
        self._stopping = True
        await asyncio.to_thread(self._thread.join, 2)
        self._librdkafka.purge()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(KafkaException(KafkaError(KafkaError._PURGE_INFLIGHT)))

    def _create(self) -> _Librdkafka:
        self._created_at = self._loop.time()
        return _Librdkafka(self._settings)

    def _poll(self) -> None:
        while not self._stopping and not self._loop.is_closed():
            self._poll_one(self._librdkafka, 0.1)
            for old in tuple(self._retired):
                self._poll_one(old, 0)
                if not len(old):
                    self._retired.remove(old)

    def _poll_one(self, librdkafka: _Librdkafka, timeout_seconds: float) -> None:
        try:
            librdkafka.poll(timeout_seconds)
        except KafkaException as e:
            # librdkafka raises a fatal error here, once.
            self._loop.call_soon_threadsafe(self._replace_if_fatal, e.args[0], librdkafka)
        except Exception as e:
            # A callback raised it. This thread must keep running, or no more results would arrive.
            count_failure("kafka-producer", e)

    def _notify_failure(self, result: DeliveryResult) -> None:
        if self._on_failure is not None and result.error is not None and not result.permanent:
            self._on_failure()

    def _report(self, token: Token, result: DeliveryResult) -> None:
        self._notify_failure(result)
        # This is called in the polling thread or in the event loop. One wake-up of the loop is enough for all results
        # until `_drain` runs.
        with self._lock:
            self._results.append((token, result))
            first = len(self._results) == 1
        if first:
            # In an empty context, because the results belong to several callers.
            self._loop.call_soon_threadsafe(self._drain, context=Context())

    def _drain(self) -> None:
        with self._lock:
            results, self._results = self._results, []
        task = self._loop.create_task(self._notify_delivery(results))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify_delivery(self, results: list[tuple[Token, DeliveryResult]]) -> None:
        if self._on_delivery is None:
            return
        try:
            await self._on_delivery(results)
        except Exception as e:
            log.warning("delivery callback failed", messages=len(results), error=str(e)[:200])

    def _replace_if_fatal(self, error: KafkaError, failed: _Librdkafka) -> None:
        # An error may be reported twice or late. Ignore it if its producer has already been replaced.
        if not error.fatal() or failed is not self._librdkafka or self._replacing:
            return
        log.error("fatal producer error, recreating producer", error=str(error))
        self._replacing = True
        # All messages that are queued or in flight fail. Some of their results arrive later, from librdkafka's threads.
        self._librdkafka.purge()
        # Replace the producer at most once a second, because the error may be permanent, such as a missing permission.
        self._loop.call_at(self._created_at + _MIN_REPLACE_SECONDS, self._replace)

    def _replace(self) -> None:
        self._replacing = False
        if self._stopping:
            return
        self._retired.append(self._librdkafka)
        self._librdkafka = self._create()
