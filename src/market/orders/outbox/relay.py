"""The relay: publishes the events in the outboxes to Kafka, and removes each event that Kafka has acknowledged.

The events of an order are published one after the other, so that they stay in sequence.

Confirming an order also leases its outbox, and the same instance publishes the event at once. If Kafka does not accept
the event, the instance releases the lease, and any instance tries again in its next pass (`run_once`). If an instance
crashes, others take over its orders when its leases have expired.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from market.contracts import events
from market.kit.batching import Batcher
from market.kit.clock import Clock
from market.kit.errors import Unavailable
from market.kit.faults import Faults
from market.kit.kafka import DeliveryResult, Producer
from market.kit.process import logs
from market.kit.resilience import backoff
from market.kit.topics import TopicKeeper
from market.orders.config import Config
from market.orders.domain import Order, OutboxEntry, UnreadableOrder, next_event, to_event
from market.orders.metrics import EVENTS, RECOVERED
from market.orders.outbox.repository import OutboxRepository

log = logs.get_logger("outbox")

# The order's id, and the outbox entry that was sent. The producer returns both with the delivery result.
SentEvent = tuple[UUID, OutboxEntry]

_ENCODER = msgspec.json.Encoder()
_ACKNOWLEDGED, _FAILED, _REJECTED = (EVENTS.labels(result) for result in ("acknowledged", "failed", "rejected"))
_RECOVERED = RECOVERED.labels("published")
_PAGE_SIZE = 200
# The minimum time between two times that events are sent, and between two removals. Nobody waits for either, and events
# that are sent or removed together take less CPU time. After a pause without events, the first one is not delayed.
_SEND_PAUSE_SECONDS = 0.02
# If this many events wait for the end of a pause, they are sent at once.
_MAX_UNSENT = 1000
_REMOVAL_PAUSE_SECONDS = 0.1


class Relay:
    """Owns the producer, and publishes at most one event of an order at a time.

    An order is in flight from the sending of its event until the delivery result is stored: the event is removed from
    the outbox, or the lease is released, or the event is marked as stuck. Then the order is settled.

    Must be constructed inside a running event loop.

    outbox: the events to publish
    faults: None outside of tests
    topics: creates the topic if it is missing when Kafka does not accept an event
    """

    def __init__(
        self, config: Config, outbox: OutboxRepository, clock: Clock, faults: Faults | None, topics: TopicKeeper
    ) -> None:
        self.outbox = outbox
        self.topics = topics
        self._clock = clock
        self._faults = faults
        self._lease_seconds = config.recovery.lease_seconds
        self._interval_seconds = config.recovery.relay_interval_seconds
        self.producer: Producer[SentEvent] = Producer(
            config.kafka,
            "market.orders",
            max_message_bytes=events.MAX_MESSAGE_BYTES,
            delivery_seconds=config.kafka.delivery_seconds,
            linger_seconds=0.002,
            on_delivery=self._delivered,
            on_failure=topics.check_soon,
        )
        self._removals: Batcher[tuple[UUID, UUID], Order | None] = Batcher(
            self._remove_many,
            name="orders.remove-published",
            max_batch_size=256,
            pause_seconds=_REMOVAL_PAUSE_SECONDS,
        )
        self._lease_releases: Batcher[UUID, None] = Batcher(
            self._release_many, name="orders.release-lease", max_batch_size=256
        )
        # The orders in flight whose event has not been given to the producer yet. Emptied after each pause, and when
        # it is full.
        self._unsent: deque[Order] = deque()
        # Sends the events of these orders next. None: there are none, and the pause is over.
        self._next_sending: asyncio.Handle | None = None
        # By id of the orders in flight: when `publish` was called, in seconds of time.monotonic().
        self._in_flight: dict[UUID, float] = {}
        # The orders in flight that `run_once` has leased. They count as recovered once Kafka acknowledges the event.
        self._retried: set[UUID] = set()
        # The orders in flight for which `publish` was called again. Once such an order is settled, its lease is
        # renewed, and its remaining events are sent.
        self._publish_again: set[UUID] = set()
        # Whether the producer is being closed, or is closed.
        self._closing = False
        # Set whenever an order is settled.
        self._settled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Whether Kafka did not accept the last event.
        self._failing = False
        # How many times an event was not accepted and has to be sent again.
        self._failures = 0
        # Where the last pass over the outboxes stopped. None: it reached the end. The next pass continues there, so
        # that an order that keeps failing (because its partition is unavailable) does not block other orders.
        self._position: datetime | None = None

    @property
    def idle(self) -> bool:
        """Whether no order is in flight."""
        return not self._in_flight

    @property
    def unsent(self) -> int:
        """The number of orders in flight whose event waits for the end of a pause."""
        return len(self._unsent)

    def publish(self, order: Order) -> None:
        """Send the first event in the order's outbox, then the others. This instance must hold the lease."""
        if not order.outbox:
            return
        if next_event(order) is None:
            # Only a newer version can publish the event. Release the lease, so that its relay can take it.
            self._spawn(self._release_unpublished(order.id))
            return
        if (published_at := self._in_flight.get(order.id)) is not None:
            if time.monotonic() - published_at < self._lease_seconds:
                self._publish_again.add(order.id)
                return
            # The producer gives up on an event before the lease expires, so its delivery result was lost.
            log.error("delivery result overdue, sending the event again", order_id=str(order.id))
        self._in_flight[order.id] = time.monotonic()
        if self._faults:
            self._spawn(self._send_with_faults(self._faults, order))
        else:
            self._send_soon(order)

    async def publish_now(self, order_id: UUID) -> None:
        """Lease the order's outbox and publish it, unless another relay holds the lease. Raises Unavailable."""
        order = await self.outbox.lease(order_id, self._lease_seconds, await self.outbox.server_time())
        if order is not None:
            self.publish(order)

    async def run_once(self) -> float:
        """Make one pass, and return the seconds until the next one. Raises Unavailable.

        A pass leases the outboxes that have no valid lease, and publishes their events. An outbox has no valid lease if
        publishing failed, or if the instance that held the lease crashed.
        """
        failures = self._failures
        now = await self.outbox.server_time()
        # If Kafka did not accept the last event, try only one order.
        limit = 1 if self._failing else _PAGE_SIZE
        page = await self.outbox.list_unsent(self._lease_seconds, now, limit, after=self._position)
        if not page.order_ids and self._position is not None:
            page = await self.outbox.list_unsent(self._lease_seconds, now, limit)
        self._position = page.next_after
        leased = []
        for order_id in page.order_ids:
            try:
                order = await self.outbox.lease(order_id, self._lease_seconds, now)
            except UnreadableOrder:
                continue
            if order is None:
                continue
            if self._faults:
                await self._faults.fire_if_armed("orders.relay-after-lease")
            leased.append(order_id)
            if order_id not in self._in_flight:
                self._retried.add(order_id)
            self.publish(order)
        if leased:
            await self._wait_settled(leased)
        # If there are more orders and Kafka has accepted every event, continue at once.
        return 0.0 if self._position is not None and self._failures == failures else self._interval_seconds

    async def close(self, timeout_seconds: float) -> None:
        """Wait for events in flight and those after them, for at most `timeout_seconds`, and close the producer.

        From then on the producer gets no event. If `publish` is called nevertheless, the lease is released for another
        relay.
        """
        end = time.monotonic() + timeout_seconds
        self._send_unsent()
        while (self._in_flight or self._tasks) and time.monotonic() < end:  # noqa: ASYNC110 - tasks start others
            await asyncio.sleep(0.01)
        # A closed producer would still send an event, but its acknowledgement would be lost. The event would be
        # published again, so soon that it would be mailed twice.
        self._closing = True
        while self._unsent:
            self._spawn(self._release_leases([self._unsent.popleft().id]))
        await self.producer.close(max(0.0, end - time.monotonic()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    async def _send_with_faults(self, faults: Faults, order: Order) -> None:
        try:
            await faults.fire_if_armed("orders.before-publish")
        except Unavailable:
            self._settle(order.id)
        else:
            self._send_soon(order)

    def _send_soon(self, order: Order) -> None:
        """Send the order's event when the pause is over, together with those of other orders."""
        if self._closing:
            self._spawn(self._release_leases([order.id]))
            return
        self._unsent.append(order)
        if len(self._unsent) >= _MAX_UNSENT:
            self._send_unsent()
        elif self._next_sending is None:
            # In an empty context, because the next events belong to other requests.
            self._next_sending = asyncio.get_running_loop().call_soon(self._send_unsent, context=Context())

    def _send_unsent(self) -> None:
        if self._next_sending is not None:
            self._next_sending.cancel()
            self._next_sending = None
        if not self._unsent:
            return
        self._next_sending = asyncio.get_running_loop().call_later(
            _SEND_PAUSE_SECONDS, self._send_unsent, context=Context()
        )
        while self._unsent:
            self._send(self._unsent.popleft())

    def _send(self, order: Order) -> None:
        entry = order.outbox[0]
        headers: list[tuple[str, str | bytes | None]] = [
            (events.CONTENT_TYPE_HEADER, events.CONTENT_TYPE.encode()),
            (events.REQUEST_ID_HEADER, entry.request_id.encode()),
        ]
        trace = (
            (events.TRACE_HEADER, entry.traceparent),
            (events.TRACE_STATE_HEADER, entry.tracestate),
            (events.BAGGAGE_HEADER, entry.baggage),
        )
        headers += [(name, value.encode()) for name, value in trace if value]
        if not self.producer.send(
            events.TOPIC,
            _ENCODER.encode(to_event(order, entry)),
            key=str(order.id).encode(),
            headers=headers,
            token=(order.id, entry),
        ):
            # The producer's queue is full.
            self._spawn(self._release_leases([order.id]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # In an empty context, so that the work has neither the deadline nor the trace of the request that starts it.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settle(self, order_id: UUID) -> None:
        self._in_flight.pop(order_id, None)
        self._retried.discard(order_id)
        self._settled.set()
        if order_id in self._publish_again:
            self._publish_again.discard(order_id)
            self._spawn(self._resume(order_id))

    async def _resume(self, order_id: UUID) -> None:
        # Read the order again: it may have no more events, or another relay may hold the lease by now.
        try:
            order = await self.outbox.renew_lease(order_id)
        except Unavailable as e:
            # The remaining events are published when the lease has expired.
            log.warning("outbox lease not renewed", order_id=str(order_id), reason=str(e))
            return
        if order is not None:
            self.publish(order)

    async def _delivered(self, results: list[tuple[SentEvent, DeliveryResult]]) -> None:
        published: list[tuple[UUID, UUID]] = []
        failed: list[UUID] = []
        for (order_id, entry), result in results:
            if result.error is None:
                published.append((order_id, entry.id))
                _ACKNOWLEDGED.inc()
                if order_id in self._retried:
                    self._retried.remove(order_id)
                    _RECOVERED.inc()
                self._failing = False
            elif result.permanent:
                _REJECTED.inc()
                reason = str(result.error)
                log.error(
                    "event permanently rejected", order_id=str(order_id), event_type=entry.event_type, reason=reason
                )
                self._spawn(self._mark_stuck(order_id, entry, reason))
            else:
                _FAILED.inc()
                if not self._failing:
                    log.warning("publishing failed, events stay in the outbox", reason=str(result.error))
                self._failing = True
                failed.append(order_id)
        if failed:
            # In a task of its own, so that the removal below does not wait for it.
            self._spawn(self._release_leases(failed))
        if not published:
            return
        if self._faults:
            try:
                await self._faults.fire_if_armed("orders.after-publish")
            except Unavailable:
                # Act as if the acknowledgement had never arrived.
                for order_id, _ in published:
                    self._settle(order_id)
                return
        await self._remove(published)

    async def _remove(self, published: Sequence[tuple[UUID, UUID]]) -> None:
        remaining: list[Order | None] = []
        try:
            for attempt in range(1, 6):
                try:
                    remaining = await self._removals.map(published)
                    break
                except Unavailable:
                    # If the last attempt fails, too, the event stays in the outbox, and is published again with the
                    # same id.
                    await asyncio.sleep(backoff(attempt))
            if self._faults and remaining:
                await self._faults.fire_if_armed("orders.after-remove")
        finally:
            for order_id, _ in published:
                self._settle(order_id)
        for order in remaining:
            if order is not None:
                self.publish(order)

    async def _remove_many(self, published: list[tuple[UUID, UUID]]) -> Sequence[Order | None]:
        remaining = {order.id: order for order in await self.outbox.remove_published(published)}
        return [remaining.get(order_id) for order_id, _ in published]

    async def _release_leases(self, order_ids: Sequence[UUID]) -> None:
        """Release the leases, so that any relay may retry, and then settle the orders."""
        self._failures += len(order_ids)
        try:
            await self._lease_releases.map(order_ids)
        except Unavailable as e:
            # The leases expire on their own.
            log.warning("outbox leases not released", orders=len(order_ids), reason=str(e))
        finally:
            for order_id in order_ids:
                self._settle(order_id)

    async def _release_unpublished(self, order_id: UUID) -> None:
        try:
            await self._lease_releases(order_id)
        except Unavailable as e:
            # The lease expires on its own.
            log.warning("outbox leases not released", orders=1, reason=str(e))

    async def _release_many(self, order_ids: list[UUID]) -> Sequence[None]:
        await self.outbox.release_leases(order_ids)
        return [None] * len(order_ids)

    async def _mark_stuck(self, order_id: UUID, entry: OutboxEntry, reason: str) -> None:
        try:
            await self.outbox.mark_stuck(order_id, entry.id, reason, self._clock())
        except Unavailable as e:
            # The event will be sent again, and Kafka will reject it again.
            log.warning("stuck event not marked", order_id=str(order_id), reason=str(e))
        finally:
            self._settle(order_id)

    async def _wait_settled(self, order_ids: Sequence[UUID]) -> None:
        # A safeguard: the producer gives up on each event earlier, after `kafka.delivery_seconds`.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._lease_seconds):
                while any(order_id in self._in_flight for order_id in order_ids):
                    self._settled.clear()
                    await self._settled.wait()
