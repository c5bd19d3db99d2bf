"""Whether products can be sold now: from Redis, else from inventory, else nobody knows.

A reader fills only what is absent, and the service itself overwrites after SetStock, so an old answer cannot
replace a new one. Sales are not announced here: the answer may be late by the entries' life. It is for display;
Reserve alone decides.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Protocol
from uuid import UUID

import redis.asyncio
import redis.exceptions
from prometheus_client import Counter

from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import Problem
from market.kit.process import logs
from market.kit.resilience import CircuitBreaker, CircuitOpen
from market.products.clients import MOST

log = logs.get_logger("availability")

LOOKED_UP = Counter(
    "market_availability_total", "Products whose availability was looked up, by who knew it.", ["source"]
)

# What Redis being away looks like.
AWAY = (redis.exceptions.RedisError, OSError, TimeoutError)
_WORDS = {b"1": True, b"0": False}


class Asked(Protocol):
    async def available(self, ids: Sequence[str], /) -> dict[str, bool]: ...


class Cache:
    """The answers in Redis, `avail:{id}` = 1 or 0. Redis being away is no error here: nothing is cached then."""

    def __init__(self, client: redis.asyncio.Redis, *, ttl: float, seconds: float) -> None:
        self._redis = client
        self._ttl = ttl
        self._seconds = seconds
        # Left alone for a second after five failures in a row.
        self._circuit = CircuitBreaker("redis", open_seconds=1.0, counts=AWAY)
        self._was_away = False

    async def known(self, ids: Sequence[str]) -> dict[str, bool]:
        """What is cached of them: one MGET."""
        found = await self._within(lambda: self._redis.mget([f"avail:{id}" for id in ids]))
        return {id: _WORDS[word] for id, word in zip(ids, found, strict=True) if word in _WORDS} if found else {}

    async def fill(self, answers: dict[str, bool]) -> None:
        """Writes what is absent: one pipeline."""
        await self._write(answers, only_absent=True)

    async def overwrite(self, answers: dict[str, bool]) -> None:
        """Writes in place of what is there: for those who have just changed the stock."""
        await self._write(answers, only_absent=False)

    async def _write(self, answers: dict[str, bool], *, only_absent: bool) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for id, available in answers.items():
            # Not all at once: what was filled together would be asked for again together.
            life = random.uniform(0.8, 1.2) * self._ttl
            pipeline.set(f"avail:{id}", b"1" if available else b"0", px=round(1000 * life), nx=only_absent)
        await self._within(pipeline.execute)

    async def _within(self, call: Callable[[], object]) -> list[bytes | None] | None:
        async def limited() -> list[bytes | None]:
            async with asyncio.timeout(self._seconds):
                return await call()  # type: ignore[misc, no-any-return]

        try:
            result = await self._circuit(limited)
        except CircuitOpen:
            return None
        except AWAY as e:
            # One slow answer is no news; a row of them is, once.
            if self._circuit.is_open and not self._was_away:
                log.warning(
                    "redis does not answer: availability is asked of inventory each time", reason=type(e).__name__
                )
                self._was_away = True
            return None
        if self._was_away:
            log.info("redis answers again")
            self._was_away = False
        return result


class Availability:
    """Owns what is being asked at this moment, so that ids asked for at once share one call."""

    def __init__(self, cache: Cache, inventory: Asked, *, seconds: float) -> None:
        self._cache = cache
        self._inventory = inventory
        self._seconds = seconds
        self._cached = Batcher(self._look_up, name="products.availability", max_batch_size=32, max_concurrency=2)
        self._asked = Batcher(self._ask, name="products.check-avaliable", max_batch_size=32, max_concurrency=2)
        self._under_way: dict[str, asyncio.Task[dict[str, bool]]] = {}
        self._set = Batcher(self._overwrite, name="products.availability-set", max_batch_size=128)
        self._from = {source: LOOKED_UP.labels(source) for source in ("cache", "inventory", "nobody")}

    async def of(self, ids: Sequence[str]) -> dict[str, bool]:
        """What is known of the ids; the absent ones nobody can tell now. Raises nothing of the neighbours'."""
        if not ids:
            return {}
        known = await self._cached(ids)
        missing = [id for id in ids if id not in known]
        self._from["cache"].inc(len(ids) - len(missing))
        if not missing:
            return known
        answers = await self._fresh(missing)
        self._from["inventory"].inc(len(answers))
        self._from["nobody"].inc(len(missing) - len(answers))
        return {**known, **answers}

    async def changed(self, id: UUID, quantity: int) -> bool:
        """Remembers what SetStock answered, in place of anything older; whether the product can be sold."""
        await self._set((str(id), quantity > 0))
        return quantity > 0

    async def _look_up(self, groups: list[Sequence[str]]) -> list[dict[str, bool]]:
        return [await self._cache.known(_each_once(groups))] * len(groups)

    async def _overwrite(self, changes: list[tuple[str, bool]]) -> list[None]:
        await self._cache.overwrite(dict(changes))
        return [None] * len(changes)

    async def _fresh(self, ids: list[str]) -> dict[str, bool]:
        """From inventory. What another reader is asking for already is not asked for again."""
        tasks = {task for id in ids if (task := self._under_way.get(id))}
        if new := [id for id in ids if id not in self._under_way]:
            task = asyncio.create_task(self._shared(new))
            tasks.add(task)
            self._under_way.update(dict.fromkeys(new, task))
            task.add_done_callback(lambda _: [self._under_way.pop(id, None) for id in new])
        done, _ = await asyncio.wait(tasks, timeout=context.remaining(self._seconds))
        found: dict[str, bool] = {}
        for task in done:
            found |= task.result()
        return {id: found[id] for id in ids if id in found}

    async def _shared(self, ids: list[str]) -> dict[str, bool]:
        # Others wait for it too: it may take inventory's full time, however little its first asker had left.
        context.deadline.set(None)
        return await self._asked(ids)

    async def _ask(self, groups: list[Sequence[str]]) -> list[dict[str, bool]]:
        ids = _each_once(groups)
        parts = [ids[at : at + MOST] for at in range(0, len(ids), MOST)]
        answers: dict[str, bool] = {}
        try:
            for answer in await asyncio.gather(*(self._inventory.available(part) for part in parts)):
                answers |= answer
        except Problem:
            # Errors are not cached: the next one asks again.
            return [{}] * len(groups)
        await self._cache.fill(answers)
        return [answers] * len(groups)


def _each_once(groups: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(groups)))
