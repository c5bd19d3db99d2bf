"""Gathering: what arrives while one call is under way goes out together in the next one.

    insert = Batcher(store.insert_many, max_batch_size=128, name="orders.insert")
    await insert(order)          # a lone caller's call starts at once
    await lookup.map(ids)        # many items of one caller

`flush` takes a list of items and answers a list of the same length: each one's result, or the
exception that is this one caller's. If `flush` itself raises, every caller of that batch gets it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from typing import Generic, TypeVar

from prometheus_client import Histogram

from market.kit import context
from market.kit.errors import DeadlineExceeded

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = Histogram(
    "market_gather_batch_items",
    "Items that went out together.",
    ["gather"],
    buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
)


class _Entry(Generic[Item, Result]):
    """An item that waits, and those who wait for it: one, or several where equal items are folded."""

    __slots__ = ("callers", "cost", "end", "item", "request_id", "traceparent")

    def __init__(self, item: Item, cost: int, caller: asyncio.Future[Result]) -> None:
        self.item = item
        self.cost = cost
        self.callers = [caller]
        self.end = context.deadline.get()
        self.request_id = context.request_id.get()
        self.traceparent = context.traceparent.get()

    def join(self, caller: asyncio.Future[Result]) -> None:
        self.callers.append(caller)
        end = context.deadline.get()
        self.end = None if end is None or self.end is None else max(end, self.end)

    @property
    def wanted(self) -> bool:
        return any(not caller.done() for caller in self.callers)


class Batcher(Generic[Item, Result]):
    """Owns the queue of what waits, in order of arrival.

    `max_batch_size`: items in one call. `max_concurrency`: calls at once; order of arrival holds within a call, and
    across calls only where it is 1. `cost` with `max_cost` ends a batch before it is too heavy
    (one item always goes out). `dedupe`: equal (hashable) items that wait together go out once, and
    share the result.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        name: str,
        max_batch_size: int = 256,
        max_concurrency: int = 1,
        cost: Callable[[Item], int] | None = None,
        max_cost: int = 0,
        dedupe: bool = False,
    ) -> None:
        self._flush = flush
        self._max_batch_size = max_batch_size
        self._free = max_concurrency
        # Calls that were started and have not yet taken their batch.
        self._starting = 0
        self._cost = cost
        self._max_cost = max_cost
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._deduped: dict[Item, _Entry[Item, Result]] | None = {} if dedupe else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sizes = BATCH.labels(name)

    async def __call__(self, item: Item) -> Result:
        """The item's own result. Raises DeadlineExceeded when the caller's time is over: the outcome is then open.

        When the caller goes away before the call started, the item does not go out.
        """
        done = self._enter(item)
        self._start()
        timer = _expiry([done])
        try:
            return await done
        finally:
            if timer is not None:
                timer.cancel()

    async def map(self, items: Iterable[Item]) -> list[Result]:
        """The items' results, in order. Raises the first failure; what had not gone out then stays here."""
        futures = [self._enter(item) for item in items]
        self._start()
        timer = _expiry(futures)
        try:
            return [await done for done in futures]
        finally:
            if timer is not None:
                timer.cancel()
            for done in futures:
                # Those behind a failure: give up, and look at what they hold, or asyncio complains of it.
                if not done.cancel() and not done.cancelled():
                    done.exception()

    async def map_settled(self, items: Iterable[Item]) -> list[Result | BaseException]:
        """Each item's own result or exception, in order: as if each had a caller of its own, at a fraction of the cost."""
        futures = [self._enter(item) for item in items]
        self._start()
        timer = _expiry(futures)
        results: list[Result | BaseException] = []
        try:
            for done in futures:
                try:
                    results.append(await done)
                except Exception as e:
                    results.append(e)
        finally:
            if timer is not None:
                timer.cancel()
            for done in futures[len(results) :]:
                # The caller went away: what has not gone out stays here, and nobody asks for the rest.
                if not done.cancel() and not done.cancelled():
                    done.exception()
        return results

    @property
    def pending(self) -> int:
        """Items that have not gone out."""
        return len(self._waiting)

    def _enter(self, item: Item) -> asyncio.Future[Result]:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self._deduped is not None and (same := self._deduped.get(item)):
            same.join(done)
            return done
        entry = _Entry(item, self._cost(item) if self._cost else 0, done)
        if self._deduped is not None:
            self._deduped[item] = entry
        self._waiting.append(entry)
        return done

    def _start(self) -> None:
        while self._free and len(self._waiting) > self._starting * self._max_batch_size:
            self._free -= 1
            self._starting += 1
            # A context of its own: a batch is nobody's request.
            task = asyncio.get_running_loop().create_task(self._run(), context=copy_context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        self._starting -= 1
        try:
            while batch := self._take():
                # The batch may take as long as the most patient of its callers; the others stop waiting by themselves.
                ends = [entry.end for entry in batch]
                context.deadline.set(None if None in ends else max(at for at in ends if at is not None))
                alone = len(batch) == 1
                context.request_id.set(batch[0].request_id if alone else "")
                context.traceparent.set(batch[0].traceparent if alone else "")
                self._sizes.observe(len(batch))
                await self._send(batch)
        finally:
            self._free += 1

    def _take(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        cost = 0
        while self._waiting and len(batch) < self._max_batch_size:
            entry = self._waiting[0]
            if batch and self._cost and cost + entry.cost > self._max_cost:
                break
            self._waiting.popleft()
            if self._deduped is not None:
                del self._deduped[entry.item]
            if entry.wanted:
                batch.append(entry)
                cost += entry.cost
        return batch

    async def _send(self, batch: list[_Entry[Item, Result]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._flush([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError:
            # The loop is closing. Nobody serves those who wait behind this batch either.
            for entry in [*batch, *self._waiting]:
                for done in entry.callers:
                    done.cancel()
            raise
        except Exception as e:
            results = [e] * len(batch)
        for entry, result in zip(batch, results, strict=True):
            for done in entry.callers:
                if done.done():
                    continue
                if isinstance(result, BaseException):
                    done.set_exception(result)
                else:
                    done.set_result(result)


def _expiry(futures: Sequence[asyncio.Future[Result]]) -> asyncio.TimerHandle | None:
    """A timer that ends the waiting at the caller's deadline, if there is one."""
    at = context.deadline.get()
    if at is None:
        return None
    return asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), _expire, futures)


def _expire(futures: Sequence[asyncio.Future[Result]]) -> None:
    for done in futures:
        if not done.done():
            done.set_exception(DeadlineExceeded("the caller's time is over"))
