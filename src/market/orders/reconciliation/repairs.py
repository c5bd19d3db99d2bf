"""The repairs of reconciliation.

Each repair is a step that the service itself could take. It is conditional or idempotent, so the service can keep
running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.orders.domain import InsufficientStock, Order, OutboxEntry, ReservationRejected, Status
from market.orders.reconciliation.differences import DifferenceType
from market.orders.service import Deps, advance


class RepairRequest(Struct, frozen=True):
    """A difference to repair, with the `detail` and `event_type` of its Finding. `order`: None if there is no order."""

    deps: Deps
    order_id: UUID
    order: Order | None
    detail: str
    event_type: str | None


class RepairResult(Struct, frozen=True):
    """Whether the difference is repaired. `detail`: the detail of the difference, followed by what was done."""

    repaired: bool
    detail: str


async def reject(request: RepairRequest) -> RepairResult:
    """Reject an overdue pending order, and release its stock."""
    assert request.order is not None
    order = await advance(request.deps, request.order, overdue=True)
    if order.release_due:
        await advance(request.deps, order)
    return RepairResult(
        order.status in (Status.REJECTED, Status.CANCELLED), f"{request.detail}; it is now {order.status}"
    )


async def release(request: RepairRequest) -> RepairResult:
    """Release the stock of an order that does not exist, or is rejected or cancelled."""
    released = await request.deps.inventory.release(request.order_id)
    if request.order is not None and request.order.release_due:
        await request.deps.orders.clear_release_due(request.order_id)
    return RepairResult(True, f"{request.detail}; {'released' if released else 'no stock was held'}")


async def reserve_again(request: RepairRequest) -> RepairResult:
    """Reserve the stock of a confirmed order again. Release it if the order was cancelled or deleted meanwhile."""
    assert request.order is not None
    result = await request.deps.inventory.reserve(request.order_id, request.order.lines)
    if isinstance(result, InsufficientStock):
        shortages = ", ".join(
            f"product {s.product_id}: requested {s.requested}, available {s.available}" for s in result.shortages
        )
        return RepairResult(False, f"{request.detail}; out of stock: {shortages}")
    if isinstance(result, ReservationRejected):
        return RepairResult(False, f"{request.detail}; inventory rejected the reservation: {result.detail}")
    current = await request.deps.orders.get_latest(request.order_id)
    if current is None or current.status is Status.CANCELLED:
        # The cancellation may have released the stock before it was reserved here.
        await request.deps.inventory.release(request.order_id)
        state = "no longer exists" if current is None else "has been cancelled"
        return RepairResult(False, f"{request.detail}; the order {state}")
    if current.status is Status.UNKNOWN:
        # Only a newer version of the service knows whether the order needs the stock.
        return RepairResult(
            False, f'{request.detail}; reserved again, but the status is now "{current.unknown_status}"'
        )
    return RepairResult(True, f"{request.detail}; reserved again")


async def requeue_outbox(request: RepairRequest) -> RepairResult:
    """Make the events in the outbox due again, including stuck ones."""
    queued = await request.deps.relay.outbox.requeue(request.order_id, None, request.deps.clock())
    state = "queued for the relay" if queued else "the outbox is empty by now, or only a newer version can publish it"
    return RepairResult(queued, f"{request.detail}; {state}")


async def requeue_missing_event(request: RepairRequest) -> RepairResult:
    """Add the missing event to the outbox again, with the same id, so that consumers recognize a duplicate."""
    assert request.event_type is not None
    queued = await _requeue(request, request.event_type)
    if request.event_type == events.CREATED and request.order is not None and request.order.status is Status.CANCELLED:
        # order.cancelled must be the order's last event in the topic, so publish it again, too.
        queued = await _requeue(request, events.CANCELLED) and queued
    return _requeue_result(request, queued)


async def requeue_cancellation(request: RepairRequest) -> RepairResult:
    """Add order.cancelled to the outbox again, so that it becomes the order's last event in the topic."""
    return _requeue_result(request, await _requeue(request, events.CANCELLED))


def _requeue_result(request: RepairRequest, queued: bool) -> RepairResult:
    state = "queued for the relay" if queued else "the order no longer exists, or its event has just been published"
    return RepairResult(queued, f"{request.detail}; {state}")


async def _requeue(request: RepairRequest, event_type: str) -> bool:
    """Add the event to the outbox. Return whether the outbox has the event now, no matter which process added it."""
    now = request.deps.clock()
    at = now if request.order is None else _time_of_event(request.order, event_type)
    entry = OutboxEntry(events.event_id(request.order_id, event_type), event_type, at)
    if await request.deps.relay.outbox.requeue(request.order_id, entry, now):
        return True
    current = await request.deps.orders.get_latest(request.order_id)
    return current is not None and any(e.id == entry.id for e in current.outbox)


def _time_of_event(order: Order, event_type: str) -> datetime:
    """Return when the order's status changed, or when the order was created if an earlier version has not stored that.

    It must not be the current time: notifications looks up only events that are not new in its log of sent mails.
    """
    changed_at = order.confirmed_at if event_type == events.CREATED else order.ended_at
    return changed_at or order.created_at


# A type that is not listed here has no unambiguous repair, and is only reported.
REPAIRS: Mapping[DifferenceType, Callable[[RepairRequest], Awaitable[RepairResult]]] = {
    DifferenceType.PENDING: reject,
    DifferenceType.NO_ORDER: release,
    DifferenceType.NOT_RELEASED: release,
    DifferenceType.RELEASE_OVERDUE: release,
    DifferenceType.NO_RESERVATION: reserve_again,
    DifferenceType.EVENT_OVERDUE: requeue_outbox,
    DifferenceType.EVENT_STUCK: requeue_outbox,
    DifferenceType.EVENT_MISSING: requeue_missing_event,
    DifferenceType.EVENTS_OUT_OF_ORDER: requeue_cancellation,
}
