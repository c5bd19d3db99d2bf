"""The use cases: place and cancel orders. They call `advance` to perform an order's steps, as recovery does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from market.contracts.access import CANCEL_ORDERS
from market.kit import context, ids
from market.kit.clock import Clock
from market.kit.errors import IdempotencyKeyReused, NotFound, Problem, Unavailable
from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.resilience import CircuitOpen
from market.orders.clients import InventoryClient, ProductsClient
from market.orders.domain import (
    CANCELLATION_BY_STATUS,
    CONFIRM,
    REJECT,
    InsufficientStock,
    NewOrder,
    Order,
    Reason,
    ReservationRejected,
    Shortage,
    Status,
    Step,
    Transition,
    apply_transition,
    next_step,
    to_milliseconds,
    transition_after_reservation,
)
from market.orders.idempotency.keys import IdempotencyKeyRepository, IdempotencyKeyTaken, KeyLookup
from market.orders.metrics import RECOVERED
from market.orders.outbox.entries import new_entry
from market.orders.outbox.relay import Relay
from market.orders.outcomes.explanations import (
    ADVICE_AFTER_CANCELLATION,
    ADVICE_WITH_KEY,
    ADVICE_WITHOUT_KEY,
    OrderNotPlaced,
    explain_failed_lookup,
    explain_failed_read,
    explain_unknown_outcome,
    require_confirmed,
    unknown_status,
)
from market.orders.ownership.rules import (
    act_as_service,
    attribute_order,
    record_cancelled,
    record_placed,
    required_owner,
)
from market.orders.pricing.prices import PricedLines, price_lines
from market.orders.recovery.repository import DueOrders
from market.orders.store import OrderRepository

log = logs.get_logger("orders")

# The pause before a step with an unknown outcome, or the insert of an order whose key is taken, is tried again.
_RETRY_SECONDS = 0.05
# The time limit of work that continues after the response was sent.
_BACKGROUND_SECONDS = 5.0
# During DELETE, the stock release ends this long before the deadline, so that the service can still respond with 202 if
# inventory does not respond.
_CANCEL_RESPONSE_SECONDS = 0.5
# The minimum and the maximum time for this stock release.
_MIN_RELEASE_SECONDS, _MAX_RELEASE_SECONDS = 0.2, 60.0


@dataclass
class Deps:
    """The dependencies of the use cases."""

    orders: OrderRepository
    keys: IdempotencyKeyRepository
    due: DueOrders
    products: ProductsClient
    inventory: InventoryClient
    relay: Relay
    clock: Clock
    faults: Faults | None = None
    # Work that continues after the response was sent.
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    background_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(32))

    async def failure_point(self, name: str) -> None:
        """Crash, pause or raise InjectedFault here if a test has armed the failure point."""
        if self.faults:
            await self.faults.fire_if_armed(name)

    def run_in_background(self, step: Step, order_id: UUID, work: Coroutine[Any, Any, object]) -> None:
        """Start the work and return at once. If it fails, recovery retries the step; the relay retries publishing.

        `step` and `order_id` identify the work in the log.
        """

        async def run() -> None:
            act_as_service()
            context.deadline.set(None)
            async with self.background_limit:
                try:
                    with context.deadline_in(_BACKGROUND_SECONDS):
                        await work
                except Unavailable as e:
                    log.warning("step failed, will be retried", step=step.value, order_id=str(order_id), reason=str(e))
                except Exception:
                    log.exception("step failed, will be retried", step=step.value, order_id=str(order_id))

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class PlacedOrder(Struct, frozen=True):
    """A placed order. `replayed`: an earlier request with the same idempotency key placed it."""

    order: Order
    replayed: bool


class CancelledOrder(Struct, frozen=True):
    """The order after its cancellation. It is cancelled, or had been rejected before.

    is_released: False if its stock could not be released yet. Recovery will release it.
    """

    order: Order
    is_released: bool


async def place_order(deps: Deps, new: NewOrder, idempotency_key: str | None) -> PlacedOrder:
    """Place an order and return it confirmed, or return the order that an earlier request with the same key placed.

    Raises Forbidden, IdempotencyKeyReused, UnknownProducts, BadInput, PriceChanged, CurrenciesDiffer, OutOfStock,
    OrderCancelled or Unavailable. Unavailable has the extension member `order_id` if the order may have been stored.
    """
    attribution = attribute_order(new)
    lookup = attribution.key_lookup(idempotency_key)
    # Inserting the order detects most keys that are taken. Look up the others first: see KeyLookup.
    if lookup is not None and not lookup.insert_detects_reuse and (replay := await _replay(deps, lookup)):
        return replay
    try:
        priced = await _price(deps, new)
    except Problem:
        # A repeated request gets its order even if the order could not be placed again, for example because a product
        # was deleted.
        if lookup is not None and (replay := await _replay(deps, lookup)):
            return replay
        raise
    order = Order(
        id=ids.new_id(),
        user=attribution.user,
        email=attribution.email,
        lines=priced.lines,
        total=priced.total,
        currency=priced.currency,
        created_at=to_milliseconds(deps.clock()),
        idempotency_key=idempotency_key,
        key_subject=attribution.subject,
        digest=lookup.digest if lookup is not None else None,
        placed_by=attribution.placed_by,
        without_mail=attribution.without_mail,
    )
    advice = ADVICE_WITH_KEY if idempotency_key is not None else ADVICE_WITHOUT_KEY
    with explain_unknown_outcome("placed", order.id, advice):
        await deps.failure_point("orders.before-intent")
        while True:
            try:
                await deps.orders.add(order)
                break
            except CircuitOpen as e:
                # MongoDB has not seen the order: after an insert without a response, `add` does not try again.
                raise OrderNotPlaced(e, has_key=idempotency_key is not None) from e
            except IdempotencyKeyTaken:
                assert lookup is not None
                if replay := await _replay(deps, lookup):
                    return replay
                # Either the key has become free since the insert, or another caller's order has the same key, and may
                # still be rejected (docs/decisions/0025). Try again, until the deadline.
                await asyncio.sleep(_RETRY_SECONDS)
        await deps.failure_point("orders.after-intent")
        order = await _advance_pending(deps, order)
        await deps.failure_point("orders.before-response")
    return PlacedOrder(require_confirmed(order), replayed=False)


async def _price(deps: Deps, new: NewOrder) -> PricedLines:
    if deps.inventory.circuit_is_open:
        # Fail before anything is stored, so that nothing has to be recovered.
        raise Unavailable("inventory is unavailable")
    return price_lines(new, await deps.products.get_products([line.product_id for line in new.lines]))


async def _replay(deps: Deps, lookup: KeyLookup) -> PlacedOrder | None:
    """Return the order that has the idempotency key, or None if the key is free. A pending order is advanced first.

    Raises IdempotencyKeyReused if the key was used with a different request. Raises OutOfStock or Unavailable if the
    pending order was rejected, Unavailable if its outcome is unknown, and OrderNotPlaced if the key was not looked up.
    """
    with explain_failed_lookup():
        holder = await deps.keys.find(lookup)
    if holder is None:
        return None
    if holder.digest != lookup.digest:
        raise IdempotencyKeyReused()
    with explain_unknown_outcome("placed", holder.order_id, ADVICE_WITH_KEY):
        order = await deps.orders.get_latest(holder.order_id)
        if order is None or order.idempotency_key != lookup.key:
            # The order was rejected after `find`, which made the key free.
            return None
        order = await _advance_pending(deps, order)
    # A cancelled order keeps its key, and one with an unknown status may keep it. So a new order cannot be placed.
    return_as_is = order.status in (Status.CANCELLED, Status.UNKNOWN)
    return PlacedOrder(order if return_as_is else require_confirmed(order), replayed=True)


async def _advance_pending(deps: Deps, order: Order) -> Order:
    """Advance the order until it is no longer pending, and return it. Raises Unavailable if the outcome is unknown.

    Also start, but do not wait for, the stock release of a rejected or cancelled order, and the publishing of events
    under a lease of this instance.
    """
    was_pending = order.status is Status.PENDING
    try:
        while next_step(order) is Step.RESERVE:
            order = await advance(deps, order)
    except Unavailable:
        record_placed(order, outcome_is_known=False)
        raise
    if was_pending and order.status is Status.CONFIRMED:
        record_placed(order)
    step = next_step(order)
    if step is Step.RELEASE:
        deps.run_in_background(step, order.id, advance(deps, order))
    elif step is Step.PUBLISH and order.lease_owner == deps.orders.instance_id:
        await advance(deps, order)
    return order


async def cancel_order(deps: Deps, order_id: UUID) -> CancelledOrder:
    """Cancel the order, or leave it as it is if it was rejected.

    Raises NotFound if there is no order that the caller may cancel. Raises Unavailable if the order could not be read,
    if it is unknown whether it is cancelled, or if it has a status that only a newer version of the service knows.
    """
    with explain_unknown_outcome("cancelled", order_id, ADVICE_AFTER_CANCELLATION):
        # `get` may return an outdated order. That does no harm: a cancellation is applied only if the stored status is
        # still the same. If `get` finds no order, `get_latest` makes sure that there is none.
        owner = required_owner(CANCEL_ORDERS)
        with explain_failed_read(order_id):
            order = await deps.orders.get(order_id, owner) or await deps.orders.get_latest(order_id, owner)
        if order is None:
            raise NotFound("order", order_id)
        order = await _cancel_until_ended(deps, order)
        if order.status is Status.REJECTED:
            return CancelledOrder(order, is_released=True)
        if order.status is Status.UNKNOWN:
            raise unknown_status(order)
    if order.outbox and order.lease_owner is None:
        # If there is a lease, its owner also publishes the new event.
        deps.run_in_background(Step.PUBLISH, order.id, deps.relay.publish_now(order.id))
    if not order.release_due:
        return CancelledOrder(order, is_released=True)
    try:
        seconds = context.remaining(_MAX_RELEASE_SECONDS) - _CANCEL_RESPONSE_SECONDS
        with context.deadline_in(max(_MIN_RELEASE_SECONDS, seconds)):
            await _release(deps, order.id)
    except Unavailable as e:
        log.warning("stock release deferred", order_id=str(order_id), reason=str(e))
        return CancelledOrder(order, is_released=False)
    # The stock is released. If this is not recorded, recovery releases it again, which changes nothing.
    deps.run_in_background(Step.RELEASE, order.id, _record_release(deps, order.id))
    return CancelledOrder(order, is_released=True)


async def _cancel_until_ended(deps: Deps, before: Order) -> Order:
    """Cancel the order, and record the cancellation in the audit log. If the status changes meanwhile, try again.

    Return the order. It is cancelled or rejected, or has a status that only a newer version knows.
    """
    order = before
    try:
        while transition := CANCELLATION_BY_STATUS.get(order.status):
            await deps.failure_point("orders.before-cancel-status")
            order = await _apply_cancellation(deps, order, transition)
    except Unavailable:
        record_cancelled(before, None)
        raise
    record_cancelled(before, order)
    return order


async def _apply_cancellation(deps: Deps, order: Order, transition: Transition) -> Order:
    at = deps.clock()
    after = None
    try:
        after = await deps.orders.transition_and_get(
            order.id, transition, at=at, entry=new_entry(order, transition, at)
        )
        await deps.failure_point("orders.after-cancel-status")
    except Unavailable:
        # The outcome is unknown: read the order to see whether the transition was applied.
        after = None
    return after or await _reload(deps, order.id)


async def advance(deps: Deps, order: Order, *, overdue: bool = False) -> Order:
    """Perform the order's next step, and return the order as it is afterwards.

    Any instance may perform a step at any time, and may repeat it. Only Step.PUBLISH requires that this instance holds
    the lease on the outbox. Publishing is started, but not awaited. Raises Unavailable if the step's outcome is
    unknown.

    overdue: as for `next_step`
    """
    step = next_step(order, overdue=overdue)
    if step is Step.RESERVE:
        return await _reserve(deps, order)
    if step is Step.REJECT:
        await deps.failure_point("orders.recovery-before-reject")
        return await _transition(deps, order, REJECT, Reason.EXPIRED)
    if step is Step.RELEASE:
        await _release(deps, order.id)
        await _record_release(deps, order.id)
        return msgspec.structs.replace(order, release_due=False)
    if step is Step.PUBLISH:
        deps.relay.publish(order)
    return order


async def _release(deps: Deps, order_id: UUID) -> None:
    await deps.inventory.release(order_id)
    await deps.failure_point("orders.after-release")


async def _record_release(deps: Deps, order_id: UUID) -> None:
    await deps.orders.clear_release_due(order_id)
    await deps.failure_point("orders.after-release-cleared")


async def _reserve(deps: Deps, order: Order) -> Order:
    await deps.failure_point("orders.before-reserve")
    result = await deps.inventory.reserve(order.id, order.lines)
    await deps.failure_point("orders.after-reserve")
    transition = transition_after_reservation(result)
    if isinstance(result, InsufficientStock):
        return await _transition(deps, order, transition, Reason.OUT_OF_STOCK, result.shortages)
    if isinstance(result, ReservationRejected):
        # Most likely the order was cancelled meanwhile. Then the transition below is not applied, because it requires a
        # pending order.
        log.warning("reservation rejected", order_id=str(order.id), reason=result.detail)
        return await _transition(deps, order, transition, Reason.RESERVATION_REJECTED)
    await deps.failure_point("orders.before-confirm")
    return await _transition(deps, order, transition)


async def _transition(
    deps: Deps, order: Order, transition: Transition, reason: Reason | None = None, shortages: tuple[Shortage, ...] = ()
) -> Order:
    at = deps.clock()
    entry = new_entry(order, transition, at)
    try:
        applied = await deps.orders.transition(
            order.id, transition, at=at, entry=entry, reason=reason, shortages=shortages
        )
        await deps.failure_point("orders.after-confirm" if transition is CONFIRM else "orders.after-reject-status")
    except Unavailable:
        # The outcome is unknown: read the order to see whether the transition was applied.
        applied = False
    if applied:
        order = apply_transition(order, transition, entry)
        if transition is CONFIRM:
            return msgspec.structs.replace(order, lease_owner=deps.orders.instance_id, confirmed_at=at)
        if reason is Reason.EXPIRED:
            RECOVERED.labels("rejected").inc()
            log.info("overdue order rejected", order_id=str(order.id))
        return msgspec.structs.replace(order, reason=reason, shortages=shortages)
    current = await _reload(deps, order.id)
    if current.status is Status.PENDING:
        await asyncio.sleep(_RETRY_SECONDS)
    return current


async def _reload(deps: Deps, order_id: UUID) -> Order:
    order = await deps.orders.get_latest(order_id)
    if order is None:
        # The service never deletes orders, so the document was removed by hand.
        raise Unavailable("the stored order no longer exists")
    return order
