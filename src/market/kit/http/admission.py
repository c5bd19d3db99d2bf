"""Admission: decides which requests are admitted now, which have to wait, and which are refused.

    async with admission(request, weight=lines):
        ...

One thread handles all requests, so a small request would have to wait for all large ones in flight. Therefore only a
few large requests are in flight at the same time, and the others wait in a queue. Small requests have a limit and a
queue of their own. See docs/decisions/0013 for the reasons, the order of the queue, and measurements.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request

from market.kit import context
from market.kit.config import Admission as Limits
from market.kit.errors import Overloaded, TooManyRequests
from market.kit.http.caller import caller

ADMITTED = Counter("market_admission_admitted_total", "Requests admitted, by size: small or large.", ["size"])
REFUSED = Counter(
    "market_admission_refused_total",
    "Requests refused, by size and reason: caller (its requests exceed its limit, 429), queue (the queue is full, 503) "
    "or wait (the request has waited too long, 503).",
    ["size", "reason"],
)
WAITING = Gauge("market_admission_waiting_weight", "Weight of the requests that wait for admission, by size.", ["size"])
IN_FLIGHT = Gauge("market_admission_in_flight_weight", "Weight of the admitted requests in flight, by size.", ["size"])
WAIT = Histogram(
    "market_admission_wait_seconds",
    "How long requests waited before they were admitted, by size.",
    ["size"],
    buckets=[0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)

# Waiting requests are admitted in the order of their arrival time plus a penalty. The penalty is this constant times a
# sum: the weight of the request, plus the weight of each other request of the same caller that is not heavier.
_SECONDS_PER_WEIGHT = 0.002
# The maximum for Retry-After.
_MAX_RETRY_SECONDS = 30


class Admission:
    """Admits requests up to the limits.

    unit: what the weight counts, as a noun in the plural. It is used in error messages.
    clock: returns seconds, like time.monotonic.
    """

    def __init__(self, limits: Limits, *, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._small_weight = limits.small_weight
        self._small = _SizeClass("small", limits.max_small_weight, limits, unit, clock)
        self._large = _SizeClass("large", limits.max_large_weight, limits, unit, clock)

    def __call__(self, request: Request, weight: int) -> Ticket:
        """Return a context manager. Entering it waits until the request is admitted; leaving it admits the next one.

        Read the request's body first, because the check whether the client has disconnected would discard it.

        Entering raises TooManyRequests if the caller's requests exceed its limit, Overloaded if the queue is full or
        the request has waited too long, DeadlineExceeded at the request's deadline, and ClientDisconnect if the client
        has disconnected meanwhile. In each case, nothing was done.
        """
        return Ticket(self, request, weight)

    def size_class(self, weight: int) -> _SizeClass:
        """Return the size class of a request with this weight."""
        return self._small if weight <= self._small_weight else self._large


class Ticket:
    """The context manager of one request. The request is admitted while the block runs."""

    def __init__(self, admission: Admission, request: Request, weight: int) -> None:
        self._admission = admission
        self._request = request
        self._caller = caller(request)
        self._weight = weight
        # The size class in which the request was admitted. None while it is not admitted.
        self._size_class: _SizeClass | None = None

    async def __aenter__(self) -> Ticket:
        await self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def increase_weight(self, weight: int) -> None:
        """Increase the request's weight, and wait until it is admitted again. A smaller weight is ignored.

        Raises the same errors as entering.
        """
        if weight > self._weight:
            self._leave()
            self._weight = weight
            await self._enter()

    async def _enter(self) -> None:
        size_class = self._admission.size_class(self._weight)
        has_waited = await size_class.enter(self._caller, self._weight)
        self._size_class = size_class
        if has_waited:
            try:
                if _is_disconnected(self._request):
                    raise ClientDisconnect
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        if self._size_class is not None:
            self._size_class.leave(self._caller, self._weight)
            self._size_class = None


def _is_disconnected(request: Request) -> bool:
    """Return whether the client has disconnected, without waiting for a message.

    Starlette's method cancels a scope of anyio for it, which formats the task as text: that takes 30 us instead of 1.
    """
    receiving: Any = request.receive()
    try:
        # Runs until the message is there, or until it would have to wait for one.
        receiving.send(None)
    except StopIteration as received:
        return bool(received.value["type"] == "http.disconnect")
    receiving.close()
    return False


class _SizeClass:
    """The small or the large requests: the weight of those in flight, and a queue of those that wait."""

    def __init__(self, size: str, max_weight: int, limits: Limits, unit: str, clock: Callable[[], float]) -> None:
        self._max_weight = max_weight
        self._limits = limits
        self._unit = unit
        self._clock = clock
        # The total weight of the requests in flight, and of the waiting requests.
        self._in_flight = 0
        self._waiting = 0
        # How long the last admitted request waited, in seconds.
        self._last_wait = 0.0
        # A heap of (arrival time plus penalty, number, weight, future). The number makes entries with equal times
        # comparable. The future is done once the request is admitted.
        self._queue: list[tuple[float, int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        # The weights of each caller's requests, waiting or in flight. A caller without requests has no entry.
        self._callers: dict[str, list[int]] = {}
        self._admitted = ADMITTED.labels(size)
        self._wait = WAIT.labels(size)
        self._refused = {reason: REFUSED.labels(size, reason) for reason in ("caller", "queue", "wait")}
        IN_FLIGHT.labels(size).set_function(lambda: self._in_flight)
        WAITING.labels(size).set_function(lambda: self._waiting)

    async def enter(self, caller_id: str, weight: int) -> bool:
        """Wait until the request is admitted, and return whether it had to wait.

        Raises TooManyRequests, Overloaded, DeadlineExceeded.
        """
        own = self._callers.get(caller_id, [])
        total = sum(own) + weight
        limit = self._limits.max_caller_weight
        if own and total > limit:
            self._refused["caller"].inc()
            raise TooManyRequests(
                f"this caller's requests in progress would total {total} {self._unit}, but at most {limit} are "
                "allowed; wait for their responses",
                retry_after=self._retry_after,
            )
        must_wait = bool(self._queue) or not self._fits(weight)
        if must_wait and self._waiting + weight > self._limits.max_waiting_weight:
            self._refused["queue"].inc()
            raise Overloaded("too many requests are waiting", retry_after=self._retry_after)
        penalty = _SECONDS_PER_WEIGHT * (weight + sum(other for other in own if other <= weight))
        self._callers.setdefault(caller_id, []).append(weight)
        if must_wait:
            try:
                await self._wait_for_turn(penalty, weight)
            except BaseException:
                self._remove(caller_id, weight)
                raise
        else:
            self._in_flight += weight
            self._last_wait = 0.0
        self._admitted.inc()
        self._wait.observe(self._last_wait)
        return must_wait

    async def _wait_for_turn(self, penalty: float, weight: int) -> None:
        started = self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (started + penalty, next(self._numbers), weight, turn))
        self._waiting += weight
        max_wait = self._limits.max_wait_seconds
        seconds = context.remaining(max_wait)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as e:
            if turn.done() and not turn.cancelled():
                # The request was admitted just before it was cancelled.
                self._in_flight -= weight
            else:
                turn.cancel()
                self._waiting -= weight
                self._queue = [waiting for waiting in self._queue if waiting[-1] is not turn]
                heapq.heapify(self._queue)
            self._admit_next()
            if isinstance(e, TimeoutError):
                self._refused["wait"].inc()
                if seconds < max_wait:
                    raise context.deadline_exceeded() from None
                raise Overloaded(
                    f"the request was not admitted within {max_wait:g} s", retry_after=self._retry_after
                ) from None
            raise
        self._last_wait = self._clock() - started

    def leave(self, caller_id: str, weight: int) -> None:
        """Record that an admitted request is no longer in flight, and admit the next ones."""
        self._in_flight -= weight
        self._remove(caller_id, weight)
        self._admit_next()

    def _remove(self, caller_id: str, weight: int) -> None:
        own = self._callers[caller_id]
        own.remove(weight)
        if not own:
            del self._callers[caller_id]

    def _fits(self, weight: int) -> bool:
        return self._in_flight == 0 or self._in_flight + weight <= self._max_weight

    def _admit_next(self) -> None:
        while self._queue:
            _, _, weight, turn = self._queue[0]
            if not turn.cancelled():
                # Do not admit a lighter request instead, or this one might never be admitted.
                if not self._fits(weight):
                    return
                self._waiting -= weight
                self._in_flight += weight
                turn.set_result(None)
            heapq.heappop(self._queue)

    @property
    def _retry_after(self) -> int:
        """How long the last admitted request waited, as an estimate of the current wait: 1 to 30 seconds."""
        return min(_MAX_RETRY_SECONDS, max(1, math.ceil(self._last_wait)))
