"""Processes that may have no more memory than their pod in Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.memory_limits import BECOME_LIMITED, MIB, MemoryGroup, memory_limits, peak_resident


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
