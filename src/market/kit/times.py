"""Times in requests: points in time (RFC 3339), half-open intervals of them, and days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from market.kit.errors import BadInput

_MILLISECOND = timedelta(milliseconds=1)
_Time = Annotated[datetime, Meta(tz=True)]


def parse_time(field: str, value: str) -> datetime:
    """Return the time in UTC, rounded up to milliseconds. Raises BadInput unless it has an offset (RFC 3339).

    Stored times have whole milliseconds, so rounding up does not change whether a stored time is earlier than this one.
    """
    try:
        at: datetime = msgspec.convert(value, _Time).astimezone(UTC)
        excess = timedelta(microseconds=at.microsecond % 1000)
        return at + (_MILLISECOND - excess if excess else excess)
    except (msgspec.ValidationError, OverflowError):
        raise BadInput(field, "must be a time with an offset (RFC 3339), such as 2026-01-31T12:00:00Z") from None


def parse_interval(
    from_field: str, from_value: str | None, to_field: str, to_value: str | None
) -> tuple[datetime | None, datetime | None]:
    """Return the limits of a half-open interval. A limit of None means that there is none.

    Raises BadInput if a limit is not a time, or if the first limit is after the second.
    """
    begin = None if from_value is None else parse_time(from_field, from_value)
    end = None if to_value is None else parse_time(to_field, to_value)
    if begin is not None and end is not None and begin > end:
        raise BadInput(from_field, f"must not be after `{to_field}`")
    return begin, end


# The first and the last day that are accepted. Calculations with them do not exceed the limits of dates.
_FIRST_DAY, _LAST_DAY = date(1970, 1, 1), date(9998, 12, 31)


def parse_day(field: str, value: str) -> date:
    """Return the day. Raises BadInput unless the text is a date such as 2026-01-31."""
    try:
        day = date.fromisoformat(value)
    except ValueError:
        raise BadInput(field, "must be a date such as 2026-01-31") from None
    # date.fromisoformat also accepts other forms, such as 20260131.
    if day.isoformat() != value:
        raise BadInput(field, "must be a date such as 2026-01-31")
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise BadInput(field, f"must be from {_FIRST_DAY} to {_LAST_DAY}, got {day}")
    return day
