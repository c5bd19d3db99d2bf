"""A short chaos run, as `make chaos` runs long ones; and the same run on a shop with bugs, which must be detected."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from market_dev.chaos.history import read_history
from market_dev.chaos.people import name_of
from market_dev.chaos.plan import SERVICES, STORES
from market_dev.chaos.report import RunReport
from market_dev.chaos.runner import RECOVERY_SECONDS, Settings, run
from market_dev.commands.cli import app
from market_dev.stack import processes
from market_dev.stack.servers.base import StartError
from typer.testing import CliRunner

from tests.support.ports import free_port_base

BUGS = Path(__file__).parent / "bugs"
PORTS = 36
# Above the recovery deadline of the run, so that an order that is pending then stays pending.
SETTLE_SECONDS = 2 * RECOVERY_SECONDS
# Long enough for each client to do everything at least once, on a slow machine too: one order in ten is requested
# twice.
WARMUP_SECONDS = 25.0


@pytest.fixture
def directory(server_directory: Path) -> Path:
    """A directory that PostgreSQL's user can read, even while another run of pytest closes its own to everybody
    else."""
    path = Path(tempfile.mkdtemp(prefix="chaos-", dir=server_directory))
    path.chmod(0o755)
    return path


@pytest.mark.timeout(740)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("sign_in", [False, True], ids=["open", "with sign-in"])
def test_a_short_chaos_run_is_clean(directory: Path, sign_in: bool) -> None:
    report = directory / "report.md"
    targets = {*SERVICES, *STORES, *(["issuer"] if sign_in else [])}
    # Each process once, and each service a second time.
    kills = len(targets) + len(SERVICES)
    options = ["--seed", "11", "--kills", str(kills), "--clients", "8", "--max-fault-seconds", "2"]
    options += ["--sign-in"] * sign_in
    paths = ["--port-base", str(free_port_base(PORTS)), "--data", str(directory), "--report", str(report)]
    result = subprocess.run(
        [sys.executable, "-m", "market_dev.commands.cli", "chaos", *options, *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=700,
        preexec_fn=processes.bound_to_parent(),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (run_report,) = json.loads(report.with_suffix(".json").read_text())
    assert not any(run_report["violations"].values())
    # It did what it claims: every process was killed while orders were in flight, and orders were placed throughout.
    assert run_report["kills"] == kills
    assert {f["target"] for f in run_report["faults"] if f["is_kill"]} == targets
    assert run_report["orders_placed"] > 50
    assert (run_report["storefront_orders"] > 0) is not sign_in
    assert run_report["mails"] >= run_report["events"] > 50
    assert "| 11 |" in report.read_text()


@pytest.mark.parametrize(
    ("path", "reason"), [("used", "is not empty: it has seed-7"), ("file", "File exists"), ("file/below", "Not a dir")]
)
def test_a_data_directory_that_cannot_be_used_is_refused(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "used" / "seed-7").mkdir(parents=True)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["chaos", "--kills", "0", "--data", str(tmp_path / path)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "--data" in result.output
    assert reason in result.output


def run_with_bugs(directory: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> RunReport:
    """Return the report of a run without faults on a shop with bugs. `options` are further settings of the run."""
    monkeypatch.setenv("PYTHONPATH", str(BUGS))
    settings = Settings(
        directory=directory,
        kills=0,
        port_base=free_port_base(PORTS),
        clients=10,
        warmup_seconds=WARMUP_SECONDS,
        retry_seconds=2,
        settle_seconds=SETTLE_SECONDS,
        **options,
    )
    try:
        return asyncio.run(run(settings))
    except StartError as e:
        pytest.fail(f"the shop with bugs did not start: {e}")


@pytest.mark.timeout(600)
def test_each_bug_is_detected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run_with_bugs(directory, monkeypatch, seed=5, restock_interval_seconds=1)
    history = read_history(directory / "history.jsonl")
    user_of = {c.order_id: c.user for c in history if c.operation == "place" and c.order_id}
    found = {check: "\n".join(sentences) for check, sentences in report.violations.items()}

    def names_order_of(check: str, client: int) -> bool:
        user = f"client-{client}@chaos.test"
        return any(order_id in found[check] for order_id, owner in user_of.items() if owner == user)

    assert "-10" in found["no_unit_sold_twice"], "deliveries booked with a thousand units too many"
    assert names_order_of("responses_match_orders", 2), "an order reported as cancelled that was not"
    assert names_order_of("one_order_per_key", 3), "a key that made two orders"
    assert "of shopper-1@chaos.test has" in found["one_order_per_key"], "a form of the storefront that made two orders"
    assert names_order_of("reservations_match_orders", 4), "a confirmed order without a reservation"
    assert names_order_of("every_event_published", 5), "an event removed from the outbox without being published"
    assert found["every_mail_delivered"], "an event committed without its mail"
    assert names_order_of("every_order_settled", 7), "an order that stays pending"
    assert names_order_of("reconcile_finds_nothing", 8), "stock that was never released"


@pytest.mark.timeout(600)
def test_a_request_that_runs_as_somebody_else_is_detected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run_with_bugs(directory, monkeypatch, seed=6, sign_in=True)
    found = "\n".join(report.violations["no_request_ran_as_somebody_else"])
    assert f"of {name_of(1)}: {name_of(1)} sent no such request" in found, "orders of client 9 that are client 1's"
    assert f"by {name_of(9)} showed an order of {name_of(1)}" in found
    # Bug 2 lets anybody believe that they have cancelled an order of client 2; nothing else is known of client 5.
    violations = [line for line in found.splitlines() if f"of {name_of(2)}" not in line]
    assert [line for line in violations if name_of(5) in line] == []
