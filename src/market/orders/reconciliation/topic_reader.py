"""TopicReader: which events of each order are in the topic `orders`, in what sequence, and with what content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID, uuid4

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not say that they export these
    AdminClient,
    ConfigResource,
)
from msgspec import Struct
from msgspec.structs import replace

from market.contracts import currency, events, money
from market.kit.errors import Unavailable
from market.kit.kafka_settings import client_settings, consumer_settings
from market.orders.config import Kafka
from market.orders.reconciliation.scratch import ScratchDatabase

# The topic state of an order is a number of 63 bits. The low bits are flags. The bits from CONTENT_HASH_SHIFT upwards
# are the `content_hash` of the order's first event. The flags:
# CREATED_SEEN, CANCELLED_SEEN: the topic contains such an event for the order.
# OUT_OF_ORDER: the first order.created came after an order.cancelled, and no other order.cancelled has followed.
# ID_MISMATCH: an event's id or key does not match the order.
# CONTENTS_DIFFER: the order's events have different contents.
CREATED_SEEN, CANCELLED_SEEN, OUT_OF_ORDER, ID_MISMATCH, CONTENTS_DIFFER = 1, 2, 4, 8, 16
CONTENT_HASH_SHIFT = 7
EVENT_BITS = {events.CREATED: CREATED_SEEN, events.CANCELLED: CANCELLED_SEEN}
_TIMEOUT_SECONDS = 10.0
# A hundred years. A longer retention counts as unlimited.
_MAX_RETENTION_MS = 100 * 365 * 24 * 3600 * 1000
_MAX_MESSAGES_PER_POLL = 1_000
_POLL_SECONDS = 1.0
# The maximum number of bytes that the consumer buffers, apart from one message per partition.
_FETCH_BYTES = 8 * 1024 * 1024
_PAGE_SIZE = 1_000


class _Envelope(msgspec.Struct):
    specversion: str
    type: str


def content_hash(order: events.Order) -> int:
    """Return a 56-bit hash of an event's content without the status, which depends on when the event was published.

    Earlier versions wrote all money with two decimals, so they published 1.25 KWD where this one publishes 1.250. Both
    have the same hash.
    """
    if currency.written_decimals(order.currency) > 2:
        order = replace(
            order,
            items=[replace(item, unit_price=money.normalize_text(item.unit_price)) for item in order.items],
            total=money.normalize_text(order.total),
        )
    content = msgspec.json.encode(replace(order, status="pending"))
    return int.from_bytes(blake2b(content, digest_size=7).digest(), "big")


class TopicState(Struct, frozen=True):
    """The topic state of one order, as described above. `id`: the order's id."""

    id: UUID
    state: int


class Retention(Struct, frozen=True):
    """How long the topic keeps events.

    seconds: the setting `retention.ms`, in seconds. None if it is unlimited or unknown
    may_end_early: whether Kafka may delete events before `seconds` have passed, because of the setting
        `retention.bytes` or of compaction
    deleted_until: events from before this time may have been deleted from a partition. None if no partition has lost
        messages
    """

    seconds: float | None
    may_end_early: bool
    deleted_until: datetime | None = None


