"""A clock that a test moves, for what takes `clock` and `sleep` as parameters."""

from __future__ import annotations

import time


class FakeClock:
    """Call it for the current time in seconds; it stands still until `advance` or `sleep` moves it."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Return at once with the clock moved; `sleeps` has all durations."""
        self.sleeps.append(seconds)
        self.advance(seconds)
