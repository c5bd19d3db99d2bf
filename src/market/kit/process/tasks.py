"""Periodic work beside the requests of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from market.kit.process import logs
from market.kit.resilience import reraise_if_cancelled

log = logs.get_logger("tasks")

# Does one portion of work, and returns the seconds until the next.
Step = Callable[[], Awaitable[float]]

_PAUSE_AFTER_ERROR_SECONDS = 1.0


async def run_periodically(name: str, step: Step, *, stopping: asyncio.Event | None = None) -> None:
    """Repeat the step until `stopping` is set, or until cancelled. An error is logged, and the step repeated after 1 s.

    `stopping` takes effect between two steps, never within one. An error is logged again only after it changed or
    the step succeeded.
    """
    stopping = stopping or asyncio.Event()
    last_error = ""
    while not stopping.is_set():
        try:
            pause = await step()
            if last_error:
                log.info("periodic task recovered", task=name)
            last_error = ""
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
            if error != last_error:
                log.warning("periodic task failed", task=name, error=error[:500])
            last_error = error
            pause = _PAUSE_AFTER_ERROR_SECONDS
        reraise_if_cancelled()
        try:
            async with asyncio.timeout(pause):
                await stopping.wait()
        except TimeoutError:
            continue


@asynccontextmanager
async def periodic_tasks(steps: Mapping[str, Step], *, stop_seconds: float = 3.0) -> AsyncIterator[None]:
    """Run each step periodically, by name, while the block runs.

    At the end of the block a step in progress may finish within `stop_seconds`, since a driver that is cancelled in the
    middle of a call closes its connection. Steps that are still running after that are cancelled.
    """
    stopping = asyncio.Event()
    tasks = [asyncio.create_task(run_periodically(name, step, stopping=stopping)) for name, step in steps.items()]
    try:
        yield
    finally:
        stopping.set()
        if tasks:
            await asyncio.wait(tasks, timeout=stop_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