class TopicReader:
    """Reads the topic, and writes to `scratch` the topic state of every order that has events in the topic.

    `messages` is the number of messages that have been read. `retention` is known after the first `read_to_end`.
    Methods, and the constructor, may raise Unavailable.

    max_empty_polls: the maximum number of consecutive polls (of 1 s each) without a message before reading fails
    """

    def __init__(self, config: Kafka, scratch: ScratchDatabase, *, max_empty_polls: int = 20) -> None:
        self.messages = 0
        self.retention = Retention(None, may_end_early=True)
        self._config = config
        self._scratch = scratch
        self._max_empty_polls = max_empty_polls
        self._decode = msgspec.json.Decoder(events.OrderEvent).decode
        self._decode_envelope = msgspec.json.Decoder(_Envelope).decode
        # By partition, the offset of the next message.
        self._offsets: dict[int, int] = {}
        # librdkafka requires a group.id, although no group is joined and no offset is committed.
        settings = consumer_settings(
            config, "market.orders", f"reconcile-{uuid4()}", max_message_bytes=events.MAX_MESSAGE_BYTES
        )
        settings |= {
            "fetch.max.bytes": _FETCH_BYTES,
            "queued.max.messages.kbytes": _FETCH_BYTES // 1024,
            "auto.offset.reset": "earliest",
        }
        try:
            self._consumer = Consumer(settings)
        except KafkaException as e:
            raise Unavailable(f"the topic cannot be read: {e.args[0].str()}") from None

    def topic_states(self, order_ids: Sequence[UUID]) -> dict[UUID, int]:
        """Return the topic states by order id. Orders without events in the topic are left out."""
        return self._scratch.topic_states(order_ids)

    async def all_topic_states(self) -> AsyncIterator[TopicState]:
        """Yield the topic states of all orders with events in the topic, by ascending order id."""
        last: UUID | None = None
        while page := self._scratch.topic_states_after(last, _PAGE_SIZE):
            for order_id, state in page:
                yield TopicState(order_id, state)
            last = page[-1][0]

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
        if not self._offsets:
            self.retention = _describe_retention(self._config)
        metadata = self._consumer.list_topics(events.TOPIC, timeout=_TIMEOUT_SECONDS).topics[events.TOPIC]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        for partition in metadata.partitions:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(events.TOPIC, partition), timeout=_TIMEOUT_SECONDS
            )
            starts[partition], ends[partition] = max(low, self._offsets.setdefault(partition, 0)), high
            if low == high > self._offsets[partition]:
                # All messages of the partition were deleted.
                self._note_deletion(datetime.now(UTC))
                self._offsets[partition] = high
        total = sum(ends.values()) - sum(starts.values())
        unfinished = {p for p, end in ends.items() if starts[p] < end}
        self._consumer.assign([TopicPartition(events.TOPIC, p, starts[p]) for p in unfinished])
        done = empty_polls = 0
        reason = ""
        while unfinished:
            messages = self._consumer.consume(_MAX_MESSAGES_PER_POLL, _POLL_SECONDS)
            errors = [error for message in messages if (error := message.error()) is not None]
            if errors:
                reason = f": {errors[-1].str()}"
            # A poll that returns only errors counts as empty: librdkafka reports a damaged batch again and again.
            empty_polls = empty_polls + 1 if len(errors) == len(messages) else 0
            if empty_polls > self._max_empty_polls:
                raise Unavailable(f"the topic cannot be read to its end{reason}")
            accepted: list[Message] = []
            for message in messages:
                partition, offset = message.partition(), message.offset()
                if message.error() is not None or partition is None or offset is None:
                    continue
                if partition not in unfinished or offset >= ends[partition]:
                    continue
                if offset > self._offsets[partition]:
                    # The messages before this one have been deleted.
                    self._note_deletion(_time(message))
                accepted.append(message)
                self._offsets[partition] = offset + 1
                if offset + 1 >= ends[partition]:
                    unfinished.discard(partition)
            self._record(accepted)
            done += len(accepted)
            report(done, total)
        self._consumer.unassign()

    def _note_deletion(self, at: datetime) -> None:
        until = self.retention.deleted_until
        self.retention = replace(self.retention, deleted_until=max(at, until) if until else at)

    def _record(self, messages: Sequence[Message]) -> None:
        parsed: list[tuple[UUID, events.OrderEvent, bytes | None]] = []
        for message in messages:
            try:
                value = message.value() or b""
                if self._decode_envelope(value).type not in EVENT_BITS:
                    # Newer versions may add event types.
                    continue
                event = self._decode(value)
                parsed.append((UUID(event.subject), event, message.key()))
            except (msgspec.DecodeError, ValueError):
                self._scratch.add_unreadable(f"{events.TOPIC}/{message.partition()}/{message.offset()}")
        self.messages += len(messages)
        states = self._scratch.topic_states(list({order_id for order_id, _, _ in parsed}))
        for order_id, event, key in parsed:
            states[order_id] = _next_state(states.get(order_id), order_id, event, key)
        if states:
            self._scratch.set_topic_states(states)

    async def close(self) -> None:
        """Close the connections to the brokers."""
        await asyncio.to_thread(self._consumer.close)


def _next_state(state: int | None, order_id: UUID, event: events.OrderEvent, key: bytes | None) -> int:
    """Return the order's topic state after this event.

    state: the order's topic state before the event. None if this is its first event
    """
    bit, content = EVENT_BITS[event.type], content_hash(event.data)
    if state is None:
        state = content << CONTENT_HASH_SHIFT
    if bit == CREATED_SEEN and state & CANCELLED_SEEN and not state & CREATED_SEEN:
        state |= OUT_OF_ORDER
    elif bit == CANCELLED_SEEN:
        # Now the cancellation is the last event, as it should be.
        state &= ~OUT_OF_ORDER
    if event.id != str(events.event_id(order_id, event.type)) or key != event.subject.encode():
        state |= ID_MISMATCH
    if state >> CONTENT_HASH_SHIFT != content:
        state |= CONTENTS_DIFFER
    return state | bit


def _time(message: Message) -> datetime:
    kind, milliseconds = message.timestamp()
    return datetime.now(UTC) if kind == TIMESTAMP_NOT_AVAILABLE else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _describe_retention(config: Kafka) -> Retention:
    """Return the retention by the topic's settings, without `deleted_until`. Raises KafkaException."""
    admin = AdminClient(client_settings(config, "market.orders"))
    resource = ConfigResource(ConfigResource.Type.TOPIC, events.TOPIC)
    [described] = admin.describe_configs([resource], request_timeout=_TIMEOUT_SECONDS).values()
    try:
        settings = {name: entry.value for name, entry in described.result().items()}
    except KafkaException as e:
        if e.args[0].code() not in (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION):
            raise
        # The embedded broker of the local stack (librdkafka's mock cluster) reports no settings. It deletes the oldest
        # messages when its memory is full.
        return Retention(None, may_end_early=True)
    milliseconds = int(settings["retention.ms"])
    compacted = "compact" in settings["cleanup.policy"]
    return Retention(
        milliseconds / 1000
        if 0 <= milliseconds < _MAX_RETENTION_MS and "delete" in settings["cleanup.policy"]
        else None,
        may_end_early=compacted or int(settings["retention.bytes"]) >= 0,
    )
