"""What a scenario is, and how its measurements are judged."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from benchmarks.measurements import Latency, Measurement, Row, Spread, is_significant, ratio, ratio_to

if TYPE_CHECKING:
    from benchmarks.testbed import Testbed

# By name; each measures one round.
Contestants = Mapping[str, Callable[[], Awaitable[Measurement]]]
# The rounds of each contestant, by name.
Measurements = dict[str, list[Measurement]]

# Of scenarios that take long, so that the whole run takes little more than an hour.
FEWER_ROUNDS = 3


class Scenario(Struct, frozen=True, kw_only=True):
    """One scenario.

    prepare: starts what is needed, verifies that all contestants return the same, and returns them
    judge: makes the rows of the report
    group: scenarios of one group share a stack
    needs_stack: False if it needs none
    rounds: overrides the number of rounds of the run
    requires: packages that its peers need, see `benchmarks.requirements`
    timeout_seconds: for one round of one contestant
    """

    name: str
    title: str
    goal: str
    prepare: Callable[[Testbed], Awaitable[Contestants]]
    judge: Callable[[Measurements], list[Row]]
    group: str = "shop"
    needs_stack: bool = True
    rounds: int | None = None
    unit: str = "requests/s"
    requires: tuple[str, ...] = ()
    timeout_seconds: float = 300


def values(rounds: list[Measurement]) -> list[float]:
    return [m.value for m in rounds]


def compare(
    measurements: Measurements,
    scenario: str,
    unit: str,
    goal: str,
    *,
    ours: str = "ours",
    peer: str | None = "peer",
    limit: str | None = "limit",
    before: str | None = None,
    min_ratio_to_peer: float | None = None,
    min_ratio_to_limit: float | None = None,
    min_ratio_to_before: float | None = None,
    other_goals_met: bool = True,
    remark: str = "",
) -> Row:
    """Return a row of rates (higher is better).

    There is no ratio to a peer, limit or earlier build that was not run, or that completed too few operations in most
    rounds; a goal for that ratio is then not met, and the remark says why.
    """
    remarks = [remark] if remark else []
    own = measurements[ours]
    met = other_goals_met

    def compare_to(name: str | None, min_ratio: float | None, role: str) -> tuple[float | None, Spread | None]:
        nonlocal met
        if name is None:
            return None, None
        rounds = measurements.get(name)
        spread = ratio_to(own, rounds) if rounds else None
        if spread is None:
            reason = f"{role} completed too few operations in most rounds" if rounds else f"{role} was not run"
            remarks.append(f"not judged: {reason}" if min_ratio is not None else reason)
        elif rounds and (ignored := sum(not is_significant(m) for m in rounds)):
            remarks.append(f"{ignored} of {len(rounds)} rounds ignored, {role} completed too few operations in them")
        if min_ratio is not None:
            met = met and spread is not None and spread.median >= min_ratio
        return rounded(Spread.of(values(rounds)).median) if rounds else None, spread

    peer_value, to_peer = compare_to(peer, min_ratio_to_peer, "the peer")
    limit_value, to_limit = compare_to(limit, min_ratio_to_limit, "the limit")
    before_value, to_before = compare_to(before, min_ratio_to_before, "the build before")
    if not all(map(is_significant, own)):
        remarks.append("ours completed too few operations in some rounds, which count")
    return Row(
        scenario=scenario,
        unit=unit,
        goal=goal,
        met=met,
        remark="; ".join(remarks),
        ours=rounded(Spread.of(values(own)).median),
        peer=peer_value,
        limit=limit_value,
        ratio_to_peer=rounded(to_peer.median) if to_peer else None,
        ratio_to_limit=rounded(to_limit.median) if to_limit else None,
        spread_to_peer=[rounded(to_peer.low), rounded(to_peer.high)] if to_peer else None,
        spread_to_limit=[rounded(to_limit.low), rounded(to_limit.high)] if to_limit else None,
        before=before_value,
        ratio_to_before=rounded(to_before.median) if to_before else None,
        spread_to_before=[rounded(to_before.low), rounded(to_before.high)] if to_before else None,
    )


def compare_costs(
    scenario: str,
    unit: str,
    goal: str,
    *,
    ours: Sequence[float],
    limit: Sequence[float],
    max_ratio: float,
    other_goals_met: bool = True,
    remark: str,
) -> Row:
    """Return a row of latencies, CPU times or sizes (lower is better). `ours`, `limit`: one value per round."""
    spread = ratio(ours, limit)
    return Row(
        scenario=scenario,
        unit=unit,
        goal=goal,
        met=other_goals_met and spread.median <= max_ratio,
        remark=remark,
        ours=rounded(statistics.median(ours)),
        peer=None,
        limit=rounded(statistics.median(limit)),
        ratio_to_peer=None,
        ratio_to_limit=rounded(spread.median),
        spread_to_limit=[rounded(spread.low), rounded(spread.high)],
    )


def compare_costs_with_before(
    scenario: str,
    unit: str,
    goal: str,
    *,
    ours: Sequence[float],
    before: Sequence[float],
    max_ratio: float | None = None,
    met: bool | None = True,
    remark: str = "",
) -> Row:
    """Return a row of latencies, CPU times or sizes (lower is better). `ours`, `before`: one value per round.

    max_ratio: to the build before; None: that ratio is no goal
    met: whether the row's other goals are met; None: it has no goal at all, so there is no `max_ratio` either
    """
    spread = ratio(ours, before)
    return Row(
        scenario=scenario,
        unit=unit,
        goal=goal,
        met=met if max_ratio is None else met is True and spread.median <= max_ratio,
        remark=remark,
        ours=rounded(statistics.median(ours)),
        peer=None,
        limit=None,
        ratio_to_peer=None,
        ratio_to_limit=None,
        before=rounded(statistics.median(before)),
        ratio_to_before=rounded(spread.median),
        spread_to_before=[rounded(spread.low), rounded(spread.high)],
    )


def median_p99(measurements: Measurements, name: str, loop: str = "latency") -> float | None:
    """Return the median of the rounds' p99 in milliseconds, or None if there is none.

    `loop`: the attribute of Measurement: `latency` (closed loop), `open_loop` or `at_peer_rate`.
    """
    found = []
    for measurement in measurements.get(name, ()):
        latency: Latency | None = getattr(measurement, loop)
        if latency is not None and is_significant(measurement):
            found.append(latency.p99)
    return statistics.median(found) if found else None


def at_most_a_third(ours: float | None, peer: float | None) -> bool:
    """Return whether both latencies are known, and ours is at most a third of the peer's."""
    return ours is not None and peer is not None and ours <= peer / 3


def format_ms(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.1f} ms"


def rounded(value: float) -> float:
    """Return the value with four significant digits."""
    return float(f"{value:.4g}")
