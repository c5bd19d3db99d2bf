"""Raw results as JSON, the rows as latest.json, and a report in Markdown with plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import plots
from benchmarks.figures import Figure, Row, Spread


class Entry(msgspec.Struct, kw_only=True):
    """One scenario's results."""

    name: str
    title: str
    goal: str
    unit: str
    rows: list[Row]
    figures: dict[str, list[Figure]]
    at: str
    took_seconds: float
    load_average_before: float
    round_seconds: float


class Raw(msgspec.Struct, kw_only=True):
    """All that was measured."""

    machine: str = ""
    kafka: str = ""
    entries: dict[str, Entry] = {}
    # Why a scenario has no figures of its latest run.
    failed: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Raw:
        try:
            return msgspec.json.decode((folder / "raw.json").read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()

    def add(
        self,
        scenario: Any,
        figures: dict[str, list[Figure]],
        rows: list[Row],
        *,
        seconds: float,
        load: float,
        args: Any,
    ) -> None:
        self.failed.pop(scenario.name, None)
        self.entries[scenario.name] = Entry(
            name=scenario.name,
            title=scenario.title,
            goal=scenario.goal,
            unit=scenario.unit,
            rows=rows,
            figures=figures,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            took_seconds=round(seconds, 1),
            load_average_before=round(load, 2),
            round_seconds=args.seconds,
        )


def machine() -> str:
    """The machine in words."""
    cores = len(os.sched_getaffinity(0))
    info = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    virtual = ", a virtual machine" if "hypervisor" in info else ""
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return f"{cores} cores of {model}{virtual}, {memory:.0f} GiB of memory, {release}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"


def write(raw: Raw, folder: Path) -> None:
    """Writes raw.json, latest.json, report.md and the plots."""
    from benchmarks.scenarios import SCENARIOS

    folder.mkdir(parents=True, exist_ok=True)
    order = {s.name: n for n, s in enumerate(SCENARIOS)}
    entries = sorted(raw.entries.values(), key=lambda e: order.get(e.name, 99))
    rows = [row for entry in entries for row in entry.rows]
    (folder / "raw.json").write_bytes(msgspec.json.format(msgspec.json.encode(raw), indent=1) + b"\n")
    (folder / "latest.json").write_text(
        json.dumps([msgspec.to_builtins(r) for r in rows], indent=2, ensure_ascii=False) + "\n"
    )
    text = [
        "# Measured speed",
        "",
        "Made by `make bench` (`python -m benchmarks.run`); what the scenarios are and how they are measured is in [the README](../README.md).",
        "Only ratios within one run count: the machine has few cores, and they are shared with others.",
        "",
        f"Measured on {raw.machine}. Kafka was {'Apache Kafka' if raw.kafka == 'apache' else 'the embedded broker'}.",
        "",
        "| scenario | unit | ours | peer | limit | to the peer (rounds) | to the limit (rounds) | goal | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        text.append(
            f"| {row.scenario} | {row.unit} | {_n(row.ours)} | {_n(row.peer)} | {_n(row.limit)} | {_r(row.ratio_to_peer, row.spread_to_peer)} "
            f"| {_r(row.ratio_to_limit, row.spread_to_limit)} | {row.goal} | {'yes' if row.met else '**no**' if row.met is False else ''} |"
        )
    if raw.failed:
        text += ["", "Failed, so that there is no row of the latest run:", ""]
        text += [f"- {name}: `{reason}`" for name, reason in raw.failed.items()]
    for entry in entries:
        (folder / f"{entry.name}.svg").write_text(plots.scenario(entry))
        text += [
            "",
            f"## {entry.title}",
            "",
            f"Goal: {entry.goal}. {_how(entry)}",
            "",
            f"![{entry.title}]({entry.name}.svg)",
            "",
        ]
        text += [f"- {row.scenario}: {row.remark}." for row in entry.rows if row.remark]
        text += [
            f"- {name}, round {n}: measured again, the first time it failed."
            for name, figures in entry.figures.items()
            for n, figure in enumerate(figures, 1)
            if "again_after" in figure.notes
        ]
        text += ["", *_figures(entry)]
    for extra in sorted(folder.glob("profile-*.md")):
        text += ["", extra.read_text("utf-8").rstrip()]
    (folder / "report.md").write_text("\n".join(text) + "\n", "utf-8")


def _how(entry: Entry) -> str:
    count = len(next(iter(entry.figures.values())))
    return (
        f"{count} round{'s' * (count > 1)} of {entry.round_seconds:g} s in shuffled order, {entry.at}, {entry.took_seconds:.0f} s in all; "
        f"load average before: {entry.load_average_before}."
    )


def _figures(entry: Entry) -> list[str]:
    lines = [
        f"| | {entry.unit} (lowest - highest) | p50 | p95 | p99 | p99.9 ms | CPU ms per operation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in entry.figures.items():
        spread = Spread.of([f.value for f in figures])
        lines.append(
            f"| {name} | {_n(spread.median)} ({_n(spread.low)} - {_n(spread.high)}) | {_latency(figures, 'latency')} | {_cpu(figures)} |"
        )
        for which, of in (("open", ""), ("beside", ", the peer's rate")):
            rates = [rate for f in figures if (rate := getattr(f, f"{which}_rate"))]
            if rates:
                lines.append(
                    f"| {name}, open loop at {_n(statistics.median(rates))}/s{of} | | {_latency(figures, which)} | |"
                )
    return lines


def _latency(figures: list[Figure], which: str) -> str:
    found = [getattr(f, which) for f in figures if getattr(f, which)]
    if not found:
        return " | | | "
    return " | ".join(_n(statistics.median(getattr(f, p) for f in found)) for p in ("p50", "p95", "p99", "p999"))


def _cpu(figures: list[Figure]) -> str:
    names = dict.fromkeys(name for f in figures for name in f.cpu)
    medians = {name: statistics.median(f.cpu.get(name, 0) for f in figures) for name in names}
    total = sum(medians.values())
    parts = [
        f"{name} {value:.3f}"
        for name, value in sorted(medians.items(), key=lambda x: -x[1])
        if value >= 0.02 * total and value >= 0.0005
    ]
    return f"**{total:.3f}**: {', '.join(parts)}" if parts else ""


def _n(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _r(value: float | None, spread: list[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ({spread[0]:.2f} - {spread[1]:.2f})" if spread else "")
