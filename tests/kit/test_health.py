"""Waiting for a dependency."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from market.kit.process.health import Health
from market.kit.process.tasks import run_periodically


class SwallowsCancellation:
    """An unavailable store, behind a library that turns a cancellation into a network error."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def __call__(self) -> Any:
        if self.called.is_set():
            # Only the first time, so that a failing test can end.
            await asyncio.sleep(3600)
        self.called.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise OSError("connection lost") from None


async def test_waiting_can_be_cancelled_even_if_a_library_swallows_the_cancellation() -> None:
    for work in (lambda call: Health().wait_for("store", call), lambda call: run_periodically("loop", call)):
        call = SwallowsCancellation()
        task = asyncio.create_task(work(call))
        await call.called.wait()
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=20)
        task.cancel()
        assert done, "it still waits"
        with pytest.raises(asyncio.CancelledError):
            task.result()
