"""Periodic tasks: repeated, stopped between two steps, and never stopped by an error."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from market.kit.process.tasks import periodic_tasks, run_periodically
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
