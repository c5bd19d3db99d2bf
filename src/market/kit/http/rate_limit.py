"""A rate limit per caller: a token bucket for each, in a table of bounded size."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from market.kit.errors import TooManyRequests

_MAX_CALLERS = 10_000
# The maximum for Retry-After.
_MAX_RETRY_SECONDS = 3600


class RateLimit:
    """Allows each caller `per_second` requests per second, and bursts of up to `burst` requests.

    If there are more than `max_callers`, the one whose last request is oldest is dropped. If it sends another request,
    it starts with a full bucket.

    clock: returns seconds, like time.monotonic.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        *,
        max_callers: int = _MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._max_callers = max_callers
        self._clock = clock
        # By caller: the tokens in its bucket, which is how many requests it may send, and when they were computed.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Count a request of the caller. If it exceeds the limit, raise TooManyRequests and do not count it."""
        now = self._clock()
        left, updated_at = self._buckets.get(caller, (float(self._burst), now))
        left = min(float(self._burst), left + (now - updated_at) * self._per_second)
        is_allowed = left >= 1
        self._buckets[caller] = (left - 1 if is_allowed else left, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > self._max_callers:
            self._buckets.popitem(last=False)
        if not is_allowed:
            raise TooManyRequests(
                f"at most {self._per_second:g} requests per second are allowed for one caller",
                retry_after=min(_MAX_RETRY_SECONDS, max(1, math.ceil((1 - left) / self._per_second))),
            )
