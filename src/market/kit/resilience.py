"""What keeps a dead neighbour from taking us along: retries with jitter and a budget, and a circuit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Counter, Gauge

from market.kit import context
from market.kit.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")

RETRIES = Counter("market_retries_total", "Calls that were made again.", ["upstream"])
CIRCUIT_OPEN = Gauge("market_circuit_open", "1 while calls to the upstream are refused here.", ["upstream"])


class CircuitOpen(Unavailable):
    """Refused here, without a call: the neighbour has not seen it."""


def backoff(attempt: int, *, base: float = 0.05, max_seconds: float = 2.0) -> float:
    """Seconds to wait before attempt 1, 2, ...: exponential, full jitter."""
    return random.uniform(0, min(max_seconds, base * 2 ** min(attempt, 30)))


def reraise_if_cancelled() -> None:
    """Raises CancelledError where the current task was cancelled. For whoever goes on after an error: a library on the way
    may have taken the cancellation for an error of its own (PyMongo takes it for one of the network)."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


class CircuitBreaker:
    """Refuses calls for a while after `failures` in a row, then lets one through to try.

    `await circuit(call)` raises CircuitOpen while open. Which exceptions count is the caller's to
    say: `counts`. A DeadlineExceeded that came sooner than `slow_after_seconds` seconds does not count: it is
    the caller who was in a hurry, not the neighbour who was slow.
    """

    def __init__(
        self,
        neighbour: str,
        *,
        failures: int = 5,
        # A neighbour that is back has to be found out by one call; in between the others fail without need.
        open_seconds: float = 0.3,
        counts: tuple[type[BaseException], ...] = (Unavailable,),
        slow_after_seconds: float = 0.0,
        # Looked up at each call, as long as tests of products stop `time` here.
        clock: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._neighbour = neighbour
        self._limit = failures
        self._open_seconds = open_seconds
        self._counts = counts
        self._slow_after_seconds = slow_after_seconds
        self._clock = clock
        self._failed = 0
        self._until = 0.0
        self._trying = False
        self._gauge = CIRCUIT_OPEN.labels(neighbour)

    @property
    def is_open(self) -> bool:
        """Whether a call made now would be refused."""
        return self._failed >= self._limit and (self._clock() < self._until or self._trying)

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.is_open:
            raise CircuitOpen(f"{self._neighbour} does not answer")
        trial = self._failed >= self._limit
        if trial:
            self._trying = True
        started = self._clock()
        try:
            result = await call()
        except self._counts as e:
            if not (isinstance(e, DeadlineExceeded) and self._clock() - started < self._slow_after_seconds):
                self._failed += 1
                if self._failed >= self._limit:
                    self._until = self._clock() + self._open_seconds
                    self._gauge.set(1)
            raise
        else:
            # Closed by the first success.
            if self._failed:
                self._failed = 0
                self._gauge.set(0)
            return result
        finally:
            if trial:
                self._trying = False


class RetryBudget:
    """Retries may be at most `ratio` of the calls, with a few to start with: no storm on a slow neighbour."""

    def __init__(self, neighbour: str, *, ratio: float = 0.2, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._most = reserve
        self._tokens = reserve
        self._count = RETRIES.labels(neighbour)

    def record_call(self) -> None:
        """Counts a call; a part of a retry is earned."""
        self._tokens = min(self._most, self._tokens + self._ratio)

    def take_retry(self) -> bool:
        """Whether one more attempt is allowed; counts it."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._count.inc()
        return True


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    budget: RetryBudget,
    attempts: int = 3,
    retry_on: tuple[type[BaseException], ...] = (Unavailable,),
    never: tuple[type[BaseException], ...] = (CircuitOpen,),
) -> T:
    """The call's result, tried again on `retry_on` but `never`, while attempts, budget and the deadline allow. For idempotent calls only.

    What an open circuit refused is not tried again: it would only spend the budget.
    """
    budget.record_call()
    for attempt in range(1, attempts + 1):
        try:
            return await call()
        except never:
            raise
        except retry_on:
            pause = backoff(attempt)
            if attempt == attempts or context.remaining(60) <= pause or not budget.take_retry():
                raise
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")
