"""What a round measured, and what several rounds say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from msgspec import Struct


class Latency(Struct, frozen=True):
    """Milliseconds."""

    p50: float = 0
    p95: float = 0
    p99: float = 0
    p999: float = 0


def percentiles(seconds: Sequence[float]) -> Latency:
    """Of latencies in seconds."""
    if not seconds:
        return Latency()
    ordered = sorted(seconds)
    most = len(ordered) - 1
    return Latency(
        *(round(1000 * ordered[min(most, int(share * len(ordered)))], 3) for share in (0.5, 0.95, 0.99, 0.999))
    )


class Figure(Struct, kw_only=True):
    """One round of one contestant. `cpu`: ms per operation by process. `done`: operations that the value is made of.

    `open`: latency at the fixed rate `open_rate`, a share of what this contestant can do; `beside`: at the
    rate that is a share of what the peer can do, and the peer's own `open_rate`.
    """

    value: float
    done: int | None = None
    latency: Latency | None = None
    open: Latency | None = None
    open_rate: float | None = None
    beside: Latency | None = None
    beside_rate: float | None = None
    cpu: dict[str, float] = {}
    notes: dict[str, Any] = {}


# Fewer operations than this in a round say nothing: the machine was starved, or the contestant stood still.
LEAST_DONE = 10


def tells(figure: Figure) -> bool:
    """Whether enough was done in the round for its value to mean something."""
    return figure.done is None or figure.done >= LEAST_DONE


class Spread(Struct, frozen=True):
    """The median of the rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def against(own: Sequence[Figure], other: Sequence[Figure]) -> Spread | None:
    """The ratio of the rounds in which the other did enough to be compared with; None where most rounds are not such.

    A round in which our own did next to nothing counts: leaving it out would flatter.
    """
    pairs = [(a.value, b.value) for a, b in zip(own, other, strict=True) if tells(b)]
    if 2 * len(pairs) <= len(own):
        return None
    return ratio([a for a, _ in pairs], [b for _, b in pairs])


def ratio(a: Sequence[float], b: Sequence[float]) -> Spread:
    """Of the rounds' figures, pair by pair: what disturbs a round disturbs both of its figures."""
    return Spread.of([x / y if y else 0.0 for x, y in zip(a, b, strict=True)])


class Row(Struct, kw_only=True):
    """One line of latest.json. `met` is false, too, where nothing could be judged; the remark then says why."""

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
