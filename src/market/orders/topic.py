"""What is in the topic `orders`, as reconciliation needs to know it: which events of which order, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition
from msgspec import Struct

from market.contracts import events
from market.kit.errors import Unavailable
from market.orders.config import Kafka

CREATED_SEEN, CANCELLED_SEEN, WRONG_ORDER = 1, 2, 4
_BITS = {events.CREATED: CREATED_SEEN, events.CANCELLED: CANCELLED_SEEN}
_SECONDS = 10.0


class _Head(Struct):
    """The part of an event that tells which one it is."""

    type: str
    subject: str


class Topic:
    """Owns a consumer without a group, and what it has read: about 150 bytes per order."""

    def __init__(self, config: Kafka) -> None:
        self.seen: dict[UUID, int] = {}
        self.messages = 0
        self.unreadable = 0
        self._decode = msgspec.json.Decoder(_Head).decode
        self._at: dict[int, int] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": config.bootstrap_servers,
                # No group is joined and no offset committed; librdkafka wants a name all the same.
                "group.id": f"reconcile-{uuid4()}",
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "auto.offset.reset": "earliest",
                "fetch.message.max.bytes": events.MAX_MESSAGE_BYTES,
                "queued.max.messages.kbytes": 32 * 1024,
                "log_level": 2,
                **config.options,
            }
        )

    async def read_on(self, progress: Callable[[int, int], None]) -> None:
        """Reads from where it stopped to what is the end now. Raises Unavailable."""
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, done, total)

        try:
            await asyncio.to_thread(self._read, tell)
        except KafkaException as e:
            raise Unavailable(f"the topic cannot be read: {e.args[0].str()}") from None

    def _read(self, tell: Callable[[int, int], None]) -> None:
        found = self._consumer.list_topics(events.TOPIC, timeout=_SECONDS).topics[events.TOPIC]
        if found.error is not None:
            raise KafkaException(found.error)
        ends: dict[int, int] = {}
        for partition in found.partitions:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(events.TOPIC, partition), timeout=_SECONDS)
            self._at[partition] = max(low, self._at.get(partition, 0))
            ends[partition] = high
        total = sum(ends.values()) - sum(self._at[p] for p in ends)
        open_ones = {p for p, end in ends.items() if self._at[p] < end}
        self._consumer.assign([TopicPartition(events.TOPIC, p, self._at[p]) for p in open_ones])
        done = silent = 0
        while open_ones:
            messages = self._consumer.consume(1000, 1.0)
            silent = 0 if messages else silent + 1
            if silent > 2 * _SECONDS:
                raise Unavailable("the topic cannot be read to its end")
            for message in messages:
                partition, offset = message.partition(), message.offset()
                if message.error() is not None or partition is None or offset is None:
                    continue
                if partition in open_ones and offset < ends[partition]:
                    self._take(message.value())
                    done += 1
                    self._at[partition] = offset + 1
                    if offset + 1 >= ends[partition]:
                        open_ones.discard(partition)
            tell(done, total)
        self._consumer.unassign()

    def _take(self, value: bytes | str | None) -> None:
        self.messages += 1
        try:
            head = self._decode(value or b"")
            order_id, bit = UUID(head.subject), _BITS[head.type]
        except (msgspec.DecodeError, ValueError, KeyError):
            self.unreadable += 1
            return
        seen = self.seen.get(order_id, 0)
        if bit == CREATED_SEEN and seen & CANCELLED_SEEN and not seen & CREATED_SEEN:
            seen |= WRONG_ORDER
        elif bit == CANCELLED_SEEN:
            # Whoever takes the last word for true has the right one again.
            seen &= ~WRONG_ORDER
        self.seen[order_id] = seen | bit

    async def close(self) -> None:
        """Lets go of the brokers."""
        await asyncio.to_thread(self._consumer.close)
