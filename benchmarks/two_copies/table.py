"""The tables of the trial: CPU per order by process, rate and latency, one column for each contestant."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from benchmarks.comparisons.tables import render_ratio
from benchmarks.measurements import Latency, Measurement
from benchmarks.two_copies.books import Books

# By the names of processes without their numbers; the first member of a replicated store is its primary.
_ROWS = {
    "orders": "orders",
    "inventory": "inventory",
    "products": "products",
    "graphql": "graphql",
    "notifications": "notifications",
    "mail": "mail server",
    "mongodb": "MongoDB, primary",
    "mongodb others": "MongoDB, secondaries",
    "postgres": "PostgreSQL, primary",
    "postgres others": "PostgreSQL, standbys",
    "kafka": "Kafka, all brokers",
    "redis": "Redis",
}
_BY_MEMBER = ("mongodb", "postgres")
# The rows of the summary, by the beginnings of the names of processes.
_SERVICES = ("orders", "inventory", "products", "graphql", "notifications")
_GROUPS = {
    "the services": _SERVICES,
    "MongoDB": ("mongodb",),
    "PostgreSQL": ("postgres",),
    "Kafka": ("kafka",),
}
AT_REST = "Without requests"


class Trial(msgspec.Struct, kw_only=True):
    """What was measured, as in the JSON file.

    rounds: the measurements by load and contestant; those of AT_REST are in ms of CPU per second instead of per order
    books: what the stores had at the end, by kind of stores
    """

    machine: str
    kafka: str
    orders_per_round: int
    rounds: dict[str, dict[str, list[Measurement]]] = {}
    books: dict[str, Books] = {}

    def add(self, load: str, contestant: str, measured: Measurement) -> None:
        """Add a round. The report has the loads in the order of `rounds`."""
        self.rounds.setdefault(load, {}).setdefault(contestant, []).append(measured)


def by_row(cpu_ms: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU per order by row of the table: that of all copies of a service together."""
    totals: dict[str, float] = {}
    for process, ms in cpu_ms.items():
        kind, _, number = process.partition(" ")
        row = f"{kind} others" if kind in _BY_MEMBER and number else kind
        totals[row] = totals.get(row, 0.0) + ms
    return totals


def render(trial: Trial, contestants: Sequence[str]) -> str:
    """Return the trial as Markdown, with the contestants in this order."""
    parts = [
        "# Two copies of every service, and stores with three members",
        f"`python -m benchmarks.two_copies` on {trial.machine}. {trial.kafka}. Each round places "
        f"{trial.orders_per_round:,} orders of three lines, and ends when all events are published. CPU in ms per "
        "order (without requests: per second); medians of the rounds, and their range. Ratios are taken within each "
        "round.",
    ]
    if loads := {load: measured for load, measured in trial.rounds.items() if measured and load != AT_REST}:
        parts += ["## Summary", "\n".join(_summary(loads, contestants))]
    for load, measured in trial.rounds.items():
        names = [name for name in contestants if name in measured]
        parts += [f"## {load}", "\n".join(_table(load, {name: measured[name] for name in names}))]
    checked = [
        f"On {kind} stores, {b.orders:,} orders were placed; each is confirmed and has one reservation and an event "
        f"({b.events:,} events in all), and the {b.units:,} units sold are those taken from the stock."
        for kind, b in trial.books.items()
    ]
    return "\n\n".join([*parts, "## Checked at the end", "\n".join(checked)]) + "\n"


def _summary(rounds: Mapping[str, Mapping[str, Sequence[Measurement]]], contestants: Sequence[str]) -> list[str]:
    """Return the table of docs/scale.md: CPU per order, of the first load by kind of process, of each load in all."""
    lines = [f"| CPU per order, ms | {' | '.join(contestants)} |", "|---" * (len(contestants) + 1) + "|"]

    def add(title: str, load: str, value: Callable[[Measurement], float], digits: int = 2) -> None:
        measured = [rounds[load].get(name, []) for name in contestants]
        cells = [f"{statistics.median(map(value, found)):.{digits}f}" if found else "" for found in measured]
        lines.append(f"| {title} | {' | '.join(cells)} |")

    first = next(iter(rounds))
    for title, kinds in _GROUPS.items():
        add(title, first, partial(_cpu_ms_of, kinds))
    for load in rounds:
        add(f"**all**, {load[0].lower()}{load[1:]}", load, lambda m: sum(m.cpu_ms.values()))
    add("orders per batch that is inserted", first, lambda m: float(m.notes["batches"]["orders.insert"]), 1)
    return lines


def _cpu_ms_of(kinds: Sequence[str], measured: Measurement) -> float:
    return sum(ms for process, ms in measured.cpu_ms.items() if process.split()[0] in kinds)


def _table(load: str, contestants: Mapping[str, Sequence[Measurement]]) -> list[str]:
    rounds = list(contestants.values())
    lines = [f"| | {' | '.join(contestants)} |", "|---" * (len(contestants) + 1) + "|"]

    def add(title: str, cells: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(cells)} |")

    for key, title in _ROWS.items():
        medians = [statistics.median(by_row(m.cpu_ms).get(key, 0.0) for m in measured) for measured in rounds]
        if any(round(value, 2) for value in medians):
            add(title, [f"{value:.2f}" for value in medians])
    totals = [[sum(m.cpu_ms.values()) for m in measured] for measured in rounds]
    add("**all**", [_spread(total, 2) for total in totals])
    add("all, beside the first column", [render_ratio(total, totals[0]) for total in totals])
    if load == AT_REST:
        return lines
    columns: Sequence[tuple[str, Callable[[Measurement], float]]] = (
        ("orders/s", lambda m: m.value),
        ("p50, ms", lambda m: (m.latency or Latency()).p50),
        ("p99, ms", lambda m: (m.latency or Latency()).p99),
    )
    for title, value in columns:
        add(title, [_spread([value(m) for m in measured], 0) for measured in rounds])
    for batcher in rounds[0][0].notes["batches"]:
        sizes = [statistics.median(m.notes["batches"][batcher] for m in measured) for measured in rounds]
        add(f"items per batch, `{batcher}`", [f"{size:.1f}" for size in sizes])
    return lines


def _spread(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.median(values):,.{digits}f} ({low} - {high})"
