"""Free ports, each handed out once per run."""

from __future__ import annotations

from market_dev.stack import processes, topology

_ports = processes.free_ports()
_reserved: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on.

    It is below the range from which the kernel takes ports for outgoing connections: one of those could occupy it
    before the test listens.
    """
    while True:
        if (port := next(_ports)) not in _reserved:
            _reserved.add(port)
            return port


def free_port_base(count: int = topology.PORT_COUNT) -> int:
    """Return the first of `count` consecutive free ports, by default as many as `market up` needs."""
    while True:
        base = next(_ports)
        block = set(range(base, base + count))
        if not block & _reserved and all(map(processes.is_free, block)):
            _reserved.update(block)
            return base
