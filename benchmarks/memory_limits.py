"""The memory limits of the containers in deploy/, enforced on processes of this machine by control groups."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import yaml

MIB = 1024 * 1024
_DEPLOY = Path(__file__).parents[1] / "deploy/base"
_CGROUPS = Path("/sys/fs/cgroup")
# The workloads in deploy/base, by the names that the local stack gives to its processes.
_WORKLOADS = {
    "products": "product-service",
    "orders": "order-service",
    "inventory": "inventory-service",
    "notifications": "notification-service",
    "graphql": "graphql-service",
    "storefront": "storefront-service",
    "postgres": "postgresql",
    "redis": "redis",
    "mongodb": "mongodb",
    "kafka": "kafka",
    "mail": "mail",
}


def memory_limits() -> dict[str, int]:
    """Return the memory limit in bytes of each process of the shop, as its container in deploy/base has it."""
    found = {}
    for file in sorted(_DEPLOY.glob("s*/*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document and document.get("kind") in ("Deployment", "StatefulSet"):
                container = document["spec"]["template"]["spec"].get("containers", [{}])[0]
                if "resources" not in container:
                    # A patch of all of them.
                    continue
                limit = container["resources"]["limits"]["memory"]
                if not limit.endswith("Mi"):
                    raise ValueError(f"{file}: memory limits must be in Mi, got {limit}")
                found[document["metadata"]["name"]] = int(limit[:-2]) * MIB
    return {name: found[workload] for name, workload in _WORKLOADS.items()}


class MemoryGroup:
    """A control group with a memory limit, version 1 or 2; it kills processes that exceed the limit together.

    Only what a process allocates in the group counts, not what it had before. Raises OSError if this user may not
    create control groups.
    """

    def __init__(self, name: str, limit: int) -> None:
        is_v1 = (_CGROUPS / "memory").is_dir()
        self.path = (_CGROUPS / "memory" if is_v1 else _CGROUPS) / f"market-{name}-{os.getpid()}"
        self.limit = limit
        self._peak_file = self.path / ("memory.max_usage_in_bytes" if is_v1 else "memory.peak")
        self.path.mkdir()
        try:
            (self.path / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(limit))
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Move a process into the group."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def peak(self) -> int:
        """The most memory that the group had, in bytes, with the page cache that it caused."""
        return int(self._peak_file.read_text())

    def remove(self) -> None:
        """Remove the group, whose processes must have exited."""
        with suppress(OSError):
            self.path.rmdir()


def peak_resident(pid: int) -> int:
    """Return the most memory that a process has had resident since it started, in bytes. Raises OSError."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


# Python code that joins a control group, or else limits its own data, and becomes the service: for ServiceProcess.
BECOME_LIMITED = """
import os, resource, runpy
if group := os.environ.get("MEMORY_GROUP"):
    with open(group + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
else:
    limit = int(os.environ["MEMORY_LIMIT"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
runpy.run_module(os.environ["MEMORY_MODULE"], run_name="__main__", alter_sys=True)
"""
