"""The clock of a process, which a test can set forward or back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from market.kit.config import Faults

# Returns the current time, in UTC.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


def clock(config: Faults | None) -> Clock:
    """Return the clock of a process: the current time in UTC, plus the offset that a test has configured."""
    if config is None or not config.clock_offset_seconds:
        return utc_now
    offset = timedelta(seconds=config.clock_offset_seconds)
    return lambda: utc_now() + offset
