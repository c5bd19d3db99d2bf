"""The memory of the shop's processes: sampled over time, with the limits of deploy/ enforced on the services."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from market_dev.stack import processes

from benchmarks.memory_limits import MIB, MemoryGroup, memory_limits, peak_resident

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class Memory(msgspec.Struct, kw_only=True):
    """The memory of one process with its children, in MiB.

    first_third, last_third: means over the time with hostile clients
    peak: the most that was ever resident, if the process has no children; else the largest sample
    limit: of its container in deploy/base
    """

    idle: float
    quiet: float
    first_third: float
    last_third: float
    peak: float
    limit: float
    is_enforced: bool
    samples: list[int]


class MemorySampler:
    """Samples the proportional set size of each process with its children. `pids`: by name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.samples: dict[str, list[float]] = {name: [] for name in pids}

    async def sample(self) -> None:
        for name, size in (await asyncio.to_thread(self._measure)).items():
            self.samples[name].append(size)

    @asynccontextmanager
    async def sampling(self, pause: float) -> AsyncIterator[None]:
        """Sample within the block, with pauses of `pause` seconds."""

        async def run() -> None:
            while True:
                await self.sample()
                await asyncio.sleep(pause)

        task = asyncio.create_task(run())
        try:
            yield
            if task.done():
                task.result()
        finally:
            task.cancel()

    def _measure(self) -> dict[str, float]:
        return {name: pss_mib(pid) for name, pid in self._pids.items()}


def pss_mib(pid: int) -> float:
    """Return the proportional set size of a process with its children, in MiB; 0 if it has exited."""
    total = 0
    for process in processes.tree(pid):
        # It may have exited.
        with suppress(OSError):
            if found := _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text()):
                total += int(found[1])
    return total / 1024


def summary(
    pids: Mapping[str, int], quiet: MemorySampler, hostile: MemorySampler, idle: Mapping[str, float], enforced: set[str]
) -> dict[str, Memory]:
    """Return the memory of each process. `idle`: in MiB, before any load; `enforced`: whose limits are enforced."""
    limits = memory_limits()
    found = {}
    for name, pid in pids.items():
        samples = hostile.samples[name]
        third = max(1, len(samples) // 3)
        peak = max(samples + quiet.samples[name])
        if len(processes.tree(pid)) == 1:
            with suppress(OSError):
                peak = peak_resident(pid) / MIB
        found[name] = Memory(
            idle=round(idle[name], 1),
            quiet=round(_mean(quiet.samples[name]), 1),
            first_third=round(_mean(samples[:third]), 1),
            last_third=round(_mean(samples[-third:]), 1),
            peak=round(peak, 1),
            limit=limits[name] / MIB,
            is_enforced=name in enforced,
            samples=[round(sample) for sample in samples],
        )
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def enforce(pids: Mapping[str, int]) -> dict[str, MemoryGroup]:
    """Put each process into a control group with its limit, as far as this machine allows it."""
    limits = memory_limits()
    groups: dict[str, MemoryGroup] = {}
    for name, pid in pids.items():
        with suppress(OSError):
            # What it has already does not count in the group.
            group = MemoryGroup(f"soak-{name}", limits[name] - round(pss_mib(pid) * MIB))
            groups[name] = group
            group.add(pid)
    return groups
