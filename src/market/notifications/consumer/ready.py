"""Items that are ready to be processed. Mail domains take turns, so that none of them delays the others."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadyItems(Generic[T]):
    """Items by mail domain. For use in one event loop.

    `get` returns the next item of the domain that has waited longest for its turn. It skips domains that already have
    `max_per_domain` items in flight. An item is in flight from `get` to `release`.
    """

    def __init__(self, max_per_domain: int) -> None:
        self._max_per_domain = max_per_domain
        # The domains that have items, in the sequence of their turns.
        self._domains: OrderedDict[str, deque[T]] = OrderedDict()
        self._in_flight: Counter[str] = Counter()
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether no item is ready or in flight."""
        return not self._domains and not self._in_flight

    def put(self, domain: str, item: T) -> None:
        """Add an item behind the others of its domain."""
        self._domains.setdefault(domain, deque()).append(item)
        self._wake()

    async def get(self) -> T:
        """Wait for the next item and return it. Call `release` once the item has been processed."""
        while True:
            for domain, items in self._domains.items():
                if self._in_flight[domain] < self._max_per_domain:
                    return self._take(domain, items)
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # If this waiter had already been woken up, wake up another one in its place.
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise

    def release(self, domain: str) -> None:
        """Record that an item of the domain is no longer in flight."""
        self._in_flight[domain] -= 1
        if self._in_flight[domain] == 0:
            del self._in_flight[domain]
        self._wake()

    def _take(self, domain: str, items: deque[T]) -> T:
        item = items.popleft()
        if items:
            self._domains.move_to_end(domain)
        else:
            del self._domains[domain]
        self._in_flight[domain] += 1
        return item

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
