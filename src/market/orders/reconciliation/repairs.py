"""The repairs of reconciliation.

Each is a step that the service itself would take, conditional or idempotent, so that the system can stay live.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.orders.domain import (
    CANCELLATION_BY_STATUS,
    InsufficientStock,
    Order,
    OutboxEntry,
    ReservationRejected,
    Status,
)
from market.orders.reconciliation.differences import Kind
from market.orders.service import Deps, advance


class Case(Struct, frozen=True):
    """A difference to repair: `detail` and `event_type` are the Finding's. `order` is None if it does not exist."""

    deps: Deps
    order_id: UUID
    order: Order | None
    detail: str
    event_type: str | None


class RepairResult(Struct, frozen=True):
    """Whether the difference is repaired. `detail` is that of the difference, followed by what was done."""

    repaired: bool
    detail: str


async def reject(case: Case) -> RepairResult:
    """Reject a pending order that nothing else will finish, and release its stock."""
    assert case.order is not None
    order = await advance(case.deps, case.order, overdue=True)
    if order.release_due:
        await advance(case.deps, order)
    return RepairResult(order.status not in CANCELLATION_BY_STATUS, f"{case.detail}; it is now {order.status}")


async def release(case: Case) -> RepairResult:
    """Release stock that no order needs: the order does not exist, or is known to be rejected or cancelled."""
    released = await case.deps.inventory.release(case.order_id)
    if case.order is not None and case.order.release_due:
        await case.deps.orders.clear_release_due(case.order_id)
    return RepairResult(True, f"{case.detail}; {'released' if released else 'no stock was held'}")


async def reserve_again(case: Case) -> RepairResult:
    """Reserve the stock of a confirmed order again."""
    assert case.order is not None
    result = await case.deps.inventory.reserve(case.order_id, case.order.lines)
    if isinstance(result, InsufficientStock):
        shortages = ", ".join(
            f"product {s.product_id}: requested {s.requested}, available {s.available}" for s in result.shortages
        )
        return RepairResult(False, f"{case.detail}; out of stock: {shortages}")
    if isinstance(result, ReservationRejected):
        return RepairResult(False, f"{case.detail}; inventory rejected it: {result.detail}")
    current = await case.deps.orders.get_latest(case.order_id)
    if current is None or current.status is not case.order.status:
        # The order has been cancelled since; its own release may have come before this reservation.
        await case.deps.inventory.release(case.order_id)
        return RepairResult(False, f"{case.detail}; the order has been cancelled")
    return RepairResult(True, f"{case.detail}; reserved again")


async def publish(case: Case) -> RepairResult:
    """Make the events in the outbox due again, including rejected ones."""
    queued = await case.deps.relay.outbox.requeue(case.order_id, None, case.deps.clock())
    return RepairResult(queued, f"{case.detail}; {'queued for the relay' if queued else 'the outbox is empty by now'}")


async def publish_again(case: Case) -> RepairResult:
    """Add the missing event to the outbox again. Its id is the same, so that consumers recognize a duplicate."""
    assert case.event_type is not None
    queued = await _requeue(case, case.event_type)
    if case.event_type == events.CREATED and case.order is not None and case.order.status is Status.CANCELLED:
        # Otherwise the last event in the topic would be the creation.
        queued = await _requeue(case, events.CANCELLED) and queued
    return _requeued(case, queued)


async def publish_cancellation_again(case: Case) -> RepairResult:
    """Send the cancellation again after the late creation, so that the last event in the topic is right."""
    return _requeued(case, await _requeue(case, events.CANCELLED))


def _requeued(case: Case, queued: bool) -> RepairResult:
    return RepairResult(queued, f"{case.detail}; {'queued for the relay' if queued else 'the order no longer exists'}")


async def _requeue(case: Case, event_type: str) -> bool:
    """Add the event to the outbox. Return whether it is there now, no matter which process added it."""
    entry = OutboxEntry(events.event_id(case.order_id, event_type), event_type, case.deps.clock())
    if await case.deps.relay.outbox.requeue(case.order_id, entry, case.deps.clock()):
        return True
    current = await case.deps.orders.get_latest(case.order_id)
    return current is not None and any(e.id == entry.id for e in current.outbox)


# A kind that is missing here has no single right repair, and is only reported.
REPAIRS: Mapping[Kind, Callable[[Case], Awaitable[RepairResult]]] = {
    Kind.PENDING: reject,
    Kind.NO_ORDER: release,
    Kind.NOT_RELEASED: release,
    Kind.RELEASE_OVERDUE: release,
    Kind.NO_RESERVATION: reserve_again,
    Kind.EVENT_OVERDUE: publish,
    Kind.EVENT_REJECTED: publish,
    Kind.EVENT_MISSING: publish_again,
    Kind.EVENTS_OUT_OF_ORDER: publish_cancellation_again,
}
