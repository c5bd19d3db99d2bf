"""The use cases: placing, cancelling, and `advance`, the one function that takes an order a step on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from market.contracts import events
from market.kit import context, ids
from market.kit.errors import IdempotencyKeyReused, NotFound, Unavailable
from market.kit.faults import Clock, Faults
from market.kit.process import logs
from market.orders.clients import Inventory, Products
from market.orders.domain import (
    CANCELLING,
    CONFIRM,
    REJECT,
    Entry,
    Move,
    NewOrder,
    Order,
    OrderCancelled,
    OutOfStock,
    Reason,
    Refused,
    Short,
    Shortage,
    Status,
    Step,
    Wanted,
    after_reserve,
    moved,
    next_step,
    priced,
)
from market.orders.metrics import RECOVERED
from market.orders.relay import Relay
from market.orders.store import KeyTaken, Store

log = logs.get_logger("orders")

# A pause before a step is tried again, where its outcome was lost.
_AGAIN_SECONDS = 0.05
_RELEASE_SECONDS = 5.0


@dataclass
class Shop:
    """What the use cases work with."""

    store: Store
    products: Products
    inventory: Inventory
    relay: Relay
    clock: Clock
    faults: Faults | None = None
    # Work that goes on after its request was answered.
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(32))

    async def reach(self, point: str) -> None:
        if self.faults:
            await self.faults.reach(point)

    def later(self, work: Coroutine[Any, Any, object]) -> None:
        """Does it without anyone waiting. What fails is left to the loops."""

        async def run() -> None:
            context.deadline.set(None)
            async with self.at_once:
                try:
                    with context.deadline_in(_RELEASE_SECONDS):
                        await work
                except Unavailable as e:
                    log.warning("left to recovery", reason=str(e))
                except Exception:
                    log.exception("left to recovery")

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Placed(Struct, frozen=True):
    """`replayed`: it was placed before, under the same key."""

    order: Order
    replayed: bool


async def place(shop: Shop, new: NewOrder, key: str | None) -> Placed:
    """A confirmed order, or the one that the key made before.

    Raises IdempotencyKeyReused, UnknownProducts, BadInput, PriceChanged, OutOfStock, OrderCancelled; and Unavailable
    with `order_id` where it could not be decided.
    """
    digest = None
    if key is not None:
        digest = new.digest()
        if before := await _before(shop, key, digest):
            return before
    if shop.inventory.is_open:
        # Nothing was begun, so nothing has to be recovered.
        raise Unavailable("inventory does not answer")
    products = await shop.products.priced([w.product_id for w in new.wanted])
    lines, total, currency = priced(new, products)
    order = Order(
        id=ids.new_id(),
        user=new.user,
        email=new.email,
        lines=lines,
        total=total,
        currency=currency,
        created_at=_milliseconds(shop.clock()),
        key=key,
        digest=digest,
    )
    with _undecided(order.id, _KEYED if key is not None else _UNKEYED):
        await shop.reach("orders.before-intent")
        while True:
            try:
                await shop.store.add(order)
                break
            except KeyTaken:
                assert key is not None
                assert digest is not None
                if before := await _before(shop, key, digest):
                    return before
                # Rejected meanwhile: the key is free again.
                await asyncio.sleep(_AGAIN_SECONDS)
        await shop.reach("orders.after-intent")
        order = await _decided(shop, order)
        await shop.reach("orders.before-answer")
    return Placed(_verdict(order), replayed=False)


async def _before(shop: Shop, key: str, digest: bytes) -> Placed | None:
    """What the key made before, carried on to its end where it is pending. None: the key is free."""
    found = await shop.store.by_key(key)
    if found is None:
        return None
    order_id, known = found
    if known != digest:
        raise IdempotencyKeyReused()
    with _undecided(order_id, _KEYED):
        order = await shop.store.read(order_id)
        if order is None or order.key != key:
            return None
        order = await _decided(shop, order)
    return Placed(order if order.status is Status.CANCELLED else _verdict(order), replayed=True)


async def _decided(shop: Shop, order: Order) -> Order:
    """The order once it is no longer pending. What it owes then is under way, and is not waited for."""
    while next_step(order) is Step.RESERVE:
        order = await advance(shop, order)
    step = next_step(order)
    if step is Step.RELEASE:
        shop.later(advance(shop, order))
    elif step is Step.PUBLISH and order.claimed_by == shop.store.me:
        await advance(shop, order)
    return order


def _verdict(order: Order) -> Order:
    """The order, if it is confirmed; else raises why it is not."""
    if order.status is Status.CONFIRMED:
        return order
    if order.status is Status.CANCELLED:
        raise OrderCancelled(order.id)
    if order.shortages:
        raise OutOfStock(order.shortages)
    raise Unavailable("the order was not decided in time and was given up; order again", order_id=str(order.id))


# What the client can do when the outcome is open.
_KEYED = "the same Idempotency-Key gives the final answer later, and the order can be read by its id"
_UNKEYED = "read the order by its id to see what became of it; without an Idempotency-Key, ordering again may make a second one"
_CANCELLING = "cancel it again, or read it by its id to see what became of it"


@contextmanager
def _undecided(order_id: UUID, then: str) -> Iterator[None]:
    """Whatever leaves the outcome open names the order, and what can be done then."""
    try:
        yield
    except Unavailable as e:
        if e.facts().get("order_id"):
            raise
        raise Unavailable(
            f"the order could not be decided yet: {e}; {then}", retry_after=e.retry_after, order_id=str(order_id)
        ) from e


async def cancel(shop: Shop, order_id: UUID) -> bool:
    """The order is cancelled (or was rejected). Whether nothing is due any more: False: the goods follow.

    Raises NotFound, and Unavailable where it may be cancelled or not.
    """
    with _undecided(order_id, _CANCELLING):
        order = await shop.store.read(order_id)
        if order is None:
            raise NotFound("order", order_id)
        while move := CANCELLING.get(order.status):
            await shop.reach("orders.before-cancel-status")
            order = await _cancelled(shop, order, move)
        if order.status is Status.REJECTED:
            return True
    if order.outbox and order.claimed_by is None:
        shop.later(shop.relay.nudge(order.id))
    if not order.release_due:
        return True
    try:
        # Inventory gets the time that is left, but for what the answer needs.
        with context.deadline_in(max(0.2, context.remaining(60.0) - 0.5)):
            await advance(shop, order)
    except Unavailable as e:
        log.warning("the goods follow", order_id=str(order_id), reason=str(e))
        return False
    return True


async def _cancelled(shop: Shop, order: Order, move: Move) -> Order:
    at = shop.clock()
    after = None
    try:
        after = await shop.store.move_and_read(order.id, move, at=at, entry=_entry(order, move, at))
        await shop.reach("orders.after-cancel-status")
    except Unavailable:
        # Applied or not: the document says.
        after = None
    return after or await _read(shop, order.id)


async def advance(shop: Shop, order: Order, *, overdue: bool = False) -> Order:
    """Takes the order one step on, and answers it as it is then. Idempotent: any process may, at any time, again.

    Raises Unavailable: the step's outcome is open, and the order may be advanced again.
    """
    step = next_step(order, overdue=overdue)
    if step is Step.RESERVE:
        return await _reserve(shop, order)
    if step is Step.REJECT:
        await shop.reach("orders.recovery-before-reject")
        return await _move(shop, order, REJECT, Reason.EXPIRED)
    if step is Step.RELEASE:
        await shop.inventory.release(order.id)
        await shop.reach("orders.after-release")
        await shop.store.released(order.id)
        await shop.reach("orders.after-release-cleared")
        return msgspec.structs.replace(order, release_due=False)
    if step is Step.PUBLISH:
        shop.relay.push(order)
    return order


async def _reserve(shop: Shop, order: Order) -> Order:
    await shop.reach("orders.before-reserve")
    answer = await shop.inventory.reserve(order.id, [Wanted(line.product_id, line.quantity) for line in order.lines])
    await shop.reach("orders.after-reserve")
    move = after_reserve(answer)
    if isinstance(answer, Short):
        return await _move(shop, order, move, Reason.SHORT, answer.shortages)
    if isinstance(answer, Refused):
        # Somebody has cancelled this order meanwhile; what the document says holds, and it is rejected only if pending.
        log.warning("inventory refuses the reservation", order_id=str(order.id), reason=answer.detail)
        return await _move(shop, order, move, Reason.REFUSED)
    await shop.reach("orders.before-confirm")
    return await _move(shop, order, move)


async def _move(
    shop: Shop, order: Order, move: Move, reason: Reason | None = None, shortages: tuple[Shortage, ...] = ()
) -> Order:
    at = shop.clock()
    entry = _entry(order, move, at)
    try:
        done = await shop.store.move(order.id, move, at=at, entry=entry, reason=reason, shortages=shortages)
        await shop.reach("orders.after-confirm" if move is CONFIRM else "orders.after-reject-status")
    except Unavailable:
        done = False
    if done:
        order = moved(order, move, entry)
        if move is CONFIRM:
            return msgspec.structs.replace(order, claimed_by=shop.store.me, confirmed_at=at)
        return msgspec.structs.replace(order, reason=reason, shortages=shortages)
    current = await _read(shop, order.id)
    if current.status is Status.PENDING:
        await asyncio.sleep(_AGAIN_SECONDS)
    return current


async def _read(shop: Shop, order_id: UUID) -> Order:
    order = await shop.store.read(order_id)
    if order is None:
        raise Unavailable("the order is not there yet")
    return order


def _entry(order: Order, move: Move, at: datetime) -> Entry | None:
    if move.event is None:
        return None
    return Entry(
        events.event_id(order.id, move.event),
        move.event,
        _milliseconds(at),
        context.request_id.get(),
        context.traceparent.get(),
    )


def _milliseconds(at: datetime) -> datetime:
    """As MongoDB keeps it."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


