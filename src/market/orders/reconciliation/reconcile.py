"""Reconciliation of orders with their reservations, outboxes and, optionally, events in the topic.

It reports each difference with its likely cause, and on request repairs those that have an unambiguous repair.

It is safe on a live system: it compares only orders older than `recovery.reject_after_seconds`, and reports a
difference only if a second check, some seconds later, finds it as well. Unreadable documents and messages, unknown
statuses, and wrong stock rows are checked only once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Struct, field

from market.contracts import events
from market.kit.errors import Unavailable
from market.orders.clients import Reservation
from market.orders.config import Recovery
from market.orders.domain import Order, Status, UnreadableOrder
from market.orders.mongodb.collection import EPOCH
from market.orders.reconciliation.differences import CAUSES, DifferenceType, Finding, Thresholds, compare, id_created_at
from market.orders.reconciliation.repairs import REPAIRS, RepairRequest, RepairResult
from market.orders.reconciliation.scans import Scans
from market.orders.reconciliation.scratch import ScratchDatabase
from market.orders.reconciliation.topic_reader import TopicReader
from market.orders.service import Deps

_PAGE_SIZE = 500
_STOCK_PAGE_SIZE = 100
_MAX_CONCURRENCY = 32
# The maximum number of orders in memory that wait for the second check.
_MAX_SUSPECTS = 10_000
# The maximum number of product ids in memory. More are written to the scratch database.
_MAX_PRODUCTS = 10_000
# Consumers recognize an event as a duplicate only if it is younger than this.
_DEDUPLICATION_WINDOW = timedelta(milliseconds=events.RETENTION_MS) - timedelta(days=1)
# How far the clocks of brokers, stores and services may differ, and how long publishing may take.
_CLOCK_MARGIN = timedelta(minutes=10)


class Difference(Struct, frozen=True, tag_field="kind", tag="difference"):
    """An output record: a difference. In JSON, `kind` is the type of the record, and `difference` the DifferenceType.

    `id`: the id of an order, a product or a document, or the position of a message in Kafka. `repaired`: None if no
    repair was requested, or if the difference has no unambiguous repair.
    """

    difference_type: str = field(name="difference")
    id: str
    cause: str
    detail: str
    repaired: bool | None = None


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    """An output record: the progress of one step (topic, orders, second check). `total`: None while it is unknown."""

    step: str
    done: int
    total: int | None


class Summary(Struct, frozen=True, tag_field="kind", tag="summary"):
    """The last output record.

    `messages`: how many messages were read from the topic, or None if the topic was not read. `complete`: False if a
    dependency became unavailable; `error` then says which.
    """

    orders: int
    reservations: int
    messages: int | None
    differences: int
    repaired: int
    seconds: float
    complete: bool = True
    error: str | None = None


# With --json, each record is printed as one line of JSON.
OutputRecord = Difference | Progress | Summary


async def reconcile(
    deps: Deps,
    recovery: Recovery,
    scratch: ScratchDatabase,
    *,
    repair: bool,
    topic: TopicReader | None,
    second_check_seconds: float = 2.0,
) -> AsyncIterator[OutputRecord]:
    """Yield progress and differences, and exactly one summary at the end, even if a dependency becomes unavailable.

    Memory is bounded, because the orders, the reservations and what the topic contains of each order are read in pages
    sorted by id, and merged.
    """
    run = _Run(deps, recovery, scratch, repair, topic)
    started = time.monotonic()
    error = None
    try:
        async for record in run.records(second_check_seconds):
            yield record
    except Unavailable as e:
        error = str(e)
    yield Summary(
        orders=run.orders,
        reservations=run.reservations,
        messages=topic.messages if topic else None,
        differences=run.differences,
        repaired=run.repaired,
        seconds=round(time.monotonic() - started, 3),
        complete=error is None,
        error=error,
    )


class _Run:
    """One reconciliation and its counts."""

    def __init__(
        self, deps: Deps, recovery: Recovery, scratch: ScratchDatabase, repair: bool, topic: TopicReader | None
    ) -> None:
        self._scratch = scratch
        self._deps = deps
        self._scans = Scans(deps.orders.collection)
        self._min_age = timedelta(seconds=recovery.reject_after_seconds)
        # The time for three passes of recovery.
        self._overdue_age = self._min_age + timedelta(seconds=3 * recovery.interval_seconds + 2)
        # The relay may also have to wait for a lease to expire.
        self._unsent_age = self._overdue_age + timedelta(seconds=2 * recovery.lease_seconds)
        self._repair = repair
        self._topic = topic
        # By product id: whether a reservation holds units of the product.
        self._reserved_by_product_id: dict[str, bool] = {}
        self.orders = self.reservations = self.differences = self.repaired = 0

    def _thresholds(self, now: datetime) -> Thresholds:
        retained_since = republished_since = EPOCH
        if self._topic is not None:
            retention = self._topic.retention
            # An event from before `deleted_until` may have been published, and then deleted from the topic.
            deleted_until = EPOCH if retention.deleted_until is None else retention.deleted_until + _CLOCK_MARGIN
            if retention.seconds is not None:
                retained_since = now - timedelta(seconds=retention.seconds) + _CLOCK_MARGIN
            if retention.may_end_early:
                retained_since = max(retained_since, deleted_until)
            republished_since = max(deleted_until, now - _DEDUPLICATION_WINDOW)
        return Thresholds(
            now - self._min_age, now - self._overdue_age, now - self._unsent_age, retained_since, republished_since
        )

    async def records(self, second_check_seconds: float) -> AsyncIterator[OutputRecord]:
        if self._topic is not None:
            async for progress in self._read_topic(self._topic):
                yield progress
        started_at = await self._scans.server_time()
        if self._topic is not None:
            # Read what was published during the first read, which may have taken long.
            async for progress in self._read_topic(self._topic):
                yield progress
        thresholds = self._thresholds(started_at)
        total = await self._scans.estimated_count()
        suspects: list[UUID] = []
        async for order_id, order, reservation, topic_state in self._merged():
            if (self.orders + self.reservations) % _PAGE_SIZE == 0:
                yield Progress("orders", self.orders, total)
            self._add_products(order, reservation)
            if isinstance(order, UnreadableOrder):
                yield self._difference(DifferenceType.UNREADABLE, str(order_id), order.reason)
                continue
            if order is not None and order.status is Status.UNKNOWN:
                yield self._difference(
                    DifferenceType.UNKNOWN_STATUS, str(order_id), f'its status is "{order.unknown_status}"'
                )
                continue
            if id_created_at(order_id) < thresholds.compared_before and any(
                compare(order, reservation, topic_state, thresholds)
            ):
                suspects.append(order_id)
            if len(suspects) >= _MAX_SUSPECTS:
                async for record in self._check_again(suspects, second_check_seconds):
                    yield record
                suspects.clear()
        yield Progress("orders", self.orders, max(total, self.orders))
        async for non_uuid_id in self._scans.non_uuid_ids():
            yield self._difference(DifferenceType.UNREADABLE, non_uuid_id, "its id is not a UUID")
        async for record in self._check_again(suspects, second_check_seconds):
            yield record
        async for record in self._check_stock_rows():
            yield record
        for position in self._scratch.unreadable():
            yield self._difference(
                DifferenceType.EVENT_UNREADABLE, position, "the message at this topic/partition/offset cannot be parsed"
            )

    def _add_products(self, order: Order | UnreadableOrder | None, reservation: Reservation | None) -> None:
        products = self._reserved_by_product_id
        for line in order.lines if isinstance(order, Order) else ():
            products.setdefault(line.product_id, False)
        if reservation is not None:
            for product_id, _ in reservation.items:
                products[product_id] = reservation.active or products.get(product_id, False)
        if len(products) >= _MAX_PRODUCTS:
            self._write_products()

    def _write_products(self) -> None:
        self._scratch.add_products(self._reserved_by_product_id)
        self._reserved_by_product_id.clear()

    def _difference(
        self, difference_type: DifferenceType, item_id: str, detail: str, repaired: bool | None = None
    ) -> Difference:
        self.differences += 1
        self.repaired += repaired is True
        return Difference(difference_type.value, item_id, CAUSES[difference_type], detail, repaired)

    async def _read_topic(self, topic: TopicReader) -> AsyncIterator[Progress]:
        # The latest report: (messages read, total).
        reports: deque[tuple[int, int]] = deque(maxlen=1)
        reading = asyncio.ensure_future(topic.read_to_end(lambda done, total: reports.append((done, total))))
        while not reading.done():
            await asyncio.wait({reading}, timeout=0.5)
            if reports:
                yield Progress("topic", *reports[-1])
        await reading

    async def _merged(
        self,
    ) -> AsyncIterator[tuple[UUID, Order | UnreadableOrder | None, Reservation | None, int | None]]:
        """Merge orders, reservations and topic states, all by ascending id.

        Yield (id, order, reservation, topic state). The order or the reservation is None if there is none with this id.
        The topic state is None if the topic was not read, and 0 if it contains no events for the order.
        """
        orders, reservations = aiter(self._scans.orders()), aiter(self._all_reservations())
        states = aiter(self._topic.all_topic_states()) if self._topic is not None else None
        scanned, reservation = await anext(orders, None), await anext(reservations, None)
        state = await anext(states, None) if states is not None else None
        while True:
            heads = [head.id for head in (reservation, state) if head is not None]
            if scanned is not None:
                heads.append(scanned[0])
            if not heads:
                return
            lowest = min(heads)
            topic_state = None if states is None else 0
            current_order = current_reservation = None
            if scanned is not None and scanned[0] == lowest:
                current_order, scanned = scanned[1], await anext(orders, None)
                self.orders += 1
            if reservation is not None and reservation.id == lowest:
                current_reservation, reservation = reservation, await anext(reservations, None)
                self.reservations += 1
            if states is not None and state is not None and state.id == lowest:
                topic_state, state = state.state, await anext(states, None)
            yield lowest, current_order, current_reservation, topic_state

    async def _all_reservations(self) -> AsyncIterator[Reservation]:
        last: UUID | None = None
        while page := await self._deps.inventory.list_reservations(last, _PAGE_SIZE):
            for reservation in page:
                yield reservation
            last = page[-1].id

    async def _check_again(self, suspects: Sequence[UUID], second_check_seconds: float) -> AsyncIterator[OutputRecord]:
        if not suspects:
            return
        await asyncio.sleep(second_check_seconds)
        for start in range(0, len(suspects), _MAX_CONCURRENCY):
            yield Progress("second check", start, len(suspects))
            batch = suspects[start : start + _MAX_CONCURRENCY]
            now = await self._scans.server_time()
            orders = await asyncio.gather(*map(self._get_latest, batch))
            if self._topic is not None:
                # Read the topic after the orders: by now it contains the events that are no longer in the outboxes.
                await self._topic.read_to_end(lambda *_: None)
                found = self._topic.topic_states(batch)
            # Determine the thresholds again, because Kafka may have deleted events while the topic was read.
            thresholds = self._thresholds(now)
            states = [None if self._topic is None else found.get(order_id, 0) for order_id in batch]
            checked = await asyncio.gather(
                *(
                    self._check(order_id, order, state, thresholds)
                    for order_id, order, state in zip(batch, orders, states, strict=True)
                )
            )
            for differences in checked:
                for difference in differences:
                    yield difference
        yield Progress("second check", len(suspects), len(suspects))

    async def _get_latest(self, order_id: UUID) -> Order | UnreadableOrder | None:
        try:
            return await self._deps.orders.get_latest(order_id)
        except UnreadableOrder as e:
            return e

    async def _check(
        self,
        order_id: UUID,
        order: Order | UnreadableOrder | None,
        topic_state: int | None,
        thresholds: Thresholds,
    ) -> list[Difference]:
        if isinstance(order, UnreadableOrder):
            # The document has changed since the first check.
            return [self._difference(DifferenceType.UNREADABLE, str(order_id), order.reason)]
        reservation = await self._get_reservation(order_id)
        if await self._get_latest(order_id) != order:
            # The order has changed meanwhile, so it cannot be compared with the reservation.
            return []
        found = []
        for finding in compare(order, reservation, topic_state, thresholds):
            repair = await self._try_repair(finding, order_id, order) if self._repair else None
            if repair is None:
                found.append(self._difference(finding.difference_type, str(order_id), finding.detail))
            else:
                found.append(self._difference(finding.difference_type, str(order_id), repair.detail, repair.repaired))
        return found

    async def _get_reservation(self, order_id: UUID) -> Reservation | None:
        # The list begins after the id that is passed, so pass the preceding id.
        previous = UUID(int=order_id.int - 1) if order_id.int else None
        page = await self._deps.inventory.list_reservations(previous, 1)
        return page[0] if page and page[0].id == order_id else None

    async def _try_repair(self, finding: Finding, order_id: UUID, order: Order | None) -> RepairResult | None:
        """Return the repair's result, or None if this difference has no unambiguous repair."""
        repair = REPAIRS.get(finding.difference_type)
        if repair is None:
            return None
        try:
            return await repair(RepairRequest(self._deps, order_id, order, finding.detail, finding.event_type))
        except Unavailable as e:
            return RepairResult(False, f"{finding.detail}; not repaired: {e}")

    async def _check_stock_rows(self) -> AsyncIterator[OutputRecord]:
        """Yield a difference for each product whose stock is below zero, or that is reserved but has no stock row.

        Checks the products of all orders and reservations.
        """
        self._write_products()
        last = ""
        while reserved := self._scratch.products_after(last, _STOCK_PAGE_SIZE):
            stock = await self._deps.inventory.get_stock(list(reserved))
            for product_id, is_reserved in reserved.items():
                available = stock.get(product_id)
                if available is None and is_reserved:
                    yield self._difference(DifferenceType.NO_STOCK_ROW, product_id, "reservations hold units of it")
                elif available is not None and available < 0:
                    yield self._difference(DifferenceType.STOCK_BELOW_ZERO, product_id, f"available: {available}")
                last = product_id
