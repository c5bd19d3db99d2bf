"""What is in the topic `orders`, as reconciliation needs to know it: which events of which order, in which order, and what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from market.contracts import events
from market.kit.errors import Unavailable
from market.orders.config import Kafka

# What is known of an order's events: which were seen, and what is wrong with them; above CONTENT bits, what they say.
CREATED_SEEN, CANCELLED_SEEN, WRONG_ORDER, FOREIGN, TWO_CONTENTS = 1, 2, 4, 8, 16
CONTENT = 8
EVENT_BITS = {events.CREATED: CREATED_SEEN, events.CANCELLED: CANCELLED_SEEN}
_SECONDS = 10.0
_MOST_UNREADABLE = 10_000


def content_of(order: events.Order) -> int:
    """56 bits of what an event says, but for the status: that is the one of the moment in which it was published."""
    said = msgspec.json.encode(msgspec.structs.replace(order, status="pending"))
    return int.from_bytes(blake2b(said, digest_size=7).digest(), "big")


class Topic:
    """Owns a consumer without a group, and what it has read: about 150 bytes per order."""

    def __init__(self, config: Kafka) -> None:
        self.seen: dict[UUID, int] = {}
        self.messages = 0
        # Topic, partition and offset of what no consumer can read; the first 10,000.
        self.unreadable: list[str] = []
        self._decode = msgspec.json.Decoder(events.OrderEvent).decode
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
                    self._take(message, f"{events.TOPIC}/{partition}/{offset}")
                    done += 1
                    self._at[partition] = offset + 1
                    if offset + 1 >= ends[partition]:
                        open_ones.discard(partition)
            tell(done, total)
        self._consumer.unassign()

    def _take(self, message: Message, place: str) -> None:
        self.messages += 1
        try:
            event = self._decode(message.value() or b"")
            order_id, bit = UUID(event.subject), EVENT_BITS[event.type]
        except (msgspec.DecodeError, ValueError, KeyError):
            if len(self.unreadable) < _MOST_UNREADABLE:
                self.unreadable.append(place)
            return
        content = content_of(event.data)
        seen = self.seen.get(order_id, content << CONTENT)
        if bit == CREATED_SEEN and seen & CANCELLED_SEEN and not seen & CREATED_SEEN:
            seen |= WRONG_ORDER
        elif bit == CANCELLED_SEEN:
            # Whoever takes the last word for true has the right one again.
            seen &= ~WRONG_ORDER
        if event.id != str(events.event_id(order_id, event.type)) or message.key() != event.subject.encode():
            seen |= FOREIGN
        if seen >> CONTENT != content:
            seen |= TWO_CONTENTS
        self.seen[order_id] = seen | bit

    async def close(self) -> None:
        """Lets go of the brokers."""
        await asyncio.to_thread(self._consumer.close)
