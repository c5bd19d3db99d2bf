"""Reconciliation of orders with their reservations, outboxes and, optionally, events in the topic.

Reports each difference with its likely cause, and repairs those that have an unambiguous repair. Safe on a live system:
only orders older than `recovery.reject_after_seconds` are compared, and a difference is reported only if a second
check, a moment later, finds it as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.kit.errors import Unavailable
from market.orders.clients import Reservation
from market.orders.config import Recovery
from market.orders.domain import Order, Status, UnreadableOrder
from market.orders.reconciliation.differences import CAUSES, DifferenceType, Finding, Thresholds, compare, id_created_at
from market.orders.reconciliation.repairs import REPAIRS, RepairRequest, RepairResult
from market.orders.reconciliation.scans import Scans
from market.orders.reconciliation.topic_reader import TopicReader
from market.orders.service import Deps

_PAGE_SIZE = 500
_STOCK_PAGE_SIZE = 100
_MAX_CONCURRENCY = 32
# Events older than this may have left the topic.
_RETENTION = timedelta(milliseconds=events.RETENTION_MS) - timedelta(days=1)


class Difference(Struct, frozen=True, tag_field="kind", tag="difference"):
    """An output line: a difference. `kind` is the type of the output line, `difference` a DifferenceType.

    `repaired`: None if no repair was requested, or if the difference has no unambiguous repair.
    """

    difference: str
    id: str
    cause: str
    detail: str
    repaired: bool | None = None


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    """An output line: the progress of one step. `total`: None while it is unknown."""

    step: str
    done: int
    total: int | None


class Summary(Struct, frozen=True, tag_field="kind", tag="summary"):
    """The last output line.

    `messages`: how many were read from the topic, None if it was not read. `complete`: False if a dependency became
    unavailable.
    """

    orders: int
    reservations: int
    messages: int | None
    differences: int
    repaired: int
    seconds: float
    complete: bool = True
    error: str | None = None


# With --json, each is a line of JSON; None is null there.
OutputLine = Difference | Progress | Summary


async def reconcile(
    deps: Deps, recovery: Recovery, *, repair: bool, topic: TopicReader | None, second_check_seconds: float = 2.0
) -> AsyncIterator[OutputLine]:
    """Yield progress and differences, and exactly one summary at the end, even if a dependency becomes unavailable."""
    run = _Run(deps, recovery, repair, topic)
    started = time.monotonic()
    error = None
    try:
        async for line in run.lines(second_check_seconds):
            yield line
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

    def __init__(self, deps: Deps, recovery: Recovery, repair: bool, topic: TopicReader | None) -> None:
        self._deps = deps
        self._scans = Scans(deps.orders.collection)
        self._min_age = timedelta(seconds=recovery.reject_after_seconds)
        self._overdue_age = self._min_age + timedelta(seconds=3 * recovery.interval_seconds + 2)
        self._unsent_age = self._overdue_age + timedelta(seconds=2 * recovery.lease_seconds)
        self._repair = repair
        self._topic = topic
        self.orders = self.reservations = self.differences = self.repaired = 0

    async def _thresholds(self) -> Thresholds:
        now = await self._scans.server_time()
        return Thresholds(now - self._min_age, now - self._overdue_age, now - self._unsent_age, now - _RETENTION)

    async def lines(self, second_check_seconds: float) -> AsyncIterator[OutputLine]:
        if self._topic is not None:
            async for progress in self._read_topic(self._topic):
                yield progress
        thresholds = await self._thresholds()
        total = await self._scans.estimated_count()
        suspects: list[UUID] = []
        # By product id: whether a reservation holds units of it.
        reserved_by_product_id: dict[str, bool] = {}
        with_order_or_reservation: set[UUID] = set()
        async for order_id, order, reservation in self._pairs():
            if self._topic is not None and order_id in self._topic.topic_states:
                with_order_or_reservation.add(order_id)
            if isinstance(order, UnreadableOrder):
                yield self._difference(DifferenceType.UNREADABLE, str(order_id), order.reason)
                continue
            if order is not None and order.status is Status.UNKNOWN:
                yield self._difference(
                    DifferenceType.UNKNOWN_STATUS, str(order_id), f'its status is "{order.unknown_status}"'
                )
                continue
            if id_created_at(order_id) < thresholds.compared_before and any(
                compare(order, reservation, self._topic_state(order_id), thresholds)
            ):
                suspects.append(order_id)
            if order is not None:
                reserved_by_product_id.update(
                    (line.product_id, False) for line in order.lines if line.product_id not in reserved_by_product_id
                )
            if reservation is not None:
                reserved_by_product_id.update(
                    (product_id, True)
                    for product_id, _ in reservation.items
                    if reservation.active or product_id not in reserved_by_product_id
                )
            if (self.orders + self.reservations) % _PAGE_SIZE == 0:
                yield Progress("orders", self.orders, total)
        yield Progress("orders", self.orders, max(total, self.orders))
        if self._topic is not None:
            only_events = self._topic.topic_states.keys() - with_order_or_reservation
            suspects.extend(
                order_id for order_id in only_events if id_created_at(order_id) < thresholds.compared_before
            )
        for non_uuid_id in await self._scans.non_uuid_ids(_PAGE_SIZE):
            yield self._difference(DifferenceType.UNREADABLE, non_uuid_id, "its id is not a UUID")
        async for line in self._check_again(suspects, second_check_seconds):
            yield line
        async for line in self._check_stock_rows(reserved_by_product_id):
            yield line
        for position in self._topic.unreadable if self._topic is not None else ():
            yield self._difference(
                DifferenceType.EVENT_UNREADABLE, position, "the message at this topic/partition/offset cannot be parsed"
            )

    def _difference(
        self, difference: DifferenceType, subject: str, detail: str, repaired: bool | None = None
    ) -> Difference:
        self.differences += 1
        self.repaired += repaired is True
        return Difference(difference.value, subject, CAUSES[difference], detail, repaired)

    async def _read_topic(self, topic: TopicReader) -> AsyncIterator[Progress]:
        # (messages read, total) of each report.
        reports: list[tuple[int, int]] = []
        reading = asyncio.ensure_future(topic.read_to_end(lambda done, total: reports.append((done, total))))
        while not reading.done():
            await asyncio.wait({reading}, timeout=0.5)
            if reports:
                yield Progress("topic", *reports[-1])
        await reading

    def _topic_state(self, order_id: UUID) -> int | None:
        return None if self._topic is None else self._topic.topic_states.get(order_id, 0)

    async def _pairs(
        self,
    ) -> AsyncIterator[tuple[UUID, Order | UnreadableOrder | None, Reservation | None]]:
        """Merge orders and reservations, both by ascending id.

        Yield (id, order, reservation); one of them may be None.
        """
        orders, reservations = aiter(self._scans.orders(_PAGE_SIZE)), aiter(self._all_reservations())
        scanned, reservation = await anext(orders, None), await anext(reservations, None)
        while scanned is not None or reservation is not None:
            if reservation is None or (scanned is not None and scanned[0] < reservation.id):
                assert scanned is not None
                yield *scanned, None
                self.orders += 1
                scanned = await anext(orders, None)
            elif scanned is None or reservation.id < scanned[0]:
                yield reservation.id, None, reservation
                self.reservations += 1
                reservation = await anext(reservations, None)
            else:
                yield *scanned, reservation
                self.orders += 1
                self.reservations += 1
                scanned, reservation = await anext(orders, None), await anext(reservations, None)

    async def _all_reservations(self) -> AsyncIterator[Reservation]:
        last: UUID | None = None
        while page := await self._deps.inventory.list_reservations(last, _PAGE_SIZE):
            for reservation in page:
                yield reservation
            last = page[-1].id

    async def _check_again(self, suspects: Sequence[UUID], second_check_seconds: float) -> AsyncIterator[OutputLine]:
        if not suspects:
            return
        await asyncio.sleep(second_check_seconds)
        thresholds = await self._thresholds()
        for start in range(0, len(suspects), _MAX_CONCURRENCY):
            yield Progress("second check", start, len(suspects))
            part = suspects[start : start + _MAX_CONCURRENCY]
            orders = await asyncio.gather(*map(self._get_latest, part))
            if self._topic is not None:
                # Read after the orders: an event that was no longer in its order's outbox is in the topic by now.
                await self._topic.read_to_end(lambda *_: None)
            checked = await asyncio.gather(
                *(self._check(order_id, order, thresholds) for order_id, order in zip(part, orders, strict=True))
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
        self, order_id: UUID, order: Order | UnreadableOrder | None, thresholds: Thresholds
    ) -> list[Difference]:
        if isinstance(order, UnreadableOrder):
            # It has been changed since the first check.
            return [self._difference(DifferenceType.UNREADABLE, str(order_id), order.reason)]
        reservation = await self._get_reservation(order_id)
        if await self._get_latest(order_id) != order:
            # The order has changed meanwhile, so the two reads may show different states.
            return []
        found = []
        for finding in compare(order, reservation, self._topic_state(order_id), thresholds):
            repair = await self._try_repair(finding, order_id, order) if self._repair else None
            if repair is None:
                found.append(self._difference(finding.difference, str(order_id), finding.detail))
            else:
                found.append(self._difference(finding.difference, str(order_id), repair.detail, repair.repaired))
        return found

    async def _get_reservation(self, order_id: UUID) -> Reservation | None:
        previous = UUID(int=order_id.int - 1) if order_id.int else None
        page = await self._deps.inventory.list_reservations(previous, 1)
        return page[0] if page and page[0].id == order_id else None

    async def _try_repair(self, finding: Finding, order_id: UUID, order: Order | None) -> RepairResult | None:
        """Return the repair's result, or None if this difference has no unambiguous repair."""
        repair = REPAIRS.get(finding.difference)
        if repair is None:
            return None
        try:
            return await repair(RepairRequest(self._deps, order_id, order, finding.detail, finding.event_type))
        except Unavailable as e:
            return RepairResult(False, f"{finding.detail}; not repaired: {e}")

    async def _check_stock_rows(self, reserved_by_product_id: Mapping[str, bool]) -> AsyncIterator[OutputLine]:
        """Yield products whose stock is below zero, and products that are reserved but have no stock row.

        reserved_by_product_id: maps each product id to whether a reservation holds units of it.
        """
        product_ids = sorted(reserved_by_product_id)
        for start in range(0, len(product_ids), _STOCK_PAGE_SIZE):
            part = product_ids[start : start + _STOCK_PAGE_SIZE]
            stock = await self._deps.inventory.get_stock(part)
            for product_id in part:
                available = stock.get(product_id)
                if available is None and reserved_by_product_id[product_id]:
                    yield self._difference(DifferenceType.NO_STOCK_ROW, product_id, "reservations hold units of it")
                elif available is not None and available < 0:
                    yield self._difference(DifferenceType.STOCK_BELOW_ZERO, product_id, f"available: {available}")
