"""What a scenario is."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from benchmarks.figures import Figure, Row, Spread, against, tells

if TYPE_CHECKING:
    from benchmarks.lab import Lab

Contestants = Mapping[str, Callable[[], Awaitable[Figure]]]
Figures = dict[str, list[Figure]]


class Scenario(Struct, frozen=True, kw_only=True):
    """`prepare` starts what is needed, compares the answers and gives the contestants; `judge` makes the rows.

    Scenarios of one `group` share a stack (`stack=False`: they need none). `rounds`: another number of them than asked for.
    `peers`: packages that its peers need (`benchmarks.needs`). `most_seconds`: what one contestant's round may take.
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
    peers: tuple[str, ...] = ()
    most_seconds: float = 300


def values(figures: list[Figure]) -> list[float]:
    return [f.value for f in figures]


def compared(
    figures: Figures,
    scenario: str,
    unit: str,
    goal: str,
    *,
    ours: str = "ours",
    peer: str | None = "peer",
    limit: str | None = "limit",
    least_to_peer: float | None = None,
    least_to_limit: float | None = None,
    also: bool = True,
    remark: str = "",
) -> Row:
    """A row of rates, higher being better. `also`: what else has to hold for the goal.

    A peer or limit that is not there, or that did next to nothing in most rounds, is not judged against: its ratio is
    None, a goal on it is not met, and the remark says so.
    """
    remarks = [remark] if remark else []
    own = figures[ours]
    met = also

    def beside(name: str | None, least: float | None, what: str) -> tuple[float | None, Spread | None]:
        nonlocal met
        if name is None:
            return None, None
        found = figures.get(name)
        spread = against(own, found) if found else None
        if spread is None:
            said = f"{what} did next to nothing in most rounds" if found else f"{what} was left out"
            remarks.append(f"not judged: {said}" if least is not None else said)
        elif found and len(bad := [f for f in found if not tells(f)]):
            remarks.append(f"{len(bad)} of {len(found)} rounds not counted, {what} did next to nothing in them")
        if least is not None:
            met = met and spread is not None and spread.median >= least
        return rounded(Spread.of(values(found)).median) if found else None, spread

    of_peer, to_peer = beside(peer, least_to_peer, "the peer")
    of_limit, to_limit = beside(limit, least_to_limit, "the limit")
    if not all(map(tells, own)):
        remarks.append("there are rounds in which ours did next to nothing")
    return Row(
        scenario=scenario,
        unit=unit,
        goal=goal,
        met=met,
        remark="; ".join(remarks),
        ours=rounded(Spread.of(values(own)).median),
        peer=of_peer,
        limit=of_limit,
        ratio_to_peer=rounded(to_peer.median) if to_peer else None,
        ratio_to_limit=rounded(to_limit.median) if to_limit else None,
        spread_to_peer=[rounded(to_peer.low), rounded(to_peer.high)] if to_peer else None,
        spread_to_limit=[rounded(to_limit.low), rounded(to_limit.high)] if to_limit else None,
    )


def p99(figures: Figures, name: str, which: str = "latency") -> float | None:
    """The median of the rounds', in milliseconds, of the closed loop, or at a fixed rate: `open`, `beside`."""
    found = [latency.p99 for f in figures.get(name, ()) if tells(f) and (latency := getattr(f, which))]
    return statistics.median(found) if found else None


def third(own: float | None, peer: float | None) -> bool:
    """Whether our latency is known, and at most a third of the peer's, known too."""
    return own is not None and peer is not None and own <= peer / 3


def shown(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.1f} ms"


def rounded(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}")
