"""Waiting for a store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from market.kit.process.health import Health
from market.kit.process.tasks import run_periodically


class Deaf:
    """A store that is away, behind a library that takes a cancellation for an error of the network."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def __call__(self) -> Any:
        if self.asked.is_set():
            # Once is enough, and lets a test that fails come to its end.
            await asyncio.sleep(3600)
        self.asked.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise OSError("connection lost") from None


async def test_who_waits_for_a_store_can_be_cancelled_whatever_its_library_makes_of_it() -> None:
    for work in (lambda deaf: Health().wait_for("store", deaf), lambda deaf: run_periodically("loop", deaf)):
        deaf = Deaf()
        task = asyncio.create_task(work(deaf))
        await deaf.asked.wait()
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=20)
        task.cancel()
        assert done, "it waits on"
        with pytest.raises(asyncio.CancelledError):
            task.result()
