"""CPU time of processes, and on which cores they run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from market_dev.stack import processes

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU seconds used so far by each process with its descendants, running and exited, by name."""
    children: dict[int, list[int]] = {}
    own: dict[int, float] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # Without the command, which may contain spaces. See proc(5): ppid, then utime, stime, cutime, cstime.
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
                own[int(entry)] = sum(int(field) for field in fields[11:15]) / _TICKS_PER_SECOND

    def total(pid: int) -> float:
        return own.get(pid, 0.0) + sum(total(child) for child in children.get(pid, ()))

    return {name: total(pid) for name, pid in pids.items()}


def cpu_ms_per_operation(before: Mapping[str, float], after: Mapping[str, float], operations: int) -> dict[str, float]:
    """Return the difference of two `cpu_seconds` in milliseconds per operation, for the processes that used any."""
    return {
        name: round(1000 * (seconds - before[name]) / max(1, operations), 4)
        for name, seconds in after.items()
        if name in before and seconds > before[name]
    }


def pin(pid: int, cores: Iterable[int]) -> None:
    """Let the process, with all threads and descendants, run on these cores only."""
    for process in processes.tree(pid):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                with suppress(OSError):
                    os.sched_setaffinity(int(thread), set(cores))


def assign_cores(pids: Mapping[str, int], alone: Iterable[str]) -> set[int] | None:
    """Give the processes named in `alone` the first core, and all others the remaining ones.

    Without names, let everything run everywhere. Return the cores for other processes, such as the load generator; None
    on a machine with one core, where nothing is assigned.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    names = set(alone)
    for name, pid in pids.items():
        pin(pid, cores if not names else cores[:1] if name in names else cores[1:])
    return set(cores[1:]) if names else set(cores)
