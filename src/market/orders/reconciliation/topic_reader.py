"""TopicReader: which events of each order are in the topic `orders`, in what sequence, and with what content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from market.contracts import events
from market.kit.errors import Unavailable
from market.kit.kafka import consumer_settings
from market.orders.config import Kafka

# The topic state of an order, packed into one int to save memory: flags in the low bits, and the `content_hash` of the
# order's first event in the bits from CONTENT_HASH_SHIFT upwards. The flags say which event types the topic has, and
# what is wrong with them. OUT_OF_ORDER: the first order.created came after order.cancelled, and no order.cancelled has
# followed since. ID_MISMATCH: an event's id or key is not the order's. CONTENTS_DIFFER: the events have different
# contents.
CREATED_SEEN, CANCELLED_SEEN, OUT_OF_ORDER, ID_MISMATCH, CONTENTS_DIFFER = 1, 2, 4, 8, 16
CONTENT_HASH_SHIFT = 8
EVENT_BITS = {events.CREATED: CREATED_SEEN, events.CANCELLED: CANCELLED_SEEN}
_TIMEOUT_SECONDS = 10.0
_MAX_UNREADABLE = 10_000


class _Envelope(msgspec.Struct):
    specversion: str
    type: str


def content_hash(order: events.Order) -> int:
    """Return a 56-bit hash of an event's content without the status, which depends on when the event was published."""
    content = msgspec.json.encode(msgspec.structs.replace(order, status="pending"))
    return int.from_bytes(blake2b(content, digest_size=7).digest(), "big")


class TopicReader:
    """Owns a consumer without a group, and the state of every order with events in the topic (about 150 bytes each).

    `topic_states`: the topic state (see above) by order id. `messages`: the number of messages read. `unreadable`:
    topic/partition/offset of messages that no consumer can read, at most the first 10,000.
    """

    def __init__(self, config: Kafka) -> None:
        self.topic_states: dict[UUID, int] = {}
        self.messages = 0
        self.unreadable: list[str] = []
        self._decode = msgspec.json.Decoder(events.OrderEvent).decode
        self._decode_envelope = msgspec.json.Decoder(_Envelope).decode
        self._offsets: dict[int, int] = {}
        # librdkafka requires a group.id, although no group is joined and no offset is committed.
        settings = consumer_settings(
            config, "market.orders", f"reconcile-{uuid4()}", max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        self._consumer = Consumer({**settings, "enable.partition.eof": False, "auto.offset.reset": "earliest"})

    async def read_to_end(self, on_progress: Callable[[int, int], None]) -> None:
        """Read from where the last call stopped to the current end. `on_progress` gets (messages read, total).

        Raises Unavailable.
        """
        loop = asyncio.get_running_loop()

        def report(done: int, total: int) -> None:
            loop.call_soon_threadsafe(on_progress, done, total)

        try:
            await asyncio.to_thread(self._read, report)
        except KafkaException as e:
            raise Unavailable(f"the topic cannot be read: {e.args[0].str()}") from None

    def _read(self, report: Callable[[int, int], None]) -> None:
        metadata = self._consumer.list_topics(events.TOPIC, timeout=_TIMEOUT_SECONDS).topics[events.TOPIC]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        ends: dict[int, int] = {}
        for partition in metadata.partitions:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(events.TOPIC, partition), timeout=_TIMEOUT_SECONDS
            )
            self._offsets[partition] = max(low, self._offsets.get(partition, 0))
            ends[partition] = high
        total = sum(ends.values()) - sum(self._offsets[p] for p in ends)
        unfinished = {p for p, end in ends.items() if self._offsets[p] < end}
        self._consumer.assign([TopicPartition(events.TOPIC, p, self._offsets[p]) for p in unfinished])
        done = empty_polls = 0
        while unfinished:
            messages = self._consumer.consume(1000, 1.0)
            empty_polls = 0 if messages else empty_polls + 1
            if empty_polls > 2 * _TIMEOUT_SECONDS:
                raise Unavailable("the topic cannot be read to its end")
            for message in messages:
                partition, offset = message.partition(), message.offset()
                if message.error() is not None or partition is None or offset is None:
                    continue
                if partition in unfinished and offset < ends[partition]:
                    self._record(message, f"{events.TOPIC}/{partition}/{offset}")
                    done += 1
                    self._offsets[partition] = offset + 1
                    if offset + 1 >= ends[partition]:
                        unfinished.discard(partition)
            report(done, total)
        self._consumer.unassign()

    def _record(self, message: Message, position: str) -> None:
        self.messages += 1
        try:
            value = message.value() or b""
            if self._decode_envelope(value).type not in EVENT_BITS:
                # Newer versions may add event types.
                return
            event = self._decode(value)
            order_id, bit = UUID(event.subject), EVENT_BITS[event.type]
        except (msgspec.DecodeError, ValueError, KeyError):
            if len(self.unreadable) < _MAX_UNREADABLE:
                self.unreadable.append(position)
            return
        content = content_hash(event.data)
        state = self.topic_states.get(order_id, content << CONTENT_HASH_SHIFT)
        if bit == CREATED_SEEN and state & CANCELLED_SEEN and not state & CREATED_SEEN:
            state |= OUT_OF_ORDER
        elif bit == CANCELLED_SEEN:
            # The cancellation is the last event again: consumers that trust the last event have the right status.
            state &= ~OUT_OF_ORDER
        if event.id != str(events.event_id(order_id, event.type)) or message.key() != event.subject.encode():
            state |= ID_MISMATCH
        if state >> CONTENT_HASH_SHIFT != content:
            state |= CONTENTS_DIFFER
        self.topic_states[order_id] = state | bit

    async def close(self) -> None:
        """Close the connections to the brokers."""
        await asyncio.to_thread(self._consumer.close)
