"""Wait for a condition instead of for a time. A machine may stand still for seconds, so limits are generous."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

# Seconds that anything may take in a test that is not about too little time.
PATIENCE = 60.0

Description = str | Callable[[], object]


async def until(
    condition: Callable[[], T | Awaitable[T]],
    seconds: float = PATIENCE,
    what: Description = "",
    *,
    interval: float = 0.02,
) -> T:
    """Return the condition's first true value; the condition may be plain or return an awaitable.

    Raises AssertionError with `what` (a text, or a function that returns one) after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return cast(T, value)
        assert not late, _message(what, seconds)
        await asyncio.sleep(interval)


def wait_until(
    condition: Callable[[], T], seconds: float = PATIENCE, what: Description = "", *, interval: float = 0.02
) -> T:
    """`until` for tests without an event loop."""
    deadline = time.monotonic() + seconds
    while True:
        # Read before the condition, so that there is one check after the deadline: this process may have been
        # paused in between.
        late = time.monotonic() >= deadline
        if value := condition():
            return value
        assert not late, _message(what, seconds)
        time.sleep(interval)


def _message(what: Description, seconds: float) -> str:
    return f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
