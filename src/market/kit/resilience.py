"""Protection against failing upstreams: retries with jitter and a budget, and a circuit breaker."""

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

RETRIES = Counter("market_retries_total", "Retries of calls to an upstream.", ["upstream"])
CIRCUIT_OPEN = Gauge(
    "market_circuit_breaker_open",
    "1 from the opening of the circuit breaker until a call to the upstream succeeds.",
    ["upstream"],
)


class CircuitOpen(Unavailable):
    """The circuit breaker refused the call, so the upstream has not seen it."""


def backoff(retry_number: int, *, base_seconds: float = 0.05, max_seconds: float = 2.0) -> float:
    """Return the seconds to wait before a retry: a random number from 0 to base_seconds * 2 ** retry_number.

    retry_number: 1 for the first retry. max_seconds: the maximum of the result.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return random.uniform(0, min(max_seconds, base_seconds * 2 ** min(retry_number, 30)))


def reraise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled.

    Call this after catching an exception that is not re-raised. Some libraries replace a CancelledError by an error of
    their own: PyMongo, for example, raises a network error.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


class CircuitBreaker:
    """Opens after `failure_threshold` consecutive failures, and refuses calls for `open_seconds`.

    Then it is half-open: it permits one call at a time, as a trial. It closes if the trial succeeds, and opens again if
    the trial fails. If the trial is cancelled, it stays half-open.

    upstream: the name in metrics and errors.
    failure_types: the exceptions that count as failures. Any other Exception counts as a success, because the upstream
        has responded.
    ignore_deadlines_below_seconds: a call that raises DeadlineExceeded sooner than this counts neither as a failure nor
        as a success: its caller had so little time left that even a healthy upstream could have missed the deadline.
    clock: returns seconds, like time.monotonic.
    """

    def __init__(
        self,
        upstream: str,
        *,
        failure_threshold: int = 5,
        # Short, because calls are refused for this time even if the upstream has recovered.
        open_seconds: float = 0.3,
        failure_types: tuple[type[BaseException], ...] = (Unavailable,),
        ignore_deadlines_below_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._failure_threshold = failure_threshold
        self._open_seconds = open_seconds
        self._failure_types = failure_types
        self._ignore_deadlines_below_seconds = ignore_deadlines_below_seconds
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._trial_in_flight = False
        self._gauge = CIRCUIT_OPEN.labels(upstream)

    @property
    def is_open(self) -> bool:
        """Whether a call made now would be refused."""
        return self._failures >= self._failure_threshold and (self._clock() < self._open_until or self._trial_in_flight)

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the call's result. Raises CircuitOpen without calling while the circuit is open."""
        if self.is_open:
            raise CircuitOpen(f"{self._upstream} is unavailable")
        is_trial = self._failures >= self._failure_threshold
        if is_trial:
            self._trial_in_flight = True
        started = self._clock()
        try:
            result = await call()
        except self._failure_types as e:
            elapsed = self._clock() - started
            if not (isinstance(e, DeadlineExceeded) and elapsed < self._ignore_deadlines_below_seconds):
                self._failures += 1
                if self._failures >= self._failure_threshold:
                    self._open_until = self._clock() + self._open_seconds
                    self._gauge.set(1)
            raise
        except Exception:
            self._close()
            raise
        else:
            self._close()
            return result
        finally:
            if is_trial:
                self._trial_in_flight = False

    def _close(self) -> None:
        if self._failures:
            self._failures = 0
            self._gauge.set(0)


class RetryBudget:
    """A token bucket that limits retries to a share of the calls, so that retries cannot overload a slow upstream.

    upstream: the name in metrics.
    ratio: how many tokens each call adds. A retry takes one.
    max_tokens: the size of the bucket, which is also the largest burst of retries. The bucket is full at first.

    Source: the token bucket of gRPC's retry throttling, https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    """

    def __init__(self, upstream: str, *, ratio: float = 0.2, max_tokens: float = 10.0) -> None:
        self._ratio = ratio
        self._max_tokens = max_tokens
        self._tokens = max_tokens
        self._retries = RETRIES.labels(upstream)

    def record_call(self) -> None:
        """Record a call, which adds `ratio` tokens."""
        self._tokens = min(self._max_tokens, self._tokens + self._ratio)

    def take_retry(self) -> bool:
        """Take a token for a retry. Return False if none is left."""
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
    do_not_retry_on: tuple[type[BaseException], ...] = (CircuitOpen,),
) -> T:
    """Make an idempotent call and return its result. If it raises one of `retry_on`, retry it with back-off.

    Raises the call's error after the last attempt, and sooner if the budget is used up or the deadline is too close.

    attempts: the maximum number of attempts, including the first one.
    do_not_retry_on: exceptions that are raised at once. By default, a call that the circuit breaker refused is not
        retried, because that would only use up the budget.
    """
    budget.record_call()
    for attempt in range(1, attempts + 1):
        try:
            return await call()
        except do_not_retry_on:
            raise
        except retry_on:
            pause = backoff(attempt)
            if attempt == attempts or context.remaining(60) <= pause or not budget.take_retry():
                raise
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")
