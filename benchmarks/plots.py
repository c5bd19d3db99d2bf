"""Plots as SVG, written by hand: one bar per contestant, its rounds as dots."""

from __future__ import annotations

import statistics
from html import escape
from typing import Any

_COLOURS = {"ours": "#2563eb", "graphql": "#2563eb", "peer": "#d97706", "limit": "#64748b"}
_WIDTH, _LEFT, _RIGHT, _ROW = 760, 150, 110, 30


def scenario(entry: Any) -> str:
    """The scenario's figures; memory over time where there are samples."""
    samples = entry.figures.get("ours", [None])[0]
    if samples is not None and "totals_MiB" in samples.notes:
        return _line(entry.title, samples.notes["totals_MiB"], samples.notes["minutes"])
    most = max((f.value for figures in entry.figures.values() for f in figures), default=1) or 1
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    parts = [
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(entry.title)} ({escape(entry.unit)})</text>'
    ]
    for n, (name, figures) in enumerate(entry.figures.items()):
        y = 34 + n * _ROW
        values = [f.value for f in figures]
        median = statistics.median(values)
        colour = _COLOURS.get(name.split(" ")[0], "#94a3b8")
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 16}" font-size="12" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{y + 3}" width="{median * scale:.1f}" height="{_ROW - 10}" fill="{colour}" opacity="0.75"/>'
        )
        parts += [
            f'<circle cx="{_LEFT + v * scale:.1f}" cy="{y + 13}" r="3" fill="#111827" opacity="0.6"/>' for v in values
        ]
        label = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        parts.append(f'<text x="{_LEFT + max(values) * scale + 8:.1f}" y="{y + 17}" font-size="12">{label}</text>')
    return _svg(parts, 44 + len(entry.figures) * _ROW)


def _line(title: str, values: list[float], minutes: float) -> str:
    most = max(values) * 1.1
    high, wide = 200, _WIDTH - 100
    points = " ".join(
        f"{60 + wide * i / max(1, len(values) - 1):.1f},{40 + high * (1 - v / most):.1f}" for i, v in enumerate(values)
    )
    parts = [
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(title)} (MiB, {minutes:g} minutes of load)</text>',
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="2"/>',
        f'<line x1="60" y1="{40 + high}" x2="{60 + wide}" y2="{40 + high}" stroke="#64748b"/>',
        f'<text x="55" y="{44 + high}" font-size="12" text-anchor="end">0</text>',
        f'<text x="55" y="{44 + high * (1 - max(values) / most):.0f}" font-size="12" text-anchor="end">{max(values):,.0f}</text>',
    ]
    return _svg(parts, high + 60)


def _svg(parts: list[str], height: int) -> str:
    style = 'font-family="sans-serif" fill="#111827"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
    )
    return head + f'<rect width="100%" height="100%" fill="white"/><g {style}>' + "".join(parts) + "</g></svg>\n"
