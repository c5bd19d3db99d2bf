"""Failure points (failpoints): places in the code where a test can make a service crash, pause or fail.

    if faults: await faults.fire_if_armed("after-intent")   # crash, pause or fail
    if faults: faults.crash_if_armed("after-intent")        # crash only, in synchronous code

In production, `faults` is None, so a failure point costs one comparison.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from market.kit import config as kit_config
from market.kit.errors import Unavailable
from market.kit.process import logs

log = logs.get_logger("faults")


class InjectedFault(Unavailable):
    """Raised at a failure point whose action is `fail`."""


class Faults:
    """The failure points of one process.

    A test arms a point by creating a file with the point's name in `directory`. The file's content is the action:
    `crash` (the default, if the file is empty), `pause SECONDS` or `fail`. The point fires once, the next time that the
    code reaches it. Its file is then renamed to NAME.done.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    @classmethod
    def from_config(cls, config: kit_config.Faults | None) -> Faults | None:
        """Return the configured failure points, or None if there are none."""
        return cls(config.directory) if config is not None and config.directory else None

    def _take(self, name: str) -> str | None:
        path = self._directory / name
        taken = path.with_name(f"{name}.{os.getpid()}.taken")
        try:
            path.rename(taken)  # Atomic: only one of several processes succeeds.
        except OSError:
            return None
        action = taken.read_text().strip() or "crash"
        taken.rename(path.with_name(f"{name}.done"))
        log.warning("failure point fired", point=name, action=action)
        return action

    def crash_if_armed(self, name: str) -> None:
        """Kill the process if the point is armed, whatever its action is."""
        if self._take(name) is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    async def fire_if_armed(self, name: str) -> None:
        """Crash, pause or raise InjectedFault if the point is armed."""
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
