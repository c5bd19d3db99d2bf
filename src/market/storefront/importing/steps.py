"""The two phases of an import, in steps of a few seconds: comparing rows with the shop, then creating and changing.

A step ends when its time is over, or when the shop is unavailable; the next one continues with the remaining rows.
Repeating a step changes nothing: a product is created with the idempotency key of its row, and changed only in the
version that the dry run has found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from market.kit.errors import NotFound, Problem, Unavailable
from market.storefront.clients import FieldRefused, GatewayClient
from market.storefront.importing import shop
from market.storefront.importing.job import Conflict, Item, Job


@dataclass(frozen=True)
class Pace:
    """The limits of one step.

    seconds: after this time no more rows are started
    calls: the maximum number of concurrent calls to the gateway
    clock: a monotonic clock, in seconds
    """

    seconds: float
    calls: int
    clock: Callable[[], float] = time.monotonic


async def compare(gateway: GatewayClient, job: Job, pace: Pace) -> Unavailable | None:
    """Compare rows with the products of the shop, and record the plan of each. Change nothing in the shop.

    Return the error that interrupted the step, or None.
    """
    waiting = [item for item in job.items if item.plan is None]

    async def compare_some(items: Sequence[Item]) -> None:
        for item, product in zip(items, await shop.find(gateway, [item.row for item in items]), strict=True):
            if product is None:
                item.plan = "create"
            else:
                item.compare(product.id, product.version, shop.differences(item.row, product))

    return await _in_batches(job, waiting, compare_some, pace)


async def run(gateway: GatewayClient, job: Job, pace: Pace) -> Unavailable | None:
    """Create and change products as planned. Return the error that interrupted the step, or None."""
    due = [item for item in job.items if item.is_due]

    async def run_some(items: Sequence[Item]) -> None:
        created = [item for item in items if item.plan == "create"]
        if created:
            for item, product in zip(created, await shop.find(gateway, [i.row for i in created]), strict=True):
                await _create(gateway, item, product)
        for item in items:
            if item.plan == "change":
                await _change(gateway, item)

    return await _in_batches(job, due, run_some, pace)


async def _create(gateway: GatewayClient, item: Item, existing: shop.Found | None) -> None:
    """Create the product unless it exists, created by an earlier attempt or by somebody else."""
    if existing is None:
        try:
            product = await shop.create(gateway, item.row)
        except FieldRefused as e:
            if shop.key_is_used(e):
                item.outcome, item.conflict = "conflict", "key_used"
            else:
                _refuse(item, e)
            return
        conflict: Conflict = "key_used"
    else:
        product, conflict = existing, "exists"
    item.product_id = product.id
    if shop.differences(item.row, product):
        item.outcome, item.conflict = "conflict", conflict
    else:
        item.outcome = "created"


async def _change(gateway: GatewayClient, item: Item) -> None:
    """Change the product unless somebody has changed it since the dry run."""
    assert item.product_id is not None
    assert item.version is not None
    try:
        await shop.update(gateway, item.row, item.product_id, item.version)
        item.outcome = "changed"
    except NotFound:
        item.outcome, item.conflict = "conflict", "deleted"
    except FieldRefused as e:
        if not shop.is_modified(e):
            _refuse(item, e)
        elif await _is_as_wanted(gateway, item):
            # Changed by an earlier attempt whose response was lost.
            item.outcome = "changed"
        else:
            item.outcome, item.conflict = "conflict", "modified"


async def _is_as_wanted(gateway: GatewayClient, item: Item) -> bool:
    assert item.product_id is not None
    try:
        return not shop.differences(item.row, await shop.get(gateway, item.product_id))
    except NotFound:
        return False


def _refuse(item: Item, error: FieldRefused) -> None:
    item.outcome = "refused"
    item.field, item.reason = error.fields[0] if error.fields else ("", str(error))


async def _in_batches(
    job: Job, items: Sequence[Item], work: Callable[[Sequence[Item]], Awaitable[None]], pace: Pace
) -> Unavailable | None:
    """Do the work for batches of items until the time is over. Return the error that interrupted it, or None."""
    started = pace.clock()
    batches = iter([items[i : i + shop.LOOKUP_SIZE] for i in range(0, len(items), shop.LOOKUP_SIZE)])
    problems: list[Problem] = []

    async def worker() -> None:
        while not problems and pace.clock() - started < pace.seconds and (batch := next(batches, None)):
            try:
                await work(batch)
            except Problem as e:
                # The other workers finish their batches.
                problems.append(e)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(pace.calls):
            tasks.create_task(worker())
    job.seconds += pace.clock() - started
    for problem in problems:
        if not isinstance(problem, Unavailable):
            raise problem
    return problems[0] if problems and isinstance(problems[0], Unavailable) else None
