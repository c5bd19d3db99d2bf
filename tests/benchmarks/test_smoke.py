"""Each scenario of the benchmarks for less than a second, so that they keep working. Speed is not judged here.

Peers whose packages are not installed, as after `make install`, are left out.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import requirements
from benchmarks.scenarios.all import SCENARIOS
from tests.support.ports import free_port_base

ROOT = Path(__file__).parents[2]
GROUPS = {
    "on one stack": [s.name for s in SCENARIOS if s.needs_stack],
    "the gateway": ["graphql"],
    "whole shops": ["cold", "memory"],
    # This one takes the place of the earlier one, which would have to be installed.
    "beside another build": ["before"],
}
ROW_FIELDS = {"scenario", "ours", "peer", "limit", "ratio_to_peer", "ratio_to_limit", "goal", "met"}


# Ten times what an idle machine needs.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", GROUPS.values(), ids=GROUPS.keys())
def test_every_scenario_runs_and_writes_its_row(words: list[str], server_directory: Path) -> None:
    out = server_directory / f"bench-{words[0]}"
    options = ["--smoke", "--kafka", "embedded", "--port-base", str(free_port_base(44)), "--out", str(out)]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *options, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((out / "latest.json").read_text())
    assert rows
    assert all(row["ours"] is not None for row in rows)
    assert all(isinstance(row["met"], bool) or row["goal"] == "none" for row in rows)
    assert all(row.keys() >= ROW_FIELDS for row in rows)
    assert "| scenario |" in (out / "report.md").read_text()
    entries = json.loads((out / "raw.json").read_text())["entries"]
    assert set(entries) == {s.name for s in SCENARIOS if s.name.startswith(tuple(words))}
    for scenario in SCENARIOS:
        if scenario.name in entries and requirements.missing(scenario.requires):
            not_run = [row for row in entries[scenario.name]["rows"] if "was not run" in row["remark"]]
            assert not_run
            assert all(row["peer"] is None and row["ratio_to_peer"] is None and not row["met"] for row in not_run)


def test_every_scenario_is_in_a_group() -> None:
    words = tuple(word for group in GROUPS.values() for word in group)
    assert [s.name for s in SCENARIOS if not s.name.startswith(words)] == []
