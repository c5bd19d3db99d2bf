"""Reconciliation: orders, reservations, outbox and (where asked) the topic are compared, each difference is named
with its likely cause, and what has one right answer is mended.

It reads on a live system: only ids older than the recovery deadline are looked at, and what differs is looked at
again, a while later, before it is called a difference.
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
from market.orders.clients import Held
from market.orders.config import Recovery
from market.orders.differences import CAUSES, Ages, Kind, compare, minted
from market.orders.documents import Unreadable
from market.orders.domain import Order
from market.orders.mending import MENDING, Case
from market.orders.service import Shop
from market.orders.store import Store
from market.orders.topic import Topic

_PAGE = 500
_AT_ONCE = 32
# Events older than this may have left the topic.
_KEPT = timedelta(milliseconds=events.RETENTION_MS) - timedelta(days=1)


class Difference(Struct, frozen=True, tag_field="kind", tag="difference"):
    """`repaired`: null: it was not asked for, or has no one right answer."""

    difference: str
    id: str
    cause: str
    detail: str
    repaired: bool | None = None


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    step: str
    done: int
    total: int | None


class Summary(Struct, frozen=True, tag_field="kind", tag="summary"):
    """`messages`: of the topic; null where it was not read. `complete` false: a store did not answer to the end."""

    orders: int
    reservations: int
    messages: int | None
    differences: int
    repaired: int
    seconds: float
    complete: bool = True
    error: str | None = None


Line = Difference | Progress | Summary


async def reconcile(
    shop: Shop, recovery: Recovery, *, repair: bool, topic: Topic | None, again_seconds: float = 2.0
) -> AsyncIterator[Line]:
    """Progress, differences, and one summary at the end; also when a store fails on the way."""
    run = _Run(shop, recovery, repair, topic)
    started = time.monotonic()
    error = None
    try:
        async for line in run.lines(again_seconds):
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
    """One reconciliation's figures."""

    def __init__(self, shop: Shop, recovery: Recovery, repair: bool, topic: Topic | None) -> None:
        self._shop = shop
        self._after = timedelta(seconds=recovery.after_seconds)
        self._overdue = self._after + timedelta(seconds=3 * recovery.interval_seconds + 2)
        self._events = self._overdue + timedelta(seconds=2 * recovery.claim_seconds)
        self._repair = repair
        self._topic = topic
        self.orders = self.reservations = self.differences = self.repaired = 0

    async def _ages(self) -> Ages:
        now = await self._shop.store.now()
        return Ages(now - self._after, now - self._overdue, now - self._events, now - _KEPT)

    async def lines(self, again_seconds: float) -> AsyncIterator[Line]:
        if self._topic is not None:
            async for line in self._read_topic(self._topic):
                yield line
        ages = await self._ages()
        total = await self._shop.store.estimate()
        suspects: list[UUID] = []
        # Whether somebody holds some of it.
        products: dict[str, bool] = {}
        met: set[UUID] = set()
        async for id, order, held in self._pairs():
            if self._topic is not None and id in self._topic.seen:
                met.add(id)
            if isinstance(order, Unreadable):
                self.differences += 1
                yield Difference(Kind.UNREADABLE.value, str(id), CAUSES[Kind.UNREADABLE], order.reason)
                continue
            if minted(id) < ages.ids and any(compare(order, held, self._seen(id), ages)):
                suspects.append(id)
            if order is not None:
                products.update((line.product_id, False) for line in order.lines if line.product_id not in products)
            if held is not None:
                products.update((product, True) for product, _ in held.items if held.live or product not in products)
            if (self.orders + self.reservations) % _PAGE == 0:
                yield Progress("orders", self.orders, total)
        yield Progress("orders", self.orders, max(total, self.orders))
        if self._topic is not None:
            suspects.extend(id for id in self._topic.seen.keys() - met if minted(id) < ages.ids)
        for foreign in await self._shop.store.foreign(_PAGE):
            self.differences += 1
            yield Difference(Kind.UNREADABLE.value, foreign, CAUSES[Kind.UNREADABLE], "its id is no UUID")
        async for difference in self._look_again(suspects, again_seconds):
            yield difference
        async for difference in self._stock_rows(products):
            yield difference
        for place in self._topic.unreadable if self._topic is not None else ():
            self.differences += 1
            yield Difference(
                Kind.EVENT_UNREADABLE.value, place, CAUSES[Kind.EVENT_UNREADABLE], "partition and offset of the topic"
            )

    async def _read_topic(self, topic: Topic) -> AsyncIterator[Progress]:
        told: list[tuple[int, int]] = []
        reading = asyncio.ensure_future(topic.read_on(lambda done, total: told.append((done, total))))
        while not reading.done():
            await asyncio.wait({reading}, timeout=0.5)
            if told:
                yield Progress("topic", *told[-1])
        await reading

    def _seen(self, id: UUID) -> int | None:
        return None if self._topic is None else self._topic.seen.get(id, 0)

    async def _pairs(self) -> AsyncIterator[tuple[UUID, Order | Unreadable | None, Held | None]]:
        """Orders and reservations side by side: both come in order of id."""
        orders, held = aiter(_every_order(self._shop.store, _PAGE)), aiter(self._every_reservation())
        order, reservation = await anext(orders, None), await anext(held, None)
        while order is not None or reservation is not None:
            if reservation is None or (order is not None and order.id < reservation.id):
                assert order is not None
                yield order.id, order, None
                self.orders += 1
                order = await anext(orders, None)
            elif order is None or reservation.id < order.id:
                yield reservation.id, None, reservation
                self.reservations += 1
                reservation = await anext(held, None)
            else:
                yield order.id, order, reservation
                self.orders += 1
                self.reservations += 1
                order, reservation = await anext(orders, None), await anext(held, None)

    async def _every_reservation(self) -> AsyncIterator[Held]:
        last: UUID | None = None
        while page := await self._shop.inventory.reservations(last, _PAGE):
            for held in page:
                yield held
            last = page[-1].id

    async def _look_again(self, suspects: Sequence[UUID], again_seconds: float) -> AsyncIterator[Line]:
        if not suspects:
            return
        await asyncio.sleep(again_seconds)
        ages = await self._ages()
        for start in range(0, len(suspects), _AT_ONCE):
            yield Progress("second look", start, len(suspects))
            part = suspects[start : start + _AT_ONCE]
            orders = await asyncio.gather(*(self._shop.store.read(id) for id in part))
            if self._topic is not None:
                # After the orders: what left an outbox before it was read is in the topic now.
                await self._topic.read_on(lambda *_: None)
            for found in await asyncio.gather(
                *(self._judge(id, order, ages) for id, order in zip(part, orders, strict=True))
            ):
                for difference in found:
                    self.differences += 1
                    self.repaired += difference.repaired is True
                    yield difference
        yield Progress("second look", len(suspects), len(suspects))

    async def _judge(self, id: UUID, order: Order | None, ages: Ages) -> list[Difference]:
        held = await self._reservation(id)
        if await self._shop.store.read(id) != order:
            # Somebody is about it just now: what was read does not belong together.
            return []
        found = []
        for kind, detail in list(compare(order, held, self._seen(id), ages)):
            repaired, said = await self._mend(kind, id, order, detail) if self._repair else (None, detail)
            found.append(Difference(kind.value, str(id), CAUSES[kind], said, repaired))
        return found

    async def _reservation(self, id: UUID) -> Held | None:
        page = await self._shop.inventory.reservations(UUID(int=id.int - 1) if id.int else None, 1)
        return page[0] if page and page[0].id == id else None

    async def _stock_rows(self, products: Mapping[str, bool]) -> AsyncIterator[Line]:
        """`products`: whether somebody holds some of it."""
        every = sorted(products)
        for start in range(0, len(every), 100):
            part = every[start : start + 100]
            stock = await self._shop.inventory.stock(part)
            for product in part:
                left = stock.get(product)
                if left is None and products[product]:
                    self.differences += 1
                    yield Difference(
                        Kind.NO_STOCK_ROW.value, product, CAUSES[Kind.NO_STOCK_ROW], "reservations hold some of it"
                    )
                elif left is not None and left < 0:
                    self.differences += 1
                    yield Difference(
                        Kind.BELOW_ZERO.value, product, CAUSES[Kind.BELOW_ZERO], f"{left} are free to sell"
                    )

    async def _mend(self, kind: Kind, id: UUID, order: Order | None, detail: str) -> tuple[bool | None, str]:
        """Whether it is mended (None: it has no one right answer), and what there is to say."""
        mend = MENDING.get(kind.value)
        if mend is None:
            return None, detail
        try:
            return await mend(Case(self._shop, id, order, detail))
        except Unavailable as e:
            return False, f"{detail}; not mended: {e}"


async def _every_order(store: Store, page: int = 500) -> AsyncIterator[Order | Unreadable]:
    """All orders in order of id, page by page."""
    last: UUID | None = None
    while orders := await store.after(last, page):
        for order in orders:
            yield order
        last = orders[-1].id
