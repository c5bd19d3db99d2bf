"""What is done to the shop, in which order: drawn from a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Act = Literal["kill", "terminate", "pause", "delay", "cut", "blackhole", "mail", "full disk", "clock"]

SERVICES = ("products", "orders", "inventory", "notifications", "graphql")
STORES = ("postgres", "mongodb", "kafka", "redis", "mail")
# Who calls whom, through a proxy each: (service, name of the port that it calls). Both users of Kafka share one.
ARROWS = (
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
)
# What the mail server can be told to do: refuse for now, refuse for good (a dead letter each), hang, drop the connection.
MAIL_MODES = ("451", "550", "hang", "drop")


class Disturbance(Struct, frozen=True):
    """One thing to do. `seconds`: how long it lasts; kills last as long as they last."""

    act: Act
    target: str
    seconds: float = 0.0
    detail: str = ""

    @property
    def is_kill(self) -> bool:
        return self.act in ("kill", "terminate")

    def __str__(self) -> str:
        how_long = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.act} {self.target}{f' ({self.detail})' if self.detail else ''}{how_long}"


def plan(seed: int, kills: int, *, most_seconds: float = 20.0) -> list[Disturbance]:
    """`kills` kills spread evenly over every process, and after every third one something else."""
    rng = random.Random(seed)
    kinds = [Disturbance("kill", name) for name in (*SERVICES, *STORES)] + [
        Disturbance("terminate", name) for name in SERVICES
    ]
    deaths: list[Disturbance] = []
    while len(deaths) < kills:
        deaths += rng.sample(kinds, len(kinds))
    drawn: list[Disturbance] = []
    others = _others(rng, most_seconds)
    for number, death in enumerate(deaths[:kills], 1):
        drawn.append(death)
        if number % 3 == 0:
            drawn.append(next(others))
    return drawn


def _others(rng: random.Random, most: float) -> Iterator[Disturbance]:
    """Endlessly: every kind in turn, each with another target, in an order that changes."""

    def how_long() -> float:
        # Mostly short; now and then as long as may be.
        return round(min(most, rng.choice([1.0, 1.0, 1.5, 2.0, 3.0, 5.0, most]) * rng.uniform(0.8, 1.2)), 1)

    while True:
        round_ = [Disturbance("pause", store, how_long()) for store in rng.sample(STORES, 3)]
        acts: tuple[Act, ...] = ("delay", "cut", "blackhole")
        for act in acts:
            service, port = rng.choice(ARROWS)
            round_.append(
                Disturbance(act, f"{service} -> {port}", how_long(), "0.3 s each way" if act == "delay" else "")
            )
        round_.append(Disturbance("mail", "mail", how_long(), rng.choice(MAIL_MODES)))
        round_.append(Disturbance("full disk", "mail", how_long()))
        round_.append(Disturbance("clock", "orders", 0, f"{rng.choice([-3600, -60, 60, 3600])} s"))
        rng.shuffle(round_)
        yield from round_
