"""A soak of a few seconds, so that it keeps working, and how its measurements are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile.clients import kinds
from benchmarks.measurements import Latency
from benchmarks.memory_limits import memory_limits
from benchmarks.soak import report
from benchmarks.soak.honest import SHARES, Outcome, Result
from benchmarks.soak.memory import Memory
from benchmarks.soak.report import Soak
from tests.support.ports import free_port_base

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_a_short_soak_reports_both_phases_and_the_memory_of_every_process(server_directory: Path) -> None:
    out = server_directory / "soak"
    options = ["--minutes", "0.1", "--quiet-minutes", "0.05", "--intensity", "0.1", "--products", "30"]
    options += ["--sample-seconds", "1", "--settle-seconds", "0", "--kafka", "embedded"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *options, "--port-base", str(free_port_base()), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # A busy machine may let an honest request fail, which is status 1.
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    soak = json.loads((out / "soak.json").read_text())
    assert set(soak["hostile"]) == set(kinds())
    assert soak["quiet"]["total"]["requests"] > 0
    assert soak["beside_hostile"]["total"]["requests"] > 0
    assert set(soak["memory"]) == set(memory_limits())
    assert all(memory["peak"] > 0 for memory in soak["memory"].values())
    assert (soak["restarted"], soak["unhandled_errors"], soak["differences"]) == ([], {}, 0)
    assert "| orders of 1,000 lines |" in (out / "soak.md").read_text()


def soak(memory: dict[str, dict[str, Any]] | None = None, errors: dict[str, int] | None = None, **fields: Any) -> Soak:
    def outcome(errors: dict[str, int]) -> Outcome:
        return Outcome(requests=1000, errors=errors, latency=Latency(p50=1, p95=2, p99=3, p999=4))

    flat = {"idle": 40, "quiet": 45, "first_third": 100, "last_third": 100, "peak": 150, "limit": 256}
    processes = {
        name: Memory(**{**flat, "is_enforced": True, "samples": [], **(memory or {}).get(name, {})})
        for name in memory_limits()
    }
    quiet = Result(total=outcome({}), kinds={kind: outcome({}) for kind in SHARES})
    hostile = Result(total=outcome(errors or {}), kinds=quiet.kinds)
    defaults = {"date": "", "minutes": 30, "quiet_minutes": 5, "rate": 20, "intensity": 1, "pause": 2}
    outcomes: dict[str, Any] = {"hostile": {}, "limits_met": {}, "restarted": [], "unhandled_errors": {}}
    return Soak(
        **{**defaults, **outcomes, "differences": 0, **fields}, quiet=quiet, beside_hostile=hostile, memory=processes
    )


def test_a_soak_in_which_nothing_happened_meets_its_goals() -> None:
    assert report.failures(soak()) == []
    assert "Met." in report.render(soak())


def test_each_goal_that_is_not_met_is_reported() -> None:
    assert report.failures(soak(errors={"503": 2})) == ["2 of 1000 honest requests failed: {'503': 2}"]
    assert report.failures(soak(restarted=["orders"])) == ["restarted: orders"]
    assert report.failures(soak(unhandled_errors={"graphql": 1})) == ["unhandled errors in the logs of graphql"]
    assert report.failures(soak(differences=3)) == ["3 differences between orders and reservations"]
    assert report.failures(soak({"orders": {"peak": 257}})) == ["orders: 257 MiB exceed the limit of 256 MiB"]
    growing = {"graphql": {"last_third": 109}}
    assert report.failures(soak(growing)) == ["graphql: memory grew by 9 MiB from the first third to the last"]
    assert report.failures(soak(growing, minutes=5)) == []
    # Its caches may grow.
    assert report.failures(soak({"mongodb": {"last_third": 200}})) == []
