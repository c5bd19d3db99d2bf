"""How the rounds are judged, also when they are not significant, and what a failure costs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from benchmarks import report, requirements, run
from benchmarks.comparisons import builds
from benchmarks.load import LoadDriver
from benchmarks.lone_calls import Result
from benchmarks.measurements import Latency, Measurement, Spread, percentiles, ratio, ratio_to
from benchmarks.scenario import Contestants, Scenario, at_most_a_third, compare, median_p99
from benchmarks.scenarios import before, inventory
from benchmarks.scenarios.all import SCENARIOS
from benchmarks.testbed import Testbed

ROOT = Path(__file__).parents[2]


def rounds(*values: float, operations: int = 100, p99: float = 1.0) -> list[Measurement]:
    return [Measurement(value=v, operations=operations, latency=Latency(p99=p99)) for v in values]


def test_percentiles_are_in_milliseconds() -> None:
    latency = percentiles([n / 1000 for n in range(1000, 0, -1)])

    assert (latency.p50, latency.p99, latency.p999) == (501, 991, 1000)


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 40, 30], [5, 10, 10]) == Spread(3, 2, 4)


def test_a_goal_is_met_by_the_median_of_the_rounds() -> None:
    measurements = {"ours": rounds(20, 30, 50), "peer": rounds(10, 10, 10)}

    row = compare(measurements, "s", "u", "g", limit=None, min_ratio_to_peer=3)

    found = (row.met, row.ours, row.peer, row.ratio_to_peer, row.spread_to_peer, row.remark)
    assert found == (True, 30, 10, 3, [2, 5], "")
    assert not compare(measurements, "s", "u", "g", limit=None, min_ratio_to_peer=3.1).met


def test_rounds_in_which_the_peer_completed_too_few_operations_are_ignored() -> None:
    peer = rounds(10, 10) + rounds(0.3, operations=1)

    row = compare({"ours": rounds(20, 40, 30), "peer": peer}, "s", "u", "g", limit=None, min_ratio_to_peer=2)

    assert (row.met, row.ratio_to_peer, row.spread_to_peer) == (True, 3, [2, 4])
    assert row.remark == "1 of 3 rounds ignored, the peer completed too few operations in them"


def test_a_peer_that_completed_too_few_operations_in_most_rounds_is_not_judged() -> None:
    measurements = {"ours": rounds(20, 40, 30), "peer": rounds(10) + rounds(0.3, 0.3, operations=1)}

    row = compare(measurements, "s", "u", "g", limit=None, min_ratio_to_peer=2, remark="first")

    assert (row.met, row.peer, row.ratio_to_peer, row.spread_to_peer) == (False, 0.3, None, None)
    assert row.remark == "first; not judged: the peer completed too few operations in most rounds"


def test_a_peer_that_was_not_run_is_null_and_its_goal_is_not_met() -> None:
    measurements = {"ours": rounds(20), "limit": rounds(40)}

    row = compare(measurements, "s", "u", "g", min_ratio_to_peer=2, min_ratio_to_limit=0.5)

    assert (row.met, row.peer, row.ratio_to_peer, row.ratio_to_limit) == (False, None, None, 0.5)
    assert row.remark == "not judged: the peer was not run"


def test_a_round_in_which_ours_completed_too_few_operations_counts() -> None:
    ours = rounds(0.3, operations=1) + rounds(40, 30)

    assert ratio_to(ours, rounds(10, 10, 10)) == Spread(3, 0.03, 4)
    row = compare({"ours": ours, "peer": rounds(10, 10, 10)}, "s", "u", "g", limit=None)
    assert row.remark == "ours completed too few operations in some rounds, which count"


def test_an_unknown_latency_of_the_peer_does_not_meet_a_goal() -> None:
    measurements = {"ours": rounds(10, 10, p99=2), "peer": rounds(0.3, 0.3, operations=0, p99=0)}

    assert median_p99(measurements, "ours") == 2
    assert median_p99(measurements, "peer") is None
    assert median_p99(measurements, "absent") is None
    assert median_p99(measurements, "ours", "open_loop") is None
    assert not at_most_a_third(2, None)
    assert at_most_a_third(2, 6)


def test_a_row_lock_that_completes_nothing_has_no_ratio() -> None:
    measurements = {}
    for callers in inventory.HOT_PRODUCT_GOALS:
        measurements[f"ours {callers}"] = rounds(6000, 6000, 6000, p99=300)
        measurements[f"peer {callers}"] = rounds(0.333, 0.333, 0.333, operations=0, p99=0)
        measurements[f"limit {callers}"] = rounds(9000, 9000, 9000)

    rows = inventory.judge_hot_product(measurements)

    assert [(row.met, row.ratio_to_peer) for row in rows] == [(False, None)] * 3
    assert all("not judged: the peer completed too few operations" in row.remark for row in rows)


def scenario_that_fails(*failures: bool) -> Scenario:
    """A scenario with one contestant; `failures` says of each of its measurements whether it fails."""
    remaining = iter(failures)

    async def measure() -> Measurement:
        if next(remaining):
            raise RuntimeError("a stall")
        return Measurement(value=1, operations=100)

    async def prepare(_: Testbed) -> Contestants:
        return {"ours": measure}

    return Scenario(name="mail", title="mail", goal="g", prepare=prepare, judge=lambda _: [])


def named(name: str) -> Scenario:
    return Scenario(name=name, title=name, goal="g", prepare=scenario_that_fails().prepare, judge=lambda _: [])


NO_TESTBED: Testbed = SimpleNamespace()  # type: ignore[assignment]


def test_rows_beside_an_earlier_build_have_a_section_of_their_own(tmp_path: Path) -> None:
    raw = report.Raw(before="abc")
    measurements = {"ours": rounds(20), "before": rounds(10)}
    (row,) = before.judge_lists(measurements)
    raw.add(named("before-product-list"), measurements, [row], took_seconds=1, load_average_before=0, round_seconds=1)

    report.write(raw, tmp_path)

    text = (tmp_path / "report.md").read_text()
    summary, _, section = text.partition("## Beside the commit before (abc)")
    line = f"| {row.scenario} | requests/s | 20 | 10 | 2.00 (2.00 - 2.00) | >= 1.5x before | yes |"
    assert line in section
    assert row.scenario not in summary


async def test_scenarios_whose_commit_is_not_in_the_clone_are_no_failure_and_the_report_says_so(tmp_path: Path) -> None:
    async def prepare(_: Testbed) -> Contestants:
        raise builds.NotInRepository("commit abc is not in this clone")

    scenario = Scenario(name="before-order", title="t", goal="g", prepare=prepare, judge=lambda _: [])
    raw, done = report.Raw(), set[str]()
    args = run.parse_arguments(["--smoke", "--out", str(tmp_path), "before-order"])
    testbed: Testbed = SimpleNamespace(pin=lambda: None, before="")  # type: ignore[assignment]

    await run._run_scenarios(testbed, [scenario], args, raw, done)

    assert done == {"before-order"}
    assert (raw.failed, list(raw.entries)) == ({}, [])
    text = (tmp_path / "report.md").read_text()
    assert "Not run, and therefore not judged:\n\n- before-order: commit abc is not in this clone" in text


async def test_a_failed_round_is_measured_again() -> None:
    measurements = await run.measure(NO_TESTBED, scenario_that_fails(True, False, False), 2, recovery_seconds=0)

    assert [m.notes for m in measurements["ours"]] == [{"retried_after": "RuntimeError('a stall')"}, {}]


async def test_a_round_that_fails_twice_fails_the_scenario() -> None:
    with pytest.raises(RuntimeError, match="a stall"):
        await run.measure(NO_TESTBED, scenario_that_fails(False, True, True), 2, recovery_seconds=0)


async def test_the_error_of_a_program_that_fails_is_in_the_failure() -> None:
    class Driver(LoadDriver):
        pids: ClassVar[dict[str, int]] = {}

    with pytest.raises(RuntimeError, match=r"lone_calls failed with .*ValidationError.*`ports`"):
        await Driver(seconds=1, warmup=0).run_program("benchmarks.lone_calls", b"{}", Result)


def test_a_failed_scenario_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    raw = report.Raw(failed={"order": "RuntimeError('no')"})
    measurements = {"ours": rounds(1, 2, 3)}
    rows = [compare(measurements, "mail", "ms", "g", peer=None, limit=None)]
    raw.add(scenario_that_fails(), measurements, rows, took_seconds=1, load_average_before=0, round_seconds=1)

    report.write(raw, tmp_path)

    written = report.Raw.read(tmp_path)
    assert list(written.entries) == ["mail"]
    assert written.failed == raw.failed
    assert "- order: `RuntimeError('no')`" in (tmp_path / "report.md").read_text()


def test_judging_again_replaces_texts_and_keeps_measurements(tmp_path: Path) -> None:
    raw = report.Raw()
    peers = {"peer": rounds(5), "litestar": rounds(10)}
    measurements = {"ours": rounds(20), **peers, "limit": rounds(40), "pgbench": rounds(30)}
    old = Scenario(
        name="product-one", title="old", goal="old", prepare=scenario_that_fails().prepare, judge=lambda _: []
    )
    raw.add(old, measurements, [], took_seconds=1, load_average_before=0, round_seconds=1)

    report.judge_again(raw)

    entry = raw.entries["product-one"]
    assert (entry.title, entry.measurements) == ("GET one product", measurements)
    assert [(row.scenario, row.ratio_to_peer, row.met) for row in entry.rows] == [
        ("GET one product", 4, True),
        ("GET one product, compared with Litestar", 2, True),
    ]


def test_a_full_run_refuses_to_leave_out_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run.parse_arguments(["graphql-list"], is_installed=lambda requirement: requirement != requirements.NODE)

    assert exit_info.value.code == 2
    assert "the peers require Node and npm." in capsys.readouterr().err


def test_a_word_chooses_the_scenario_of_that_name_or_all_whose_names_begin_with_it() -> None:
    def chosen(*words: str) -> list[str]:
        return [scenario.name for scenario in SCENARIOS if run._is_chosen(scenario, list(words))]

    assert chosen("order", "mail") == ["order", "mail"]
    assert chosen("order-c") == ["order-count", "order-count-reconcile"]
    assert chosen() == [scenario.name for scenario in SCENARIOS]


def test_importing_the_scenarios_needs_no_package_of_a_peer() -> None:
    hide = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('fastapi', 'litestar', 'advanced_alchemy', 'sqlalchemy', 'psycopg', 'strawberry', 'ariadne', 'aiokafka'))); "
    )

    done = subprocess.run(
        [sys.executable, "-c", hide + "import benchmarks.run"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
