"""Background tasks of a process. Failures are logged and counted, and the task continues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from prometheus_client import Counter

from market.kit.process import logs
from market.kit.resilience import backoff, reraise_if_cancelled

log = logs.get_logger("tasks")

# Runs one iteration of a periodic task, and returns the seconds until the next.
Step = Callable[[], Awaitable[float]]

FAILURES = Counter(
    "market_background_task_failures_total", "Failures of background tasks, each of which is repeated.", ["task"]
)

_PAUSE_AFTER_ERROR_SECONDS = 1.0
_MAX_RESTART_SECONDS = 30.0
# After a task has run at least this long, its next failure starts with the shortest back-off again.
_HEALTHY_SECONDS = 60.0


async def supervise(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it returns, restarting it with back-off whenever it raises. Each failure is logged and counted.

    The pause before a restart grows from a few tenths of a second to 30 s.
    """
    failures = 0
    while True:
        started = time.monotonic()
        try:
            await work()
        except Exception as e:
            if time.monotonic() - started >= _HEALTHY_SECONDS:
                failures = 0
            failures += 1
            count_failure(name, e)
            pause = 0.1 + backoff(failures, base=0.2, max_seconds=_MAX_RESTART_SECONDS)
        else:
            return
        reraise_if_cancelled()
        await asyncio.sleep(pause)


def count_failure(name: str, error: BaseException) -> None:
    """Log and count a failure of a background task that goes on. Thread-safe."""
    FAILURES.labels(name).inc()
    log.error("background task failed, restarting it", task=name, error=_describe(error), exc_info=error)


def report_unhandled_exceptions(loop: asyncio.AbstractEventLoop) -> None:
    """Log and count exceptions that nobody handles, such as those of tasks that nobody awaits."""

    def report(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        FAILURES.labels("unsupervised").inc()
        log.error(
            "unhandled exception in the event loop",
            error=_describe(error) if isinstance(error, BaseException) else "",
            reason=str(context.get("message", ""))[:500],
            exc_info=error if isinstance(error, BaseException) else None,
        )

    loop.set_exception_handler(report)


def _describe(e: BaseException) -> str:
    return f"{type(e).__name__}: {e}"[:500]


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
            error = _describe(e)
            FAILURES.labels(name).inc()
            if error != last_error:
                log.warning("periodic task failed", task=name, error=error)
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