async def recover(shop: Shop, after_seconds: float, retry_seconds: float, most: int = 200) -> bool:
    """Rejects what has been pending for too long, and gives back what is due. Whether there may be more."""
    now = await shop.store.now()
    overdue = await shop.store.overdue(now - timedelta(seconds=after_seconds), most)
    await _each(shop, overdue, True)
    releases = await shop.store.releases(now - timedelta(seconds=retry_seconds), most)
    failed = await _each(shop, releases, False)
    return not failed and most in (len(overdue), len(releases))


async def _each(shop: Shop, order_ids: list[UUID], overdue: bool) -> int:
    limit = asyncio.Semaphore(16)

    async def one(order_id: UUID) -> bool:
        async with limit:
            order = await shop.store.read(order_id)
            if order is None:
                return True
            try:
                if next_step(order, overdue=overdue) is Step.REJECT:
                    order = await advance(shop, order, overdue=True)
                    RECOVERED.labels("rejected").inc()
                    log.info("recovery rejected an order that was pending for too long", order_id=str(order_id))
                if next_step(order) is Step.RELEASE:
                    await advance(shop, order)
                    RECOVERED.labels("released").inc()
            except Unavailable:
                if not shop.inventory.is_open:
                    # One that cannot be released does not hold up those behind it.
                    await shop.store.release_failed(order_id)
                return False
            return True

    results = await asyncio.gather(*(one(id) for id in order_ids), return_exceptions=True)
    errors = [r for r in results if isinstance(r, BaseException)]
    if errors:
        raise errors[0]
    return results.count(False)
