"""Plots as SVG: one bar per contestant, with its rounds as dots."""

from __future__ import annotations

import statistics
from html import escape
from typing import Any

_COLOURS = {"ours": "#2563eb", "graphql": "#2563eb", "peer": "#d97706", "before": "#d97706", "limit": "#64748b"}
_WIDTH, _LEFT, _RIGHT, _ROW = 760, 150, 110, 30


def plot(entry: Any) -> str:
    """Return the SVG of a scenario's measurements; a line over time if there are samples of memory."""
    first = entry.measurements.get("ours", [None])[0]
    if first is not None and "totals_MiB" in first.notes:
        return _line_plot(entry.title, first.notes["totals_MiB"], first.notes["minutes"])
    highest = max((m.value for rounds in entry.measurements.values() for m in rounds), default=1) or 1
    scale = (_WIDTH - _LEFT - _RIGHT) / highest
    parts = [
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(entry.title)} ({escape(entry.unit)})</text>'
    ]
    for n, (name, rounds) in enumerate(entry.measurements.items()):
        y = 34 + n * _ROW
        values = [m.value for m in rounds]
        median = statistics.median(values)
        colour = _COLOURS.get(name.split(" ")[0], "#94a3b8")
        bar = f'width="{median * scale:.1f}" height="{_ROW - 10}" fill="{colour}" opacity="0.75"'
        label = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 16}" font-size="12" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{y + 3}" {bar}/>',
            *(
                f'<circle cx="{_LEFT + v * scale:.1f}" cy="{y + 13}" r="3" fill="#111827" opacity="0.6"/>'
                for v in values
            ),
            f'<text x="{_LEFT + max(values) * scale + 8:.1f}" y="{y + 17}" font-size="12">{label}</text>',
        ]
    return _svg(parts, 44 + len(entry.measurements) * _ROW)


def _line_plot(title: str, values: list[float], minutes: float) -> str:
    top = max(values) * 1.1
    height, width = 200, _WIDTH - 100
    points = " ".join(
        f"{60 + width * i / max(1, len(values) - 1):.1f},{40 + height * (1 - v / top):.1f}"
        for i, v in enumerate(values)
    )
    title = f"{escape(title)} (MiB, {minutes:g} minutes of load)"
    label = 'font-size="12" text-anchor="end"'
    parts = [
        f'<text x="10" y="20" font-size="14" font-weight="bold">{title}</text>',
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="2"/>',
        f'<line x1="60" y1="{40 + height}" x2="{60 + width}" y2="{40 + height}" stroke="#64748b"/>',
        f'<text x="55" y="{44 + height}" {label}>0</text>',
        f'<text x="55" y="{44 + height * (1 - max(values) / top):.0f}" {label}>{max(values):,.0f}</text>',
    ]
    return _svg(parts, height + 60)


def _svg(parts: list[str], height: int) -> str:
    style = 'font-family="sans-serif" fill="#111827"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
    )
    return head + f'<rect width="100%" height="100%" fill="white"/><g {style}>' + "".join(parts) + "</g></svg>\n"
