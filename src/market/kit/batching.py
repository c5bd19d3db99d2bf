"""Batching: items that arrive while a call is in flight are sent together in the next call.

    insert = Batcher(store.insert_many, name="orders.insert", max_batch_size=128)
    await insert(order)          # without load the call starts at once
    await insert.map(orders)     # several items of one caller

See docs/decisions/0005 for why, and for measurements.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Generic, TypeVar

from prometheus_client import Histogram

from market.kit import context
from market.kit.process import tracing

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_ITEMS = Histogram(
    "market_batch_items",
    "Items sent in one call.",
    ["batcher"],
    buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
)


class _Entry(Generic[Item, Result]):
    """A pending item, and the callers that wait for its result. With `dedupe`, equal items share one entry."""

    __slots__ = ("callers", "cost", "deadline", "item", "request_id", "tracer", "traces")

    def __init__(self, item: Item, cost: int, caller: asyncio.Future[Result]) -> None:
        self.item = item
        self.cost = cost
        self.callers = [caller]
        self.deadline = context.deadline.get()
        self.request_id = context.request_id.get()
        self.traces = [context.current_trace()]
        self.tracer = tracing.current.get()

    def join(self, caller: asyncio.Future[Result]) -> None:
        self.callers.append(caller)
        if context.request_id.get() != self.request_id:
            self.request_id = ""
        if (trace := context.current_trace()) not in self.traces and len(self.traces) < tracing.MAX_LINKS:
            self.traces.append(trace)
        self.tracer = self.tracer or tracing.current.get()
        deadline = context.deadline.get()
        self.deadline = None if deadline is None or self.deadline is None else max(deadline, self.deadline)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller still waits for the item."""
        return any(not caller.done() for caller in self.callers)


