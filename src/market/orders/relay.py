"""The relay: events go from the outbox to Kafka, first to last, each removed once it was acknowledged.

The process that confirms an order publishes its event at once, under the claim that the confirmation set. Where
Kafka does not take it, the claim is given back, and the loop of any pod tries again: while it fails one order at a
time, each time another one. What a crash left the loop finds once the claim has run out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from market.contracts import events
from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import Unavailable
from market.kit.faults import Clock, Faults
from market.kit.process import logs
from market.kit.resilience import backoff
from market.orders.config import Config
from market.orders.domain import Entry, Order, event
from market.orders.kafka import Outcome, Publisher
from market.orders.metrics import PUBLISHED, RECOVERED
from market.orders.store import Store

log = logs.get_logger("relay")

Token = tuple[UUID, Entry]
_ENCODER = msgspec.json.Encoder()
_ACKNOWLEDGED, _FAILED, _REFUSED = (PUBLISHED.labels(fate) for fate in ("acknowledged", "failed", "refused"))


class Relay:
    """Owns the publisher, and knows which orders' events are on their way."""

    def __init__(self, config: Config, store: Store, clock: Clock, faults: Faults | None) -> None:
        self._store = store
        self._clock = clock
        self._faults = faults
        self._claim_seconds = config.recovery.claim_seconds
        self._interval = config.recovery.relay_interval_seconds
        self._publisher: Publisher[Token] = Publisher(config.kafka, self._acknowledged)
        self._clear: Batcher[tuple[UUID, UUID], Order | None] = Batcher(
            self._clear_many, name="orders.clear", max_batch_size=256
        )
        self._give: Batcher[UUID, None] = Batcher(self._give_many, name="orders.give-back", max_batch_size=256)
        self._flying: set[UUID] = set()
        # Those of them that were claimed once more: the store has forgotten the first claim, and we had not heard of it.
        self._once_more: set[UUID] = set()
        self._landed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing = False
        # Events that Kafka or the producer did not take, as often as they were tried.
        self._failures = 0
        # Where the loop's last look at the outboxes ended, None: at their end. It goes round, so that an order that fails
        # again and again (its partition is away) does not come before those that were not tried.
        self._place: datetime | None = None

    def push(self, order: Order) -> None:
        """Publishes the first of the order's events; the next follow. The order must be claimed by this process."""
        if not order.outbox:
            return
        if order.id in self._flying:
            self._once_more.add(order.id)
            return
        self._flying.add(order.id)
        if self._faults:
            self._spawn(self._push_slowly(self._faults, order))
        else:
            self._send(order)

    async def _push_slowly(self, faults: Faults, order: Order) -> None:
        try:
            await faults.reach("orders.before-publish")
        except Unavailable:
            self._land(order.id)
        else:
            self._send(order)

    def _send(self, order: Order) -> None:
        entry = order.outbox[0]
        headers: list[tuple[str, str | bytes | None]] = [(events.REQUEST_ID_HEADER, entry.request_id.encode())]
        if entry.traceparent:
            headers.append((events.TRACE_HEADER, entry.traceparent.encode()))
        if not self._publisher.send(str(order.id), _ENCODER.encode(event(order, entry)), headers, (order.id, entry)):
            # No room in the producer just now.
            self._spawn(self._give_back([order.id]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _land(self, id: UUID) -> None:
        self._flying.discard(id)
        self._landed.set()
        if id in self._once_more:
            self._once_more.discard(id)
            self._spawn(self._resume(id))

    async def _resume(self, id: UUID) -> None:
        # Read anew: what has landed may have been all there was, or the claim another's by now.
        context.deadline.set(None)
        try:
            order = await self._store.claimed(id)
        except Unavailable:
            log.warning("an order's further events wait until the claim on them has run out", order_id=str(id))
            return
        if order is not None:
            self.push(order)

    async def nudge(self, id: UUID) -> None:
        """Publishes the order's events now, unless another process is about it."""
        order = await self._store.claim(id, self._claim_seconds, await self._store.now())
        if order is not None:
            self.push(order)

    async def _acknowledged(self, done: list[tuple[Token, Outcome]]) -> None:
        sent: list[tuple[UUID, UUID]] = []
        failed: list[UUID] = []
        for (order_id, entry), outcome in done:
            if outcome.error is None:
                sent.append((order_id, entry.id))
                _ACKNOWLEDGED.inc()
                self._failing = False
            elif outcome.for_good:
                _REFUSED.inc()
                log.error(
                    "Kafka refuses an event for good", order_id=str(order_id), type=entry.type, reason=outcome.error
                )
                self._spawn(self._refuse(order_id, entry, outcome.error))
            else:
                _FAILED.inc()
                if not self._failing:
                    log.warning("events cannot be published; they wait in the outbox", reason=outcome.error)
                self._failing = True
                failed.append(order_id)
        if failed:
            # Beside what was sent: whoever waits for the one must not wait for the other.
            self._spawn(self._give_back(failed))
        if not sent:
            return
        if self._faults:
            try:
                await self._faults.reach("orders.after-publish")
            except Unavailable:
                # As if the acknowledgement had never come.
                for order_id, _ in sent:
                    self._land(order_id)
                return
        await self._cleared(sent)

    async def _cleared(self, sent: Sequence[tuple[UUID, UUID]]) -> None:
        left: list[Order | None] = []
        try:
            for attempt in range(1, 6):
                try:
                    left = await self._clear.map(sent)
                    break
                except Unavailable:
                    # Repeated while the claim is ours; else the event is sent again, under the same id.
                    await asyncio.sleep(backoff(attempt))
            if self._faults and left:
                await self._faults.reach("orders.after-clear")
        finally:
            for order_id, _ in sent:
                self._land(order_id)
        for order in left:
            if order is not None:
                self.push(order)

    async def _clear_many(self, sent: list[tuple[UUID, UUID]]) -> Sequence[Order | None]:
        further = {order.id: order for order in await self._store.cleared(sent)}
        return [further.get(order_id) for order_id, _ in sent]

    async def _give_back(self, order_ids: Sequence[UUID]) -> None:
        """Lets any relay try again. Until then they count as on their way, so that nobody here sends them without a claim."""
        # Not within the time of the request that happened to bring them here.
        context.deadline.set(None)
        self._failures += len(order_ids)
        try:
            await self._give.map(order_ids)
        except Unavailable:
            # Then the claims run out.
            log.warning("the claims on unsent events could not be given back", orders=len(order_ids))
        finally:
            for order_id in order_ids:
                self._land(order_id)

    async def _give_many(self, order_ids: list[UUID]) -> Sequence[None]:
        await self._store.give_back(order_ids)
        return [None] * len(order_ids)

    async def _refuse(self, order_id: UUID, entry: Entry, reason: str) -> None:
        try:
            await self._store.refused(order_id, entry.id, reason, self._clock())
        except Unavailable as e:
            # Kafka will say so again.
            log.warning("a refused event could not be marked", order_id=str(order_id), reason=str(e))
        finally:
            self._land(order_id)

    async def step(self) -> float:
        """One look at what was left. Answers the seconds until the next."""
        failures = self._failures
        now = await self._store.now()
        # While Kafka takes nothing, one order is enough to find out when it does again.
        most = 1 if self._failing else 200
        ids, place = await self._store.unsent(self._claim_seconds, now, most, after=self._place)
        if not ids and self._place is not None:
            ids, place = await self._store.unsent(self._claim_seconds, now, most)
        self._place = place
        claimed = []
        for id in ids:
            order = await self._store.claim(id, self._claim_seconds, now)
            if order is None:
                continue
            if self._faults:
                await self._faults.reach("orders.relay-after-claim")
            claimed.append(id)
            self.push(order)
        if claimed:
            RECOVERED.labels("published").inc(len(claimed))
            await self._wait(claimed)
        # On without a pause as long as there is more, and all of it is taken.
        return 0.0 if self._place is not None and self._failures == failures else self._interval

    async def _wait(self, ids: Sequence[UUID]) -> None:
        # The producer gives up each message after delivery_seconds; after that the claims are over anyway.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._claim_seconds):
                while any(id in self._flying for id in ids):
                    self._landed.clear()
                    await self._landed.wait()

    async def close(self, seconds: float) -> None:
        """Waits for what is on its way, at most so long."""
        await self._publisher.close(seconds)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
