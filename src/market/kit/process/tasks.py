"""Work that goes on beside the requests of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from market.kit.process import logs
from market.kit.resilience import reraise_if_cancelled

log = logs.get_logger("tasks")


async def run_periodically(name: str, step: Callable[[], Awaitable[float]]) -> None:
    """Runs `step` for ever; it answers the seconds to wait until the next. What it raises is logged, and it goes on.

    An error that repeats is logged once until it changes or ends.
    """
    last = ""
    while True:
        try:
            pause = await step()
            if last:
                log.info(f"{name} works again")
            last = ""
        except Exception as e:
            text = f"{type(e).__name__}: {e}"
            if text != last:
                log.warning(f"{name} failed", error=text[:500])
            last = text
            pause = 1.0
        reraise_if_cancelled()
        await asyncio.sleep(pause)
