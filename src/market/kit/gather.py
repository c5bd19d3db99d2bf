"""Gathering: what arrives while one call is under way goes out together in the next one.

    insert = Gather(store.insert_many, most=128, name="orders.insert")
    await insert(order)          # a lone caller's call starts at once

`flush` takes a list of items and answers a list of the same length: each one's result, or the
exception that is this one caller's. If `flush` itself raises, every caller of that batch gets it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Generic, TypeVar

from prometheus_client import Histogram

from market.kit import context

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = Histogram("market_gather_batch_items", "Items that went out together.", ["gather"], buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])


class Gather(Generic[Item, Result]):
    """Owns the queue of what waits, in order of arrival.

    `most`: items in one call. `under_way`: calls at once; order of arrival holds within a call,
    and across calls only where it is 1.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        name: str,
        most: int = 256,
        under_way: int = 1,
    ) -> None:
        self._flush = flush
        self._most = most
        self._free = under_way
        self._waiting: deque[tuple[Item, asyncio.Future[Result], float | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sizes = BATCH.labels(name)

    async def __call__(self, item: Item) -> Result:
        """The item's own result. When the caller goes away before the call started, the item does not go out."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done, context.deadline.get()))
        if self._free:
            self._start()
        return await done

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _start(self) -> None:
        self._free -= 1
        # A context of its own: a batch is nobody's request.
        task = asyncio.get_running_loop().create_task(self._run(), context=copy_context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            while batch := self._take():
                # The batch may take as long as the most patient of its callers; the others stop waiting by themselves.
                ends = [at for _, _, at in batch]
                context.deadline.set(None if None in ends else max(at for at in ends if at is not None))
                if len(batch) > 1:
                    context.request_id.set("")
                    context.traceparent.set("")
                self._sizes.observe(len(batch))
                await self._send(batch)
        finally:
            self._free += 1

    def _take(self) -> list[tuple[Item, asyncio.Future[Result], float | None]]:
        batch: list[tuple[Item, asyncio.Future[Result], float | None]] = []
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _send(self, batch: list[tuple[Item, asyncio.Future[Result], float | None]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._flush([item for item, _, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError:
            for _, done, _ in batch:
                done.cancel()
            raise
        except Exception as e:
            results = [e] * len(batch)
        for (_, done, _), result in zip(batch, results, strict=True):
            if done.done():
                continue
            if isinstance(result, BaseException):
                done.set_exception(result)
            else:
                done.set_result(result)
