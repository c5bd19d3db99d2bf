"""Failure points: places where a test can make a service stop dead, pause or fail.

    if faults: faults.crash_if_armed("after-intent")            # in sync code, crash only
    if faults: await faults.reach("after-intent")   # crash, pause or fail

`faults` is None in every real run, so an unused point costs one comparison.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from market.kit import config as kit_config
from market.kit.errors import Unavailable
from market.kit.process import logs

log = logs.get_logger("faults")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


def clock(config: kit_config.Faults | None) -> Clock:
    """The time of day; wrong by the configured offset where a test wants it so."""
    if config is None or not config.clock_offset_seconds:
        return utc_now
    offset = timedelta(seconds=config.clock_offset_seconds)
    return lambda: datetime.now(UTC) + offset


class InjectedFault(Unavailable):
    """A failure that a test asked for."""


class Faults:
    """The armed points of one process, read from the directory at each passing."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    @classmethod
    def of(cls, config: kit_config.Faults | None) -> Faults | None:
        return cls(config.directory) if config is not None and config.directory else None

    def _take(self, name: str) -> str | None:
        path = self._directory / name
        taken = path.with_name(f"{name}.{os.getpid()}.taken")
        try:
            path.rename(taken)  # Atomic: one process of many gets it.
        except OSError:
            return None
        action = taken.read_text().strip() or "crash"
        taken.rename(path.with_name(f"{name}.done"))
        log.warning("failure point reached", point=name, action=action)
        return action

    def crash_if_armed(self, name: str) -> None:
        """Dies here if the point is armed."""
        if self._take(name) is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    async def reach(self, name: str) -> None:
        """Dies, waits or raises InjectedFault here if the point is armed."""
        action = self._take(name)
        if action is None:
            return
        verb, _, seconds = action.partition(" ")
        if verb == "pause":
            await asyncio.sleep(float(seconds))
        elif verb == "fail":
            raise InjectedFault(f"failure point {name}")
        else:
            os.kill(os.getpid(), signal.SIGKILL)
