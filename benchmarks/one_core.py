"""`python -m benchmarks.one_core [DIRECTORY]`: prints the figures of docs/scale.md from DIRECTORY/raw.json.

The directory is `benchmarks/results` by default. Prints the table of the section "One core" and the figures of reads.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measurements import Measurement
from benchmarks.report import RESULTS, Raw

# Scenario, contestant and process of each row, and what uses the CPU time.
_PROCESSES = (
    ("orders", "order", "ours", "orders", "HTTP and JSON, PyMongo, Kafka's producer, gRPC, in this order"),
    ("inventory", "order", "ours", "inventory", "gRPC and protobuf; PostgreSQL makes the decision"),
    (
        "products (prices)",
        "order",
        "ours",
        "products",
        "one query for all orders that wait for prices at the same time",
    ),
    (
        "graphql, for orders placed through it",
        "order",
        "graphql",
        "graphql",
        "HTTP twice, JSON of the variables and the response",
    ),
    ("notifications, with mails", "mail", "ours", "notifications", "rendering and SMTP"),
    ("MongoDB", "order", "ours", "mongodb", "one insert and two updates per batch"),
    ("PostgreSQL of inventory", "order", "ours", "postgres", "one function call per batch"),
    ("Kafka", "order", "ours", "kafka", "less with larger batches"),
)
_TOTALS = (
    ("all, by REST, without mails", "order", "ours"),
    ("all, by GraphQL, without mails", "order", "graphql"),
    ("all, by REST, with mails", "mail", "ours"),
)
_READS = (
    ("a product, in products", "product-one", "ours", "products"),
    ("a page of 20, the same for all callers, in products", "product-list", "ours", "products"),
    ("the same, in PostgreSQL", "product-list", "ours", "postgres"),
    ("a page of 20, different ones, in products", "product-list", "different pages", "products"),
    ("the same, in PostgreSQL", "product-list", "different pages", "postgres"),
    ("CheckAvaliable of 100, in inventory", "check-100", "ours", "inventory"),
    ("the same, in PostgreSQL", "check-100", "ours", "postgres"),
)


def render(raw: Raw) -> str:
    """Return the table and the list of reads as Markdown. Scenarios that were not measured are left out."""
    lines = ["| process | CPU per order | orders/s per core | where the CPU goes |", "|---|---|---|---|"]
    for title, scenario, contestant, process, explanation in _PROCESSES:
        if (ms := _cpu_ms(_rounds(raw, scenario, contestant), process)) is not None:
            lines.append(f"| {title} | {ms:.2f} ms | {_per_core(ms)} | {explanation} |")
    for title, scenario, contestant in _TOTALS:
        rounds = _rounds(raw, scenario, contestant)
        if (ms := _cpu_ms(rounds)) is not None:
            rate = rounds[0].open_loop_rate
            at = f", at {rate:,.0f} orders/s" if scenario == "mail" and rate else ""
            lines.append(f"| **{title}{at}** | **{ms:.1f} ms** | **{_per_core(ms)}** | |")
    lines.append("")
    for title, scenario, contestant, process in _READS:
        if (ms := _cpu_ms(_rounds(raw, scenario, contestant), process)) is not None:
            lines.append(f"- {title}: {ms:.2f} ms, {_per_core(ms)} per second and core")
    measured = [f"{name} {raw.entries[name].at}" for name in _scenarios() if name in raw.entries]
    return "\n".join([*lines, "", f"Measured: {', '.join(measured)}."])


def _scenarios() -> Sequence[str]:
    return list(dict.fromkeys(row[1] for row in (*_PROCESSES, *_READS)))


def _rounds(raw: Raw, scenario: str, contestant: str) -> Sequence[Measurement]:
    entry = raw.entries.get(scenario)
    return [] if entry is None else entry.measurements.get(contestant, [])


def _cpu_ms(rounds: Sequence[Measurement], process: str | None = None) -> float | None:
    """Return the median of the rounds, of one process or of all together; None without rounds."""

    def value(cpu_ms: Mapping[str, float]) -> float:
        # Peers that are started beside the shop do nothing in its rounds.
        ours = {name: ms for name, ms in cpu_ms.items() if not name.startswith("peer ")}
        return sum(ours.values()) if process is None else ours.get(process, 0.0)

    return statistics.median(value(m.cpu_ms) for m in rounds) if rounds else None


def _per_core(ms: float) -> str:
    """Return how many operations a core does per second, in two significant digits."""
    return f"{float(f'{1000 / ms:.2g}'):,.0f}" if ms else ""


if __name__ == "__main__":
    print(render(Raw.read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)))
