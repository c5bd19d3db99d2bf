"""What a scenario is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from benchmarks.figures import Figure, Row, Spread, ratio

if TYPE_CHECKING:
    from benchmarks.lab import Lab

Contestants = Mapping[str, Callable[[], Awaitable[Figure]]]
Figures = dict[str, list[Figure]]


class Scenario(Struct, frozen=True, kw_only=True):
    """`prepare` starts what is needed, compares the answers and gives the contestants; `judge` makes the rows.

    Scenarios of one `group` share a stack (`stack=False`: they need none). `rounds`: another number of them than asked for.
    """

    name: str
    title: str
    goal: str
    prepare: Callable[[Lab], Awaitable[Contestants]]
    judge: Callable[[Figures], list[Row]]
    group: str = "shop"
    stack: bool = True
    rounds: int | None = None
    unit: str = "requests/s"


def values(figures: list[Figure]) -> list[float]:
    return [f.value for f in figures]


def compared(
    figures: Figures, scenario: str, unit: str, goal: str, *, ours: str = "ours", peer: str | None = "peer", limit: str | None = "limit",
    least_to_peer: float | None = None, least_to_limit: float | None = None, also: bool = True, remark: str = "",
) -> Row:  # fmt: skip
    """A row of rates, higher being better. `also`: what else has to hold for the goal."""
    own = values(figures[ours])
    to_peer = ratio(own, values(figures[peer])) if peer else None
    to_limit = ratio(own, values(figures[limit])) if limit else None
    met = also
    if least_to_peer is not None:
        assert to_peer is not None
        met = met and to_peer.median >= least_to_peer
    if least_to_limit is not None:
        assert to_limit is not None
        met = met and to_limit.median >= least_to_limit
    return Row(
        scenario=scenario, unit=unit, goal=goal, met=met, remark=remark,
        ours=rounded(Spread.of(own).median),
        peer=rounded(Spread.of(values(figures[peer])).median) if peer else None,
        limit=rounded(Spread.of(values(figures[limit])).median) if limit else None,
        ratio_to_peer=rounded(to_peer.median) if to_peer else None,
        ratio_to_limit=rounded(to_limit.median) if to_limit else None,
        spread_to_peer=[rounded(to_peer.low), rounded(to_peer.high)] if to_peer else None,
        spread_to_limit=[rounded(to_limit.low), rounded(to_limit.high)] if to_limit else None,
    )  # fmt: skip


def rounded(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}")
