"""What the rounds' figures say, and when they say nothing."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import needs, report, run
from benchmarks.figures import Figure, Latency, Spread, against, percentiles, ratio
from benchmarks.lab import Lab
from benchmarks.scenario import Contestants, Scenario, compared, p99, third
from benchmarks.scenarios import inventory

ROOT = Path(__file__).parents[2]


def figures(*values: float, done: int = 100, p99: float = 1.0) -> list[Figure]:
    return [Figure(value=v, done=done, latency=Latency(p99=p99)) for v in values]


def test_percentiles_are_those_of_the_sorted_latencies_in_milliseconds() -> None:
    latency = percentiles([n / 1000 for n in range(1000, 0, -1)])

    assert (latency.p50, latency.p99, latency.p999) == (501, 991, 1000)


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 40, 30], [5, 10, 10]) == Spread(3, 2, 4)


def test_a_goal_is_met_by_the_median_of_the_rounds() -> None:
    row = compared(
        {"ours": figures(20, 30, 50), "peer": figures(10, 10, 10)}, "s", "u", "g", limit=None, least_to_peer=3
    )

    assert (row.met, row.ours, row.peer, row.ratio_to_peer, row.spread_to_peer, row.remark) == (
        True,
        30,
        10,
        3,
        [2, 5],
        "",
    )
    assert not compared(
        {"ours": figures(20, 30, 50), "peer": figures(10, 10, 10)}, "s", "u", "g", limit=None, least_to_peer=3.1
    ).met


def test_rounds_in_which_the_peer_did_next_to_nothing_are_not_counted() -> None:
    peer = figures(10, 10) + figures(0.3, done=1)

    row = compared({"ours": figures(20, 40, 30), "peer": peer}, "s", "u", "g", limit=None, least_to_peer=2)

    assert (row.met, row.ratio_to_peer, row.spread_to_peer) == (True, 3, [2, 4])
    assert row.remark == "1 of 3 rounds not counted, the peer did next to nothing in them"


def test_a_peer_that_did_next_to_nothing_in_most_rounds_is_not_judged_against() -> None:
    peer = figures(10) + figures(0.3, 0.3, done=1)

    row = compared(
        {"ours": figures(20, 40, 30), "peer": peer}, "s", "u", "g", limit=None, least_to_peer=2, remark="first"
    )

    assert (row.met, row.peer, row.ratio_to_peer, row.spread_to_peer) == (False, 0.3, None, None)
    assert row.remark == "first; not judged: the peer did next to nothing in most rounds"


def test_a_peer_that_is_left_out_is_null_and_its_goal_is_not_met() -> None:
    row = compared({"ours": figures(20), "limit": figures(40)}, "s", "u", "g", least_to_peer=2, least_to_limit=0.5)

    assert (row.met, row.peer, row.ratio_to_peer, row.ratio_to_limit) == (False, None, None, 0.5)
    assert row.remark == "not judged: the peer was left out"


def test_a_starved_round_of_our_own_counts() -> None:
    ours = figures(0.3, done=1) + figures(40, 30)

    assert against(ours, figures(10, 10, 10)) == Spread(3, 0.03, 4)
    assert compared({"ours": ours, "peer": figures(10, 10, 10)}, "s", "u", "g", limit=None).remark.startswith(
        "there are rounds"
    )


def test_a_latency_beside_a_peer_that_has_none_is_not_a_third_of_it() -> None:
    found = {"ours": figures(10, 10, p99=2), "peer": figures(0.3, 0.3, done=0, p99=0)}

    assert (p99(found, "ours"), p99(found, "peer"), p99(found, "gone"), p99(found, "ours", "open")) == (
        2,
        None,
        None,
        None,
    )
    assert not third(2, None)
    assert third(2, 6)


def test_a_row_lock_that_finishes_nothing_makes_no_ratio() -> None:
    found = {}
    for callers in inventory.CALLERS:
        found[f"ours {callers}"] = figures(6000, 6000, 6000, p99=300)
        found[f"peer {callers}"] = figures(0.333, 0.333, 0.333, done=0, p99=0)
        found[f"limit {callers}"] = figures(9000, 9000, 9000)

    rows = inventory.judge_hot(found)

    assert [(row.met, row.ratio_to_peer) for row in rows] == [(False, None)] * 3
    assert all("not judged: the peer did next to nothing" in row.remark for row in rows)


def failing(*rounds: bool) -> Scenario:
    """A scenario whose only contestant fails in those of its runs."""
    left = iter(rounds)

    async def ours() -> Figure:
        if next(left):
            raise RuntimeError("a stall")
        return Figure(value=1, done=100)

    async def prepare(_: Lab) -> Contestants:
        return {"ours": ours}

    return Scenario(name="mail", title="mail", goal="g", prepare=prepare, judge=lambda _: [])


NO_LAB: Lab = SimpleNamespace()  # type: ignore[assignment]


async def test_a_round_that_fails_is_measured_once_more() -> None:
    found = await run.rounds(NO_LAB, failing(True, False, False), 2)

    assert [figure.notes for figure in found["ours"]] == [{"again_after": "RuntimeError('a stall')"}, {}]


async def test_a_round_that_fails_twice_fails_the_scenario() -> None:
    with pytest.raises(RuntimeError, match="a stall"):
        await run.rounds(NO_LAB, failing(False, True, True), 2)


def test_a_failed_scenario_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    raw = report.Raw(failed={"order": "RuntimeError('no')"})
    args = SimpleNamespace(seconds=1)
    scenario = failing()
    found = {"ours": figures(1, 2, 3)}
    raw.add(scenario, found, [compared(found, "mail", "ms", "g", peer=None, limit=None)], seconds=1, load=0, args=args)

    report.write(raw, tmp_path)

    kept = report.Raw.read(tmp_path)
    assert list(kept.entries) == ["mail"]
    assert kept.failed == raw.failed
    assert "- order: `RuntimeError('no')`" in (tmp_path / "report.md").read_text()


def test_a_full_run_does_not_start_if_a_peer_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    def find_missing(required: Iterable[str]) -> list[str]:
        return [need for need in dict.fromkeys(required) if need == needs.NODE]

    with pytest.raises(SystemExit) as exit:
        run.main(["graphql-list"], find_missing=find_missing)

    assert exit.value.code == 2
    assert "the peers need Node and npm" in capsys.readouterr().err


def test_importing_the_table_of_scenarios_needs_no_package_of_a_peer() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(('fastapi', 'sqlalchemy', 'psycopg', 'strawberry', 'ariadne', 'aiokafka'))); "

    done = subprocess.run(
        [sys.executable, "-c", hidden + "import benchmarks.run"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
