"""Protection against upstreams that fail: retries with jitter and a budget, and a circuit breaker."""

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

RETRIES = Counter("market_retries_total", "Calls to an upstream that were repeated.", ["upstream"])
CIRCUIT_OPEN = Gauge("market_circuit_breaker_open", "1 while calls to the upstream are refused locally.", ["upstream"])


class CircuitOpen(Unavailable):
    """The circuit breaker refused the call, so that the upstream has not seen it."""


def backoff(attempt: int, *, base: float = 0.05, max_seconds: float = 2.0) -> float:
    """Return the seconds to wait before attempt 1, 2, ...: exponential, with full jitter.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return random.uniform(0, min(max_seconds, base * 2 ** min(attempt, 30)))


def reraise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled.

    For code that continues after an error: a library may have replaced the cancellation by an error of its own. PyMongo
    turns it into a network error.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


class CircuitBreaker:
    """Refuses calls for `open_seconds` after `failures` in a row; then one trial call decides whether it closes.

    upstream: the name in metrics and errors.
    counts: the exceptions that count as failures.
    slow_after_seconds: a DeadlineExceeded that came sooner does not count, because the caller had little time left:
        that says nothing about the upstream.
    clock: seconds, as time.monotonic returns them.
    """

    def __init__(
        self,
        upstream: str,
        *,
        failures: int = 5,
        # Short, because until the trial call every other call fails, also when the upstream has recovered.
        open_seconds: float = 0.3,
        counts: tuple[type[BaseException], ...] = (Unavailable,),
        slow_after_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._max_failures = failures
        self._open_seconds = open_seconds
        self._counts = counts
        self._slow_after_seconds = slow_after_seconds
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._trial_in_flight = False
        self._gauge = CIRCUIT_OPEN.labels(upstream)

    @property
    def is_open(self) -> bool:
        """Whether a call made now would be refused."""
        return self._failures >= self._max_failures and (self._clock() < self._open_until or self._trial_in_flight)

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the call's result. Raises CircuitOpen without calling while the circuit is open."""
        if self.is_open:
            raise CircuitOpen(f"{self._upstream} is unavailable")
        is_trial = self._failures >= self._max_failures
        if is_trial:
            self._trial_in_flight = True
        started = self._clock()
        try:
            result = await call()
        except self._counts as e:
            if not (isinstance(e, DeadlineExceeded) and self._clock() - started < self._slow_after_seconds):
                self._failures += 1
                if self._failures >= self._max_failures:
                    self._open_until = self._clock() + self._open_seconds
                    self._gauge.set(1)
            raise
        else:
            # The first success closes the circuit.
            if self._failures:
                self._failures = 0
                self._gauge.set(0)
            return result
        finally:
            if is_trial:
                self._trial_in_flight = False


class RetryBudget:
    """Limits retries to `ratio` of the calls, plus a `reserve`, so that retries cannot overload a slow upstream.

    Source: the token bucket of gRPC's retry throttling, https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    """

    def __init__(self, upstream: str, *, ratio: float = 0.2, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._max_tokens = reserve
        self._tokens = reserve
        self._retries = RETRIES.labels(upstream)

    def record_call(self) -> None:
        """Record a call; it earns `ratio` of a retry."""
        self._tokens = min(self._max_tokens, self._tokens + self._ratio)

    def take_retry(self) -> bool:
        """Return whether a retry is allowed, and count it if so."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._retries.inc()
        return True


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    budget: RetryBudget,
    attempts: int = 3,
    retry_on: tuple[type[BaseException], ...] = (Unavailable,),
    never: tuple[type[BaseException], ...] = (CircuitOpen,),
) -> T:
    """Return the result of an idempotent call, repeated on `retry_on`, but not on `never`.

    It is repeated while attempts, budget and deadline allow, after a back-off; then the last error is raised. A call
    that an open circuit refused is not repeated, because that would only use up the budget.
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
