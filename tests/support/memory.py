"""Processes that may have no more memory than their pod in Kubernetes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from benchmarks.hostile.clients import Attack, Kind, kinds
from benchmarks.memory_limits import BECOME_LIMITED, MIB, MemoryGroup, memory_limits, peak_resident
from tests.support.processes import ServiceProcess


@dataclass(frozen=True)
class MemoryLimit:
    """The memory limit of a service, for a ServiceProcess with this `command` and `environment`."""

    service: str
    limit: int
    # None: this machine does not let us create control groups, so the process limits its own data.
    group: MemoryGroup | None
    command = ("-c", BECOME_LIMITED)

    @property
    def environment(self) -> dict[str, str]:
        limited = {"MEMORY_GROUP": str(self.group.path)} if self.group else {"MEMORY_LIMIT": str(self.limit)}
        return {"MEMORY_MODULE": f"market.{self.service}", **limited}

    def peak(self, pid: int) -> int:
        """Return the peak memory of the process, in bytes."""
        return self.group.peak if self.group else peak_resident(pid)

    def report(self, pid: int) -> str:
        """Return limit and peak as text."""
        kind = "control group" if self.group else "RLIMIT_DATA"
        return f"{self.service}: limit {self.limit // MIB} MiB ({kind}), peak {self.peak(pid) // MIB} MiB"


@contextmanager
def memory_limit(service: str) -> Iterator[MemoryLimit]:
    """Enforce the limit that the service's container has in deploy/base, by a control group where that is possible."""
    limit = memory_limits()[service]
    group = None
    with suppress(OSError):
        group = MemoryGroup(f"test-{service}", limit)
    try:
        yield MemoryLimit(service, limit, group)
    finally:
        if group is not None:
            group.remove()


def hostile_kinds(service: str) -> dict[str, Kind]:
    """Return all kinds of hostile clients, with more of the two that hold the most memory of the service.

    These are 1,030 connections with one byte of a body, and 100 that do not read a page of the maximum size.
    """
    selected = kinds(pause=0.2)
    for name, count in (("one byte of a body", 1030), (f"large pages not read, {service}", 100)):
        selected[name] = replace(selected[name], count=count)
    return selected


async def assert_unharmed(process: ServiceProcess, limit: MemoryLimit, attack: Attack, statuses: Counter[int]) -> None:
    """Check that the process survived the attack below its limit, and stop it.

    statuses: the number of responses to clients that are not hostile, by status
    """
    assert process.process is not None
    pid = process.process.pid
    print(f"\n{limit.report(pid)}; honest: {dict(statuses)}")
    for name, outcomes in attack.outcomes.items():
        print(f"  {name}: {dict(outcomes)}")
    assert process.process.poll() is None, process.log[-2000:]
    assert limit.peak(pid) < 0.95 * limit.limit
    # A busy machine may let some exceed a deadline.
    assert statuses[200] + statuses[201] > 0.8 * statuses.total()
    assert all(outcomes.total() for outcomes in attack.outcomes.values())
    assert not [name for name, outcomes in attack.outcomes.items() if outcomes["500"]], process.log[-3000:]
    assert await process.stop() == 0, process.log[-2000:]
