"""Background tasks of a process. A failure is logged and counted, and the task is run again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from prometheus_client import Counter

from market.kit.process import logs
from market.kit.resilience import backoff, reraise_if_cancelled

log = logs.get_logger("tasks")

# Runs a periodic task once, and returns the seconds until the next run.
PeriodicTask = Callable[[], Awaitable[float]]

FAILURES = Counter(
    "market_background_task_failures_total",
    "Exceptions that background tasks raised, by task. The task `unsupervised` counts all other unhandled exceptions.",
    ["task"],
)

_PAUSE_AFTER_ERROR_SECONDS = 1.0
_MAX_RESTART_SECONDS = 30.0
# If a task runs for at least this long before it fails, the back-off is reset.
_HEALTHY_SECONDS = 60.0


async def supervise(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it returns. If it raises, log and count the failure, and restart it with back-off.

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
            pause = 0.1 + backoff(failures, base_seconds=0.2, max_seconds=_MAX_RESTART_SECONDS)
        else:
            return
        reraise_if_cancelled()
        await asyncio.sleep(pause)


def count_failure(name: str, error: BaseException) -> None:
    """Log and count a failure of a background task that keeps running or is restarted. Thread-safe."""
    FAILURES.labels(name).inc()
    log.error("background task failed, will retry", task=name, error=_describe(error), exc_info=error)


def report_unhandled_exceptions(loop: asyncio.AbstractEventLoop) -> None:
    """Log and count exceptions that no code handles, such as those of tasks that are never awaited."""

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


async def run_periodically(name: str, task: PeriodicTask, *, stopping: asyncio.Event | None = None) -> None:
    """Run the task repeatedly until `stopping` is set or this call is cancelled. After an error, wait 1 s.

    If `stopping` is set during a run, the run is finished. Each error is counted, and logged unless the previous run
    raised the same error.
    """
    stopping = stopping or asyncio.Event()
    last_error = ""
    while not stopping.is_set():
        try:
            pause = await task()
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
async def periodic_tasks(tasks: Mapping[str, PeriodicTask], *, stop_seconds: float = 3.0) -> AsyncIterator[None]:
    """Run each task periodically while the block runs. The keys of `tasks` are the names in logs and metrics.

    At the end of the block, runs in progress have up to `stop_seconds` to finish. Then they are cancelled. They are not
    cancelled at once, because a cancelled call to a store closes its connection.
    """
    stopping = asyncio.Event()
    running = [asyncio.create_task(run_periodically(name, task, stopping=stopping)) for name, task in tasks.items()]
    try:
        yield
    finally:
        stopping.set()
        if running:
            await asyncio.wait(running, timeout=stop_seconds)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
