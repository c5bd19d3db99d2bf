"""Recovery of orders that a crash or an outage interrupted.

Recovery rejects orders that have been pending for too long, and releases the stock of rejected and cancelled orders.
(The relay publishes events.) All instances may recover the same orders at the same time, because each step is
conditional or idempotent. An error in one order does not affect the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import Enum, auto
from functools import partial
from uuid import UUID

from market.kit.errors import Unavailable
from market.kit.process import logs
from market.orders.domain import Step, UnreadableOrder, next_step
from market.orders.metrics import RECOVERED, RECOVERY_ERRORS
from market.orders.recovery.repository import DuePage
from market.orders.service import Deps, advance

log = logs.get_logger("orders")


class Result(Enum):
    """The result of recovering one order."""

    DONE = auto()
    # A dependency is unavailable.
    UNAVAILABLE = auto()
    # The order is unreadable, or an unexpected error occurred, which will probably occur again.
    ERROR = auto()


async def recover_orders(deps: Deps, reject_after_seconds: float, retry_seconds: float, limit: int = 200) -> bool:
    """Reject orders that have been pending for `reject_after_seconds`, and retry stock releases after `retry_seconds`.

    Recovers a page of up to `limit` overdue orders, and then a page of stock releases. If recovering an order of a page
    ends with an ERROR, also recovers the next page, because that order stays at the front of the queue.

    Return True if more orders are due, so that the caller continues at once. Raises Unavailable if MongoDB is
    unavailable.
    """
    now = await deps.orders.collection.server_time()
    overdue = partial(deps.due.list_pending, now - timedelta(seconds=reject_after_seconds), limit)
    releases = partial(deps.due.list_releases_due, now - timedelta(seconds=retry_seconds), limit)
    more_overdue = await _recover_pages(deps, overdue, overdue=True)
    more_releases = await _recover_pages(deps, releases, overdue=False)
    return more_overdue or more_releases


async def _recover_pages(deps: Deps, list_due: Callable[..., Awaitable[DuePage]], *, overdue: bool) -> bool:
    """Recover pages of due orders until a page has no ERROR.

    Return whether more orders are due. Also return False if a dependency is unavailable, so that the caller makes a
    pause.
    """
    page = await list_due()
    while True:
        results = await _recover_each(deps, page.order_ids, overdue=overdue)
        if Result.UNAVAILABLE in results or page.next_after is None:
            return False
        if Result.ERROR not in results:
            return True
        page = await list_due(after=page.next_after)


async def _recover_each(deps: Deps, order_ids: list[UUID], *, overdue: bool) -> list[Result]:
    """Recover the orders concurrently, and return their results. Raises Unavailable if MongoDB is unavailable."""
    concurrency = asyncio.Semaphore(16)

    async def recover_one(order_id: UUID) -> Result:
        async with concurrency:
            return await recover_order(deps, order_id, overdue=overdue)

    results = await asyncio.gather(*(recover_one(order_id) for order_id in order_ids), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Result)]


async def recover_order(deps: Deps, order_id: UUID, *, overdue: bool) -> Result:
    """Reject the order if it is pending and overdue, and release its stock if that is due.

    Raises Unavailable if MongoDB is unavailable.
    """
    try:
        order = await deps.orders.get_latest(order_id)
    except UnreadableOrder:
        return Result.ERROR
    if order is None:
        return Result.DONE
    try:
        if next_step(order, overdue=overdue) is Step.REJECT:
            # If the order has just been confirmed or cancelled, this has no effect.
            order = await advance(deps, order, overdue=True)
        if next_step(order) is Step.RELEASE:
            await advance(deps, order)
            RECOVERED.labels("released").inc()
    except UnreadableOrder:
        return Result.ERROR
    except Unavailable:
        if not deps.inventory.circuit_is_open:
            # Inventory may fail for this order only. Put its stock release at the end of the queue, so that it does not
            # block the others.
            await deps.orders.postpone_release(order_id)
        return Result.UNAVAILABLE
    except Exception:
        RECOVERY_ERRORS.inc()
        log.exception("order not recovered", order_id=str(order_id))
        return Result.ERROR
    return Result.DONE
