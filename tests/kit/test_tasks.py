"""Periodic tasks: repeated, stopped between two steps, and never stopped by an error."""

from __future__ import annotations

import asyncio
import gc

from structlog.testing import capture_logs

from market.kit.process.tasks import (
    FAILURES,
    periodic_tasks,
    report_unhandled_exceptions,
    run_periodically,
    supervise,
)
from tests.support.waiting import until


async def test_each_step_is_repeated_after_the_pause_that_it_returns() -> None:
    calls: list[str] = []

    async def eager() -> float:
        calls.append("eager")
        return 0.0

    async def lazy() -> float:
        calls.append("lazy")
        return 1000.0

    async with periodic_tasks({"eager": eager, "lazy": lazy}):
        await until(lambda: calls.count("eager") >= 5)
    assert calls.count("lazy") == 1
    count = len(calls)
    await asyncio.sleep(0.05)
    assert len(calls) == count


async def test_a_step_in_progress_is_finished_and_no_other_begins() -> None:
    steps: list[str] = []
    entered, leave = asyncio.Event(), asyncio.Event()

    async def step() -> float:
        steps.append("begun")
        entered.set()
        await leave.wait()
        steps.append("finished")
        return 0.0

    async with periodic_tasks({"step": step}, stop_seconds=60):
        await entered.wait()
        asyncio.get_running_loop().call_later(0.05, leave.set)
    assert steps == ["begun", "finished"]


async def test_a_step_that_does_not_finish_in_time_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def step() -> float:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 0.0

    async with periodic_tasks({"step": step}, stop_seconds=0.05):
        await asyncio.sleep(0.01)
    assert cancelled.is_set()


async def test_an_error_is_logged_once_and_the_step_repeated() -> None:
    outcomes = iter([RuntimeError("down"), RuntimeError("down"), None])
    stopping = asyncio.Event()

    async def step() -> float:
        if (error := next(outcomes)) is not None:
            raise error
        stopping.set()
        return 1000.0

    with capture_logs() as lines:
        await run_periodically("relay", step, stopping=stopping)
    assert [(line["event"], line["task"], line.get("error")) for line in lines] == [
        ("periodic task failed", "relay", "RuntimeError: down"),
        ("periodic task recovered", "relay", None),
    ]


def _failures(name: str) -> float:
    """Return the number of failures counted for the task."""
    return float(FAILURES.labels(name)._value.get())


async def test_a_supervised_task_is_restarted_after_each_exception_until_it_returns() -> None:
    outcomes = iter([RuntimeError("first"), ValueError("second"), None])
    before = _failures("probe")

    async def work() -> None:
        if (error := next(outcomes)) is not None:
            raise error

    with capture_logs() as lines:
        async with asyncio.timeout(30):
            await supervise("probe", work)
    assert [(line["event"], line["task"], line["error"]) for line in lines] == [
        ("background task failed, will retry", "probe", "RuntimeError: first"),
        ("background task failed, will retry", "probe", "ValueError: second"),
    ]
    assert _failures("probe") == before + 2


async def test_a_supervised_task_ends_when_it_is_cancelled() -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.sleep(1000)

    task = asyncio.create_task(supervise("cancelled", work))
    await started.wait()
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    assert _failures("cancelled") == 0


async def test_an_error_of_a_periodic_task_is_counted_each_time() -> None:
    calls: list[int] = []
    before = _failures("counted")

    async def step() -> float:
        calls.append(1)
        raise RuntimeError("down")

    async with periodic_tasks({"counted": step}):
        await until(lambda: len(calls) >= 2)
    assert _failures("counted") == before + len(calls)


async def test_an_exception_that_nobody_handles_is_logged_and_counted() -> None:
    # What earlier tests have left must not be reported here.
    gc.collect()
    loop, before = asyncio.get_running_loop(), _failures("unsupervised")

    async def fail() -> None:
        raise RuntimeError("nobody waits for this")

    report_unhandled_exceptions(loop)
    try:
        with capture_logs() as lines:
            task = loop.create_task(fail())
            await asyncio.sleep(0.01)
            del task
            gc.collect()
            await asyncio.sleep(0.01)
    finally:
        loop.set_exception_handler(None)
    assert [(line["event"], line["error"]) for line in lines] == [
        ("unhandled exception in the event loop", "RuntimeError: nobody waits for this")
    ]
    assert _failures("unsupervised") == before + 1