class Batcher(Generic[Item, Result]):
    """Collects the items of concurrent callers, and sends them in batches, in order of arrival.

    Each call of `flush` has its own context:
    - a deadline: the latest deadline of its callers, or none if one of them has none
    - a request id, if all callers have the same one
    - a span: a child of the caller's span or, with several callers, linked to their spans

    flush: makes one call. It takes a list of items, and returns a list of the same length with the result or the
        exception of each. If it raises an exception, every caller of the batch gets that exception.
    name: the label in metrics, and in the name of the span that each call gets.
    max_batch_size: the maximum number of items in one call.
    max_concurrency: the maximum number of calls in flight. If it is more than 1, a later call may complete before an
        earlier one.
    cost, max_cost: `cost` returns an item's cost. The total cost of a batch is at most `max_cost`. An item that costs
        more is sent alone.
    dedupe: send only one of several equal pending items, and return its result for all. Items must be hashable.
    pause_seconds: the minimum time between the end of a call and the next call, in which more items can arrive. It is
        meant for items for which nobody waits. There is no pause if a whole batch is pending already.
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
        pause_seconds: float = 0.0,
    ) -> None:
        self._flush = flush
        self._max_batch_size = max_batch_size
        self._free_slots = max_concurrency
        # Calls that have been scheduled, but have not taken their batch yet.
        self._unstarted = 0
        self._cost = cost
        self._max_cost = max_cost
        self._pause_seconds = pause_seconds
        self._pending: deque[_Entry[Item, Result]] = deque()
        self._deduped: dict[Item, _Entry[Item, Result]] | None = {} if dedupe else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._name = name
        self._sizes = BATCH_ITEMS.labels(name)

    async def __call__(self, item: Item) -> Result:
        """Return the item's result. Raises DeadlineExceeded at the caller's deadline; the outcome is then unknown.

        An item whose caller is cancelled before its call starts is not sent.
        """
        future = self._enqueue(item)
        self._start()
        timer = _deadline_timer([future])
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()

    async def map(self, items: Iterable[Item]) -> list[Result]:
        """Return the items' results, in the order of the items.

        Raises the exception of the first item that failed. Items that are still pending are then not sent.
        """
        futures = [self._enqueue(item) for item in items]
        self._start()
        timer = _deadline_timer(futures)
        try:
            return [await future for future in futures]
        finally:
            if timer is not None:
                timer.cancel()
            for future in futures:
                # After a failure, cancel the other items. If one of them has failed as well, retrieve its exception, or
                # asyncio would log it.
                if not future.cancel() and not future.cancelled():
                    future.exception()

    async def map_with_exceptions(self, items: Iterable[Item]) -> list[Result | BaseException]:
        """Return each item's result or exception, in the order of the items. A failure affects no other item."""
        futures = [self._enqueue(item) for item in items]
        self._start()
        timer = _deadline_timer(futures)
        results: list[Result | BaseException] = []
        try:
            for future in futures:
                try:
                    results.append(await future)
                except Exception as e:
                    results.append(e)
        finally:
            if timer is not None:
                timer.cancel()
            for future in futures[len(results) :]:
                # The caller was cancelled: pending items are not sent, and the other results are dropped.
                if not future.cancel() and not future.cancelled():
                    future.exception()
        return results

    @property
    def pending(self) -> int:
        """The number of items that have not been sent."""
        return len(self._pending)

    def occupy_slot(self) -> None:
        """Allow one call fewer in flight, until `free_slot` is called."""
        self._free_slots -= 1

    def free_slot(self) -> None:
        """Undo `occupy_slot`, and start a call if there are pending items."""
        self._free_slots += 1
        self._start()

    def _enqueue(self, item: Item) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self._deduped is not None and (same := self._deduped.get(item)):
            same.join(future)
            return future
        entry = _Entry(item, self._cost(item) if self._cost else 0, future)
        if self._deduped is not None:
            self._deduped[item] = entry
        self._pending.append(entry)
        return future

    def _start(self) -> None:
        # Do not start another call if the scheduled ones will take all pending items.
        while self._free_slots and len(self._pending) > self._unstarted * self._max_batch_size:
            self._free_slots -= 1
            self._unstarted += 1
            # In an empty context, because the batch has items of several callers.
            task = asyncio.get_running_loop().create_task(self._run(), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        self._unstarted -= 1
        try:
            while batch := self._take():
                self._sizes.observe(len(batch))
                with self._enter_context(batch):
                    await self._send(batch)
                if self._pause_seconds and len(self._pending) < self._max_batch_size:
                    await asyncio.sleep(self._pause_seconds)
        finally:
            self._free_slots += 1

    def _enter_context(self, batch: list[_Entry[Item, Result]]) -> AbstractContextManager[None]:
        """Set the deadline, the request id and the trace of the batch, and return its span."""
        # Each caller stops waiting at its own deadline, so the batch may take until the latest one.
        deadlines = [entry.deadline for entry in batch]
        context.deadline.set(None if None in deadlines else max(d for d in deadlines if d is not None))
        request_ids = {entry.request_id for entry in batch}
        context.request_id.set(request_ids.pop() if len(request_ids) == 1 else "")
        traces = list(dict.fromkeys(trace for entry in batch for trace in entry.traces))
        context.set_trace(*(traces[0] if len(traces) == 1 else context.Trace()))
        tracer = next((entry.tracer for entry in batch if entry.tracer is not None), None)
        return tracer.batch_span(f"batch {self._name}", traces) if tracer is not None else nullcontext()

    def _take(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        cost = 0
        while self._pending and len(batch) < self._max_batch_size:
            entry = self._pending[0]
            if batch and self._cost and cost + entry.cost > self._max_cost:
                break
            self._pending.popleft()
            if self._deduped is not None:
                del self._deduped[entry.item]
            if entry.is_awaited:
                batch.append(entry)
                cost += entry.cost
        return batch

    async def _send(self, batch: list[_Entry[Item, Result]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._flush([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"flush must return one result per item: {len(batch)} sent, {len(results)} returned")
        except asyncio.CancelledError:
            # The event loop is closing, so pending items will not be sent either.
            for entry in [*batch, *self._pending]:
                for future in entry.callers:
                    future.cancel()
            raise
        except Exception as e:
            results = [e] * len(batch)
        for entry, result in zip(batch, results, strict=True):
            for future in entry.callers:
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)


class BatcherBySize(Generic[Item, Result]):
    """Batches large items separately, so that small items neither share a call with them nor wait for them.

    Arguments in addition to those of Batcher:

    small_cost: the maximum cost of a small item. An item that costs more is large.
    max_large_cost: the maximum cost of a call with large items. Only one such call is in flight at a time.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        name: str,
        cost: Callable[[Item], int],
        small_cost: int,
        max_cost: int,
        max_large_cost: int,
        max_batch_size: int = 256,
        max_concurrency: int = 1,
    ) -> None:
        self._cost = cost
        self._small_cost = small_cost
        self._small: Batcher[Item, Result] = Batcher(
            flush,
            name=name,
            max_batch_size=max_batch_size,
            max_concurrency=max_concurrency,
            cost=cost,
            max_cost=max_cost,
        )
        self._large: Batcher[Item, Result] = Batcher(
            flush, name=f"{name}.large", max_batch_size=max_batch_size, cost=cost, max_cost=max_large_cost
        )

    async def __call__(self, item: Item) -> Result:
        """Return the item's result, as Batcher does."""
        return await (self._large if self._is_large(item) else self._small)(item)

    async def map_with_exceptions(self, items: Iterable[Item]) -> list[Result | BaseException]:
        """Return each item's result or exception, in the order of the items, as Batcher does."""
        items = list(items)
        large = [self._is_large(item) for item in items]
        if not any(large):
            return await self._small.map_with_exceptions(items)
        small_results, large_results = await asyncio.gather(
            self._small.map_with_exceptions(item for item, is_large in zip(items, large, strict=True) if not is_large),
            self._large.map_with_exceptions(item for item, is_large in zip(items, large, strict=True) if is_large),
        )
        results = {False: iter(small_results), True: iter(large_results)}
        return [next(results[is_large]) for is_large in large]

    @property
    def pending(self) -> int:
        """The number of items that have not been sent."""
        return self._small.pending + self._large.pending

    def _is_large(self, item: Item) -> bool:
        return self._cost(item) > self._small_cost


class SharedReads(Generic[Item, Result]):
    """Lets concurrent callers that read the same item share one call.

    For each item, one call is in flight at a time. Callers that arrive meanwhile share the next call, so they see
    everything that was written before they arrived. Callers with different items do not wait for each other.

    A caller that finds no call in flight makes its own call, in its own context. That takes 17 us of CPU less than a
    batch.

    read: takes an item, which must be hashable, and returns its result. It heeds the deadline in its context. A shared
        call runs in the context of a batch (see Batcher).
    name: as for Batcher.
    """

    def __init__(self, read: Callable[[Item], Awaitable[Result]], *, name: str) -> None:
        self._read = read
        self._name = name
        # By item: the number of its callers, and the batcher of those that share calls. The last caller removes both.
        self._callers: dict[Item, int] = {}
        self._batchers: dict[Item, Batcher[Item, Result]] = {}

    async def __call__(self, item: Item) -> Result:
        """Return the item's result. Raises what `read` raises, and DeadlineExceeded at the caller's deadline."""
        callers = self._callers.get(item, 0)
        self._callers[item] = callers + 1
        try:
            return await (self._share(item) if callers else self._read_alone(item))
        finally:
            self._callers[item] -= 1
            if not self._callers[item]:
                del self._callers[item]
                self._batchers.pop(item, None)

    async def _read_alone(self, item: Item) -> Result:
        try:
            return await self._read(item)
        finally:
            if batcher := self._batchers.get(item):
                batcher.free_slot()

    async def _share(self, item: Item) -> Result:
        batcher = self._batchers.get(item)
        if batcher is None:
            batcher = Batcher(self._flush, name=self._name, max_batch_size=1, dedupe=True)
            # The call of the caller that was alone is still in flight.
            batcher.occupy_slot()
            self._batchers[item] = batcher
        return await batcher(item)

    @property
    def items(self) -> int:
        """The number of different items that callers wait for."""
        return len(self._callers)

    def has_pending(self, item: Item) -> bool:
        """Return whether a call for the item has not begun yet. A caller that arrives now shares it."""
        return item in self._batchers and self._batchers[item].pending > 0

    async def _flush(self, items: list[Item]) -> list[Result]:
        return [await self._read(item) for item in items]


def _deadline_timer(futures: Sequence[asyncio.Future[Result]]) -> asyncio.TimerHandle | None:
    """Return a timer that fails the futures at the caller's deadline, or None if there is none."""
    expires_at = context.deadline.get()
    if expires_at is None:
        return None
    return asyncio.get_running_loop().call_later(max(0.0, expires_at - time.monotonic()), _fail_expired, futures)


def _fail_expired(futures: Sequence[asyncio.Future[Result]]) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(context.deadline_exceeded())
