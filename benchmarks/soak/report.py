"""What a soak measured, as soak.json and as soak.md."""

from __future__ import annotations

from pathlib import Path

import msgspec
from market_dev.stack.topology import SERVICES

from benchmarks.report import describe_machine
from benchmarks.soak.honest import Outcome, Result
from benchmarks.soak.memory import Memory

# Shorter soaks do not show whether memory grows: caches fill up first.
_MIN_MINUTES_FOR_GROWTH = 10
_MAX_GROWTH, _MAX_GROWTH_MIB = 0.05, 8


class Soak(msgspec.Struct, kw_only=True):
    """One soak.

    limits_met: how often hostile clients met each limit
    unhandled_errors: by service
    differences: between orders and reservations at the end, as `market reconcile` counts them
    """

    date: str
    minutes: float
    quiet_minutes: float
    rate: float
    intensity: float
    pause: float
    quiet: Result
    beside_hostile: Result
    hostile: dict[str, dict[str, int]]
    limits_met: dict[str, int]
    memory: dict[str, Memory]
    restarted: list[str]
    unhandled_errors: dict[str, int]
    differences: int
    machine: str = ""


def failures(soak: Soak) -> list[str]:
    """Return the goals that were not met, in words."""
    found = []
    if soak.restarted:
        found.append(f"restarted: {', '.join(soak.restarted)}")
    if soak.unhandled_errors:
        found.append(f"unhandled errors in the logs of {', '.join(soak.unhandled_errors)}")
    if soak.differences:
        found.append(f"{soak.differences} differences between orders and reservations")
    total = soak.beside_hostile.total
    if errors := sum(total.errors.values()):
        found.append(f"{errors} of {total.requests} honest requests failed: {total.errors}")
    # The stores' caches grow until they are full, longer than a soak takes.
    # Pages of the storefront are not part of the load, nor of results from before there was one.
    for name in (name for name in SERVICES if name in soak.memory):
        memory = soak.memory[name]
        if memory.peak >= memory.limit:
            found.append(f"{name}: {memory.peak:.0f} MiB exceed the limit of {memory.limit:.0f} MiB")
        growth = memory.last_third - memory.first_third
        if soak.minutes >= _MIN_MINUTES_FOR_GROWTH and growth > max(_MAX_GROWTH * memory.first_third, _MAX_GROWTH_MIB):
            found.append(f"{name}: memory grew by {growth:.0f} MiB from the first third to the last")
    return found


def write(soak: Soak, directory: Path) -> str:
    """Write soak.json and soak.md, and return the latter."""
    soak.machine = describe_machine()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(soak), indent=1) + b"\n")
    text = render(soak)
    (directory / "soak.md").write_text(text)
    return text


def render(soak: Soak) -> str:
    """Return the report in Markdown."""
    failed = failures(soak)
    lines = [
        "# Soak with hostile clients",
        "",
        f"{soak.date} UTC, on {soak.machine}. Honest clients make {soak.rate:g} requests/s: {soak.quiet_minutes:g} "
        f"minutes alone, then {soak.minutes:g} minutes beside hostile clients of all kinds (`benchmarks/hostile`). All "
        "processes share these cores, also those of the clients.",
        "",
        "Goals: no honest request fails, no service restarts or logs an unhandled error, each stays below its memory "
        "limit without growth, and orders and reservations agree at the end. "
        + ("Met." if not failed else f"Not met: {'; '.join(failed)}."),
        "",
        "## Honest clients",
        "",
        "Milliseconds from when a request was due: alone / beside hostile clients.",
        "",
        "| request | number | errors | p50 | p95 | p99 | p99.9 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        _latency_row("all", soak.quiet.total, soak.beside_hostile.total),
        *(_latency_row(kind, soak.quiet.kinds[kind], soak.beside_hostile.kinds[kind]) for kind in soak.quiet.kinds),
        "",
        *_errors(soak),
        "## Memory",
        "",
        "MiB. Thirds: means over the time with hostile clients. Peak: the most that was ever resident, with shared "
        "libraries; for processes with children, the largest sample. The limit is that of `deploy/base`. The stores of "
        "the local stack are configured for a developer's machine.",
        "",
        "| process | idle | alone | first third | last third | peak | limit | of the limit | enforced |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_memory_row(name, memory) for name, memory in soak.memory.items()),
        "",
        "## Hostile clients",
        "",
        "What became of their connections or requests, by status. *closed*: by the server, without a response; *held*: "
        "for two minutes; *open*: when the client itself was stopped.",
        "",
        "| kind | outcomes |",
        "| --- | --- |",
        *(f"| {kind} | {_counts(outcomes)} |" for kind, outcomes in soak.hostile.items()),
        "",
        "Connections that were cut off (`limit`) and requests that were refused (`status`) before they were handled:",
        "",
        "| limit | times |",
        "| --- | --- |",
        *(f"| `{name}` | {times} |" for name, times in sorted(soak.limits_met.items())),
        "",
    ]
    return "\n".join(lines)


def _latency_row(name: str, quiet: Outcome, hostile: Outcome) -> str:
    cells = [f"{quiet.requests} / {hostile.requests}", f"{_errors_of(quiet)} / {_errors_of(hostile)}"]
    for percentile in ("p50", "p95", "p99", "p999"):
        cells.append(f"{getattr(quiet.latency, percentile):.1f} / {getattr(hostile.latency, percentile):.1f}")
    return f"| {name} | {' | '.join(cells)} |"


def _errors_of(outcome: Outcome) -> int:
    return sum(outcome.errors.values())


def _errors(soak: Soak) -> list[str]:
    lines = [
        f"- {phase}: {text}: {number}"
        for phase, result in (("alone", soak.quiet), ("beside hostile clients", soak.beside_hostile))
        for text, number in result.total.errors.items()
    ]
    return ["Errors:", *lines, ""] if lines else []


def _memory_row(name: str, memory: Memory) -> str:
    sizes = (memory.idle, memory.quiet, memory.first_third, memory.last_third, memory.peak, memory.limit)
    cells = [f"{size:.0f}" for size in sizes]
    cells += [f"{memory.peak / memory.limit:.0%}", "yes" if memory.is_enforced else "no"]
    return f"| {name} | {' | '.join(cells)} |"


def _counts(outcomes: dict[str, int]) -> str:
    ordered = sorted(outcomes.items(), key=lambda item: -item[1])
    return ", ".join(f"{outcome} {number}" for outcome, number in ordered) or "none in this time"
