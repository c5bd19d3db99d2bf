"""A short run under faults, as `make torture` makes long ones; and the same shop broken on purpose, which must be caught."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from market_dev.chaos.history import read
from market_dev.chaos.runner import Settings, run
from market_dev.stack import processes as spawn
from market_dev.stack.servers.base import StartError

BROKEN = Path(__file__).parent / "broken"
PORTS = 36
# Above the recovery deadline of the run, so that what is pending then is pending for good.
RECOVERY_WAIT = 16.0
# So long that each client does each thing some times: one order in ten is asked for twice, and a machine may be slow.
WARM = 25.0


def free_base() -> int:
    """The first of 36 free ports in a row."""
    for base in spawn.free_ports():
        if base + PORTS < 20_000 and all(spawn.is_free(base + n) for n in range(PORTS)):
            return base
    raise AssertionError("unreachable")


@pytest.fixture
def place(server_directory: Path) -> Path:
    """A folder that PostgreSQL's user can reach, also when another run of pytest closes its own to all others meanwhile."""
    path = Path(tempfile.mkdtemp(prefix="torture-", dir=server_directory))
    path.chmod(0o755)
    return path


@pytest.mark.timeout(740)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_short_run_under_faults_loses_nothing_and_sells_nothing_twice(place: Path) -> None:
    report = place / "report.md"
    command = [
        sys.executable,
        "-m",
        "market_dev.commands.cli",
        "torture",
        "--seed",
        "11",
        "--kills",
        "15",
        "--clients",
        "8",
        "--most-seconds",
        "2",
        "--port-base",
        str(free_base()),
        "--data",
        str(place),
        "--report",
        str(report),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=700, preexec_fn=spawn.bound_to_parent()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (figures,) = json.loads(report.with_suffix(".json").read_text())
    assert not any(figures["violations"].values())
    # It did what it says: every process was killed while orders were in flight, and orders were placed throughout.
    assert figures["kills"] == 15
    assert {o["target"] for o in figures["outcomes"] if o["is_kill"]} == {
        "products",
        "orders",
        "inventory",
        "notifications",
        "graphql",
        "postgres",
        "mongodb",
        "kafka",
        "redis",
        "mail",
    }
    assert figures["placed"] > 50
    assert figures["mails"] >= figures["events"] > 50
    assert "| 11 |" in report.read_text()


@pytest.mark.timeout(600)
def test_a_shop_that_is_broken_in_eight_ways_is_caught_in_each(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BROKEN))
    settings = Settings(
        directory=place,
        seed=5,
        kills=0,
        port_base=free_base(),
        clients=10,
        most_seconds=1,
        warm_seconds=WARM,
        stubborn=2,
        settle_seconds=RECOVERY_WAIT,
        restock_seconds=1,
    )
    try:
        report = asyncio.run(run(settings))
    except StartError as e:
        pytest.fail(f"the broken shop did not start: {e}")
    user_of = {c.order_id: c.user for c in read(place / "history.jsonl") if c.operation == "place" and c.order_id}
    found = {check: "\n".join(sentences) for check, sentences in report.violations.items()}

    def blames(check: str, number: int) -> bool:
        return any(id in found[check] for id, user in user_of.items() if user == f"client-{number}@torture.test")

    assert "-10" in found["no_unit_sold_twice"], "a delivery booked with a thousand too many"
    assert blames("every_answer_was_true", 2), "an order said to be cancelled that was not"
    assert blames("one_key_one_order", 3), "a key that made two orders"
    assert blames("reservations_match_orders", 4), "a confirmed order without goods"
    assert blames("every_event_was_sent", 5), "an event said to be sent that was not"
    assert found["every_mail_was_taken"], "a mail said to be sent that was not"
    assert blames("nothing_stays_pending", 7), "an order that stays pending"
    assert blames("reconcile_agrees", 8), "goods that were never given back"
