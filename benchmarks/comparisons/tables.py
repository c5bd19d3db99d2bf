"""Tables of what two builds measured, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.measurements import Measurement, ratio

# What a row shows of a measurement, by the row's name.
Rows = Mapping[str, Callable[[Measurement], float]]
HEAD = ["| what | ours | before | ratio |", "|---|---|---|---|"]


def render_rows(rows: Rows, ours: Sequence[Measurement], before: Sequence[Measurement]) -> list[str]:
    """Return a line for each row: the medians of both builds, and the ratio."""
    lines = []
    for name, value in rows.items():
        a, b = [value(m) for m in ours], [value(m) for m in before]
        lines.append(f"| {name} | {statistics.median(a):,.4g} | {statistics.median(b):,.4g} | {render_ratio(a, b)} |")
    return lines


def render_ratio(ours: Sequence[float], before: Sequence[float]) -> str:
    """Return the median of the rounds' ratios ours / before, with their range."""
    spread = ratio(ours, before)
    return f"{spread.median:.2f} ({spread.low:.2f} - {spread.high:.2f})"
