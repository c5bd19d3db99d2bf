"""Free ports, each handed out once per run."""

from __future__ import annotations

import random

from market_dev.stack import processes, topology

# Below the range from which the kernel takes ports for outgoing connections: one of those could occupy a port before
# the test listens, or while its server is down.
_FIRST, _END = 10_000, 30_000
# Ports are handed out one after another, so that blocks of consecutive ones remain until the end of a long run. Runs
# beside each other begin somewhere else.
_next_port = random.SystemRandom().randrange(_FIRST, _END)


def free_port() -> int:
    """Return a port that nobody listens on."""
    return free_port_base(1)


def free_port_base(count: int = topology.PORT_COUNT) -> int:
    """Return the first of `count` consecutive free ports, by default as many as `market up` needs.

    Raises RuntimeError if there are none.
    """
    global _next_port
    tried = 0
    while tried < _END - _FIRST:
        base = _next_port
        if base + count > _END:
            tried += _END - base
            _next_port = _FIRST
            continue
        occupied = next((port for port in range(base, base + count) if not processes.is_free(port)), None)
        _next_port = base + count if occupied is None else occupied + 1
        if occupied is None:
            return base
        tried += _next_port - base
    raise RuntimeError(f"no {count} consecutive ports between {_FIRST} and {_END - 1} are free")
