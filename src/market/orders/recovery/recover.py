"""Recovery: finishes the orders that no request finishes.

It rejects orders that have been pending for too long, and releases the stock of rejected and cancelled ones. It runs in
every process: each step is conditional or idempotent. Each order's error is its own.
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
from market.orders.service import Deps, advance
from market.orders.store import DuePage

log = logs.get_logger("orders")


class Result(Enum):
    """What became of an order that was due."""

    DONE = auto()
    # A dependency is unavailable.
    FAILED = auto()
    # The order itself is at fault: it is unreadable, or its recovery has a bug.
    BROKEN = auto()


async def recover_orders(deps: Deps, reject_after_seconds: float, retry_seconds: float, limit: int = 200) -> bool:
    """Reject orders that have been pending for `reject_after_seconds`, and retry stock releases after `retry_seconds`.

    Return whether to continue without a pause. At most `limit` orders of each kind are taken, not counting those that
    cannot be recovered: behind these, more are taken at once. Raises Unavailable if MongoDB is unavailable.
    """
    now = await deps.orders.collection.server_time()
    overdue = partial(deps.orders.list_pending, now - timedelta(seconds=reject_after_seconds), limit)
    releases = partial(deps.orders.list_releases_due, now - timedelta(seconds=retry_seconds), limit)
    more_overdue = await _recover_pages(deps, overdue, overdue=True)
    more_releases = await _recover_pages(deps, releases, overdue=False)
    return more_overdue or more_releases


async def _recover_pages(deps: Deps, list_due: Callable[..., Awaitable[DuePage]], *, overdue: bool) -> bool:
    """Recover the due orders, a page at a time, until a page has none that is broken. Return whether there are more."""
    page = await list_due()
    while True:
        results = await _recover_each(deps, page.order_ids, overdue=overdue)
        if Result.FAILED in results or page.next_after is None:
            return False
        if Result.BROKEN not in results:
            return True
        # Broken orders stay where they are, and must not hide those behind them.
        page = await list_due(after=page.next_after)


async def _recover_each(deps: Deps, order_ids: list[UUID], *, overdue: bool) -> list[Result]:
    """Finish the orders concurrently. Each one's error is its own; only Unavailable of MongoDB is raised."""
    limit = asyncio.Semaphore(16)

    async def recover_one(order_id: UUID) -> Result:
        async with limit:
            try:
                order = await deps.orders.get_latest(order_id)
            except UnreadableOrder:
                return Result.BROKEN
            if order is None:
                return Result.DONE
            try:
                if next_step(order, overdue=overdue) is Step.REJECT:
                    order = await advance(deps, order, overdue=True)
                    RECOVERED.labels("rejected").inc()
                    log.info("overdue order rejected", order_id=str(order_id))
                if next_step(order) is Step.RELEASE:
                    await advance(deps, order)
                    RECOVERED.labels("released").inc()
            except UnreadableOrder:
                return Result.BROKEN
            except Unavailable:
                if not deps.inventory.circuit_is_open:
                    # An order whose stock cannot be released must not block those behind it.
                    await deps.orders.postpone_release(order_id)
                return Result.FAILED
            except Exception:
                RECOVERY_ERRORS.inc()
                log.exception("order not recovered", order_id=str(order_id))
                return Result.BROKEN
            return Result.DONE

    results = await asyncio.gather(*(recover_one(order_id) for order_id in order_ids), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Result)]
