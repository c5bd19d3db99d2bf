"""Each scenario of the benchmarks for about a second, so that they do not rot. Nothing here judges speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Spread, percentiles, ratio

pytest.importorskip("fastapi", reason="the benchmarks' own packages are not installed: make bench-quick")
pytest.importorskip("ariadne")

ROOT = Path(__file__).parents[2]
GROUPS = {
    "products": ["product"],
    "orders": ["order", "hot-order", "mail"],
    "inventory": ["reserve", "check"],
    "gateway": ["graphql"],
    "tools": ["import", "replay"],
    "whole stack": ["cold", "memory"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", GROUPS.values(), ids=GROUPS.keys())
def test_every_scenario_runs_and_writes_its_row(words: list[str], server_directory: Path) -> None:
    out = server_directory / f"bench-{words[0]}"
    command = [sys.executable, "-m", "benchmarks.run", "--smoke", "--kafka", "embedded", "--port-base", "29300", "--out", str(out), *words]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((out / "latest.json").read_text())
    assert rows
    assert all(row["ours"] is not None and isinstance(row["met"], bool) for row in rows)
    assert all({"scenario", "ours", "peer", "limit", "ratio_to_peer", "ratio_to_limit", "goal", "met"} <= row.keys() for row in rows)
    assert "| scenario |" in (out / "report.md").read_text()


def test_every_scenario_is_in_a_group() -> None:
    from benchmarks.scenarios import SCENARIOS

    words = [word for group in GROUPS.values() for word in group]
    assert [s.name for s in SCENARIOS if not s.name.startswith(tuple(words))] == []


def test_percentiles_are_those_of_the_sorted_latencies_in_milliseconds() -> None:
    latency = percentiles([n / 1000 for n in range(1000, 0, -1)])

    assert (latency.p50, latency.p99, latency.p999) == (501, 991, 1000)


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([10, 40, 30], [5, 10, 10]) == Spread(3, 2, 4)
