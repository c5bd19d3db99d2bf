"""`market reconcile`: what it shows of the lines that the command of orders prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from market_dev.commands.cli import app
from market_dev.commands.reconcile import reconcile
from typer.testing import CliRunner

from tests.support.ports import free_port_base

PROGRESS = {"kind": "progress", "step": "orders", "done": 3, "total": 3}
DIFFERENCE = {
    "kind": "difference",
    "difference": "reservation-without-order",
    "id": "0190",
    "cause": "MongoDB was restored",
    "detail": "2 of p1",
    "repaired": None,
}
SUMMARY = {
    "kind": "summary",
    "orders": 3,
    "reservations": 4,
    "messages": None,
    "differences": 0,
    "repaired": 0,
    "seconds": 0.1,
    "complete": True,
    "error": None,
}


class FakeOrders:
    """A command that prints these lines and exits with this status, after an error in its log; it records its
    arguments."""

    def __init__(self, directory: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self.status = 0
        self._output = directory / "output"
        self._arguments = directory / "arguments"

    @property
    def arguments(self) -> list[str]:
        return self._arguments.read_text().split()

    def command(self) -> list[str]:
        self._output.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        script = f"""
import sys
open({str(self._arguments)!r}, "w").write(" ".join(sys.argv[1:]))
print(open({str(self._output)!r}).read(), end="")
print("connecting\\nno such database", file=sys.stderr)
sys.exit({self.status})
"""
        return [sys.executable, "-c", script]


@pytest.fixture
def orders(tmp_path: Path) -> FakeOrders:
    return FakeOrders(tmp_path)


def run(orders: FakeOrders, *, repair: bool = False, topic: bool = False, as_json: bool = False) -> int:
    return reconcile(orders.command(), {}, repair=repair, topic=topic, as_json=as_json)


def test_no_differences_end_with_0(orders: FakeOrders, capsys: pytest.CaptureFixture[str]) -> None:
    orders.lines = [PROGRESS, SUMMARY]
    assert (run(orders), orders.arguments) == (0, ["--json"])
    output = capsys.readouterr().out
    assert "Compared 3 orders, 4 reservations in 0.1 s." in output
    assert "No differences." in output


def test_a_difference_is_shown_with_its_cause_and_ends_with_1(
    orders: FakeOrders, capsys: pytest.CaptureFixture[str]
) -> None:
    orders.lines = [DIFFERENCE, PROGRESS, SUMMARY | {"differences": 1, "orders": 1, "messages": 1}]
    assert (run(orders, topic=True), orders.arguments) == (1, ["--json", "--topic"])
    output = capsys.readouterr().out
    for part in ("MongoDB was restored", "2 of p1", "1 difference.", "Compared 1 order, 4 reservations, 1 event in"):
        assert part in output


def test_a_table_of_very_many_differences_is_cut_off(orders: FakeOrders, capsys: pytest.CaptureFixture[str]) -> None:
    orders.lines = [DIFFERENCE] * 1_002 + [SUMMARY | {"differences": 1_002}]
    assert run(orders) == 1
    output = capsys.readouterr().out
    assert output.count("2 of p1") == 1_000
    assert "2 further differences not shown: --json prints all." in output
    assert "1002 differences." in output


def test_a_repaired_difference_ends_with_0(orders: FakeOrders, capsys: pytest.CaptureFixture[str]) -> None:
    orders.lines = [DIFFERENCE | {"repaired": True}, SUMMARY | {"differences": 1, "repaired": 1}]
    assert (run(orders, repair=True), orders.arguments) == (0, ["--json", "--repair"])
    assert "1 difference, 1 of them repaired." in capsys.readouterr().out


def test_json_prints_every_line(orders: FakeOrders, capsys: pytest.CaptureFixture[str]) -> None:
    orders.lines = [PROGRESS, DIFFERENCE, SUMMARY | {"differences": 1}]
    assert run(orders, as_json=True) == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == orders.lines


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ([PROGRESS], -9, "orders stopped before the end, with status 247: no such database"),
        (
            [SUMMARY | {"complete": False, "error": "inventory is unavailable"}],
            2,
            "not finished: inventory is unavailable",
        ),
        ([], 2, "orders stopped before the end, with status 2: no such database"),
    ],
)
def test_an_unfinished_reconciliation_ends_with_2(
    orders: FakeOrders, capsys: pytest.CaptureFixture[str], lines: list[dict[str, Any]], status: int, error: str
) -> None:
    orders.lines, orders.status = lines, status
    assert run(orders) == 2
    out, err = capsys.readouterr()
    assert error in err
    assert "No differences" not in out


def test_a_local_shop_that_is_not_running_is_one_line() -> None:
    """The real command of orders, with the configuration of the local stack."""
    done = CliRunner().invoke(app, ["reconcile", "--port-base", str(free_port_base())])
    assert done.exit_code == 2
    assert "market reconcile: not finished: the order store" in done.output
