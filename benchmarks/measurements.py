"""What one round measured, and what several rounds say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from msgspec import Struct


class Latency(Struct, frozen=True):
    """Percentiles in milliseconds."""

    p50: float = 0
    p95: float = 0
    p99: float = 0
    p999: float = 0


def percentiles(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of latencies in seconds; all 0 if there are none."""
    if not seconds:
        return Latency()
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return Latency(
        *(round(1000 * ordered[min(last, int(share * len(ordered)))], 3) for share in (0.5, 0.95, 0.99, 0.999))
    )


class Measurement(Struct, kw_only=True):
    """One round of one contestant.

    value: in the scenario's unit, a rate or a duration
    operations: how many completed; None if the value does not come from counting
    latency: in the closed loop
    open_loop: latency at the fixed rate `open_loop_rate`, a share of what this contestant reached in the closed loop
    at_peer_rate: latency at `peer_rate`, the rate at which the peer's `open_loop` is measured
    cpu_ms: milliseconds of CPU per operation, by process
    """

    value: float
    operations: int | None = None
    latency: Latency | None = None
    open_loop: Latency | None = None
    open_loop_rate: float | None = None
    at_peer_rate: Latency | None = None
    peer_rate: float | None = None
    cpu_ms: dict[str, float] = {}
    notes: dict[str, Any] = {}


# Fewer operations in a round are not significant: the machine or the contestant stalled.
MIN_OPERATIONS = 10


def is_significant(measurement: Measurement) -> bool:
    """Return whether enough operations completed for the value to mean something."""
    return measurement.operations is None or measurement.operations >= MIN_OPERATIONS


class Spread(Struct, frozen=True):
    """The median, minimum and maximum of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def ratio_to(ours: Sequence[Measurement], other: Sequence[Measurement]) -> Spread | None:
    """Return the ratio over the rounds in which the other is significant, or None if most rounds are not.

    A round in which ours is not significant counts: leaving it out would flatter us.
    """
    pairs = [(a.value, b.value) for a, b in zip(ours, other, strict=True) if is_significant(b)]
    if 2 * len(pairs) <= len(ours):
        return None
    return ratio([a for a, _ in pairs], [b for _, b in pairs])


def ratio(a: Sequence[float], b: Sequence[float]) -> Spread:
    """Return the ratio round by round, since a disturbance of the machine in a round affects both of its values."""
    return Spread.of([x / y if y else 0.0 for x, y in zip(a, b, strict=True)])


class Row(Struct, kw_only=True):
    """One row of latest.json.

    met: None if there is no goal; False also if it could not be judged, and the remark then says why
    before: the build of an earlier commit, in the rows of the section "Beside the commit before"
    """

    scenario: str
    unit: str
    ours: float | None
    peer: float | None
    limit: float | None
    ratio_to_peer: float | None
    ratio_to_limit: float | None
    goal: str
    met: bool | None
    spread_to_peer: list[float] | None = None
    spread_to_limit: list[float] | None = None
    remark: str = ""
    before: float | None = None
    ratio_to_before: float | None = None
    spread_to_before: list[float] | None = None
