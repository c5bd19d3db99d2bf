"""Whether products can be sold now: from the cache, otherwise from inventory, otherwise unknown.

Readers store only entries that are absent, and the service itself overwrites entries after SetStock, so an outdated
result cannot replace a newer one. Sales do not change the cache: an entry may be outdated for its whole life. It is for
display only; Reserve decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Protocol
from uuid import UUID

from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import Problem
from market.products.availability.cache import AvailabilityCache, connect
from market.products.clients import MAX_IDS_PER_CALL
from market.products.config import Config
from market.products.metrics import AVAILABILITY_LOOKUPS


class Cache(Protocol):
    """The interface of AvailabilityCache. Its methods raise nothing."""

    async def get_many(self, product_ids: Sequence[str], /) -> dict[str, bool]: ...

    async def fill(self, entries: dict[str, bool], /) -> None: ...

    async def overwrite(self, entries: dict[str, bool], /) -> None: ...


class Inventory(Protocol):
    """The part of InventoryClient that lookups use."""

    async def check_available(self, product_ids: Sequence[str], /) -> dict[str, bool]: ...

    async def get_stock(self, product_ids: Sequence[str], /) -> dict[str, int]: ...


@asynccontextmanager
async def open_lookup(
    config: Config, inventory: Inventory, cache: Cache | None = None
) -> AsyncIterator[AvailabilityLookup]:
    """Yield the lookup, by default with the cache in Redis, which need not be available."""
    async with AsyncExitStack() as stack:
        cache = cache or AvailabilityCache(
            await stack.enter_async_context(connect(config.redis.url)),
            ttl_seconds=config.availability.ttl_seconds,
            timeout_seconds=config.redis.timeout_seconds,
            max_connection_age_seconds=config.redis.max_connection_age_seconds,
        )
        yield AvailabilityLookup(cache, inventory, timeout_seconds=config.availability.timeout_seconds)


class AvailabilityLookup:
    """Looks up availability. Owns the lookups in flight, so that concurrent readers share calls to Redis and inventory.

    timeout_seconds: how long a reader waits for inventory.
    """

    def __init__(self, cache: Cache, inventory: Inventory, *, timeout_seconds: float) -> None:
        self._cache = cache
        self._inventory = inventory
        self._timeout_seconds = timeout_seconds
        self._cached = Batcher(
            self._read_cache, name="products.read-availability", max_batch_size=32, max_concurrency=2
        )
        self._fetched = Batcher(self._fetch, name="products.check-avaliable", max_batch_size=32, max_concurrency=2)
        self._stored = Batcher(self._overwrite, name="products.store-availability", max_batch_size=128)
        self._in_flight: dict[str, asyncio.Task[dict[str, bool]]] = {}
        self._lookups = {source: AVAILABILITY_LOOKUPS.labels(source) for source in ("cache", "inventory", "unknown")}

    async def get_many(self, product_ids: Sequence[str]) -> dict[str, bool]:
        """Return whether each product can be sold; products with unknown availability are absent.

        Raises no errors of Redis or inventory.
        """
        if not product_ids:
            return {}
        cached = await self._cached(product_ids)
        missing = [product_id for product_id in product_ids if product_id not in cached]
        self._lookups["cache"].inc(len(product_ids) - len(missing))
        if not missing:
            return cached
        fetched = await self._from_inventory(missing)
        self._lookups["inventory"].inc(len(fetched))
        self._lookups["unknown"].inc(len(missing) - len(fetched))
        return {**cached, **fetched}

    async def get_stock(self, product_ids: Sequence[str]) -> dict[str, int]:
        """Return the units of each product that are free to sell, never from the cache; empty if inventory fails."""
        if not product_ids:
            return {}
        try:
            return await self._inventory.get_stock(product_ids)
        except Problem:
            return {}

    async def store(self, product_id: UUID, quantity: int) -> None:
        """Cache whether a product with this stock, which has just been set, can be sold."""
        await self._stored((str(product_id), quantity > 0))

    async def _read_cache(self, batch: list[Sequence[str]]) -> list[dict[str, bool]]:
        return [await self._cache.get_many(_distinct(batch))] * len(batch)

    async def _overwrite(self, entries: list[tuple[str, bool]]) -> list[None]:
        await self._cache.overwrite(dict(entries))
        return [None] * len(entries)

    async def _from_inventory(self, product_ids: list[str]) -> dict[str, bool]:
        """Look the products up in inventory, and share the lookups of other readers that are in flight."""
        tasks = {task for product_id in product_ids if (task := self._in_flight.get(product_id))}
        if new := [product_id for product_id in product_ids if product_id not in self._in_flight]:
            task = asyncio.create_task(self._fetch_without_deadline(new))
            tasks.add(task)
            self._in_flight.update(dict.fromkeys(new, task))
            task.add_done_callback(lambda _: [self._in_flight.pop(product_id, None) for product_id in new])
        done, _ = await asyncio.wait(tasks, timeout=context.remaining(self._timeout_seconds))
        found: dict[str, bool] = {}
        for task in done:
            found |= task.result()
        return {product_id: found[product_id] for product_id in product_ids if product_id in found}

    async def _fetch_without_deadline(self, product_ids: list[str]) -> dict[str, bool]:
        # Other readers wait for the result too, so the deadline of the first one must not end the call.
        context.deadline.set(None)
        return await self._fetched(product_ids)

    async def _fetch(self, batch: list[Sequence[str]]) -> list[dict[str, bool]]:
        product_ids = _distinct(batch)
        parts = [product_ids[n : n + MAX_IDS_PER_CALL] for n in range(0, len(product_ids), MAX_IDS_PER_CALL)]
        found: dict[str, bool] = {}
        try:
            for part in await asyncio.gather(*(self._inventory.check_available(part) for part in parts)):
                found |= part
        except Problem:
            # Errors are not cached: the next lookup calls inventory again.
            return [{}] * len(batch)
        await self._cache.fill(found)
        return [found] * len(batch)


def _distinct(batch: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(batch)))
