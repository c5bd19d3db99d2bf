"""Times in requests: what is accepted, and how it is rounded."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from market.kit.errors import BadInput
from market.kit.times import parse_interval, parse_time


def test_a_time_is_rounded_up_to_milliseconds() -> None:
    assert parse_time("from", "2026-01-31T12:00:00.0001+01:00") == datetime(2026, 1, 31, 11, 0, 0, 1000, UTC)


def test_a_time_may_have_any_number_of_zeros_in_its_fraction() -> None:
    assert parse_time("from", f"2026-01-31T12:00:00.{'0' * 80}Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_text_after_a_long_time_is_rejected() -> None:
    with pytest.raises(BadInput, match="from: must be a time with an offset"):
        parse_time("from", f"2026-01-31T12:00:00.{'0' * 43}Z and more")


def test_an_interval_within_one_millisecond_is_empty() -> None:
    limit = datetime(2026, 1, 31, 12, 0, 0, 1000, UTC)
    interval = parse_interval("from", "2026-01-31T12:00:00.0001Z", "to", "2026-01-31T12:00:00.0009Z")
    assert interval == (limit, limit)


def test_an_interval_whose_limits_are_in_the_wrong_order_is_rejected() -> None:
    with pytest.raises(BadInput, match="from: must not be after `to`"):
        parse_interval("from", "2026-01-31T12:00:00.001Z", "to", "2026-01-31T12:00:00Z")
