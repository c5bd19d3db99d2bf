"""The plan of a run: which faults are injected, in which order, drawn from a seed so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

FaultKind = Literal[
    "kill", "terminate", "pause", "delay", "disconnect", "blackhole", "smtp fault", "full disk", "clock skew"
]
NetworkFaultKind = Literal["delay", "disconnect", "blackhole"]

SERVICES = ("products", "orders", "inventory", "notifications", "graphql", "storefront")
STORES = ("postgres", "mongodb", "kafka", "redis", "mail")
# The calls between services, each through a proxy: (service, name of the port that it calls). Both users of Kafka share
# one proxy.
LINKS = (
    ("products", "postgres"),
    ("products", "redis"),
    ("products", "inventory"),
    ("inventory", "postgres"),
    ("orders", "mongodb"),
    ("orders", "inventory"),
    ("orders", "products"),
    ("orders", "kafka"),
    ("notifications", "smtp"),
    ("graphql", "products"),
    ("graphql", "orders"),
    ("storefront", "graphql"),
)
# Modes of the mail catcher: reject temporarily, reject permanently (one dead letter each), hang, drop the connection.
SMTP_FAULTS = ("451", "550", "hang", "drop")


class Fault(Struct, frozen=True):
    """One fault to inject. `seconds`: how long it lasts; 0 for kills, which last until the process is ready again."""

    kind: FaultKind
    target: str
    seconds: float = 0.0
    detail: str = ""

    @property
    def is_kill(self) -> bool:
        return self.kind in ("kill", "terminate")

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        duration = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{detail}{duration}"


def generate_plan(
    seed: int, kills: int, *, max_fault_seconds: float = 20.0, also_kill: tuple[str, ...] = ()
) -> list[Fault]:
    """Return `kills` kills, spread evenly over all processes, with a fault of another kind after every third one.

    also_kill: processes beside the services and stores
    """
    rng = random.Random(seed)
    kinds = [Fault("kill", name) for name in (*SERVICES, *STORES, *also_kill)] + [
        Fault("terminate", name) for name in SERVICES
    ]
    drawn: list[Fault] = []
    while len(drawn) < kills:
        drawn += rng.sample(kinds, len(kinds))
    other_faults = _other_faults(rng, max_fault_seconds)
    faults: list[Fault] = []
    for number, kill in enumerate(drawn[:kills], 1):
        faults.append(kill)
        if number % 3 == 0:
            faults.append(next(other_faults))
    return faults


def _other_faults(rng: random.Random, max_seconds: float) -> Iterator[Fault]:
    """Yield faults other than kills without end: rounds of all kinds in random order, with random targets."""

    def duration() -> float:
        # Mostly short, sometimes the maximum.
        return round(
            min(max_seconds, rng.choice([1.0, 1.0, 1.5, 2.0, 3.0, 5.0, max_seconds]) * rng.uniform(0.8, 1.2)), 1
        )

    while True:
        faults = [Fault("pause", store, duration()) for store in rng.sample(STORES, 3)]
        network_kinds: tuple[NetworkFaultKind, ...] = ("delay", "disconnect", "blackhole")
        for kind in network_kinds:
            service, port = rng.choice(LINKS)
            detail = "0.3 s each way" if kind == "delay" else ""
            faults.append(Fault(kind, f"{service} -> {port}", duration(), detail))
        faults.append(Fault("smtp fault", "mail", duration(), rng.choice(SMTP_FAULTS)))
        faults.append(Fault("full disk", "mail", duration()))
        faults.append(Fault("clock skew", "orders", 0, f"{rng.choice([-3600, -60, 60, 3600])} s"))
        rng.shuffle(faults)
        yield from faults
