"""The trial of two copies: for a moment, so that it keeps working; and what its checks find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks import one_core
from benchmarks.measurements import Measurement
from benchmarks.report import Entry, Raw
from benchmarks.two_copies.__main__ import LOADS, WITH_MAILS
from benchmarks.two_copies.books import contradictions
from benchmarks.two_copies.table import AT_REST, Trial, by_row, render

ROOT = Path(__file__).parents[2]
ONE, TWO = UUID(int=1), UUID(int=2)


# Ten times what an idle machine needs.
@pytest.mark.timeout(600)
def test_two_copies_on_replicated_stores_place_every_order_once(server_directory: Path) -> None:
    out = server_directory / "two-copies"
    # Three brokers are left out: they would take longer than everything else.
    options = ["--smoke", "--kafka", "embedded", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_copies", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    trial = json.loads((out / "two-copies.json").read_text())
    [(kind, books)] = trial["books"].items()
    assert kind == "replicated"
    assert books["orders"] == books["reservations"] == 4 * 120 + 64
    assert books["events"] >= books["orders"]
    assert list(trial["rounds"]) == [*LOADS, WITH_MAILS, AT_REST]
    [with_mails] = trial["rounds"][WITH_MAILS]["two copies, three members"]
    copies = {f"{service} {n}" for service in ("inventory", "products", "orders", "notifications") for n in (1, 2)}
    members = {f"{store}{n}" for store in ("mongodb", "postgres") for n in ("", " 2", " 3")}
    assert set(with_mails["cpu_ms"]) <= {*copies, *members, "graphql 1", "graphql 2", "kafka", "redis", "mail"}
    assert with_mails["cpu_ms"]["orders 1"] > 0
    assert with_mails["cpu_ms"]["mongodb 3"] > 0
    assert "**all**" in (out / "two-copies.md").read_text()


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"placed": 3}, ["3 orders were placed, 2 are confirmed"]),
        ({"reserved": {ONE}}, ["1 orders have no reservation"]),
        ({"reserved": {ONE, TWO, UUID(int=3)}}, ["1 reservations have no order"]),
        ({"published": {TWO}}, ["1 orders have no event"]),
        ({"taken": {ONE: 6, TWO: 1}}, ["6 units were sold, 7 were taken from the stock"]),
        # As many, but not the same.
        ({"taken": {ONE: 4, TWO: 2}}, ["6 units were sold, 6 were taken from the stock"]),
    ],
)
def test_stores_that_contradict_each_other_are_found(changed: dict[str, object], found: list[str]) -> None:
    right: dict[str, object] = {
        "placed": 2,
        "orders": {ONE, TWO},
        "reserved": {ONE, TWO},
        "published": {ONE, TWO},
        "sold": {ONE: 5, TWO: 1},
        "taken": {ONE: 5, TWO: 1},
    }
    assert contradictions(**{**right, **changed}) == found  # type: ignore[arg-type]


def test_the_copies_of_a_service_are_added_up_and_the_members_of_a_store_are_not() -> None:
    cpu_ms = {"orders 1": 1, "orders 2": 2, "mongodb": 4, "mongodb 2": 8, "mongodb 3": 16, "kafka": 32, "kafka 2": 64}
    assert by_row(cpu_ms) == {"orders": 3, "mongodb": 4, "mongodb others": 24, "kafka": 96}


def test_a_table_has_the_medians_and_the_ratios_of_the_rounds() -> None:
    trial = Trial(machine="a machine", kafka="Kafka", orders_per_round=10)
    for a, b in ((1, 4), (2, 4), (4, 4)):
        trial.add(AT_REST, "two", Measurement(value=b, cpu_ms={"orders 1": b / 2, "orders 2": b / 2}))
        trial.add(AT_REST, "one", Measurement(value=a, cpu_ms={"orders 1": a}))
    assert "\n".join(
        [
            "| | one | two |",
            "|---|---|---|",
            "| orders | 2.00 | 4.00 |",
            "| **all** | 2.00 (1.00 - 4.00) | 4.00 (4.00 - 4.00) |",
            "| all, beside the first column | 1.00 (1.00 - 1.00) | 2.00 (1.00 - 4.00) |",
        ]
    ) in render(trial, ["one", "two"])


def test_the_figures_of_one_core_are_medians_of_the_rounds_without_peers() -> None:
    rounds = [Measurement(value=1, cpu_ms={"orders": ms, "kafka": 0.2, "peer orders": 9}) for ms in (0.4, 0.7, 0.5)]
    entry = Entry(
        name="order",
        title="",
        goal="",
        unit="",
        rows=[],
        measurements={"ours": rounds},
        at="2026-01-31",
        took_seconds=1,
        load_average_before=0,
        round_seconds=1,
    )
    lines = one_core.render(Raw(entries={"order": entry})).splitlines()
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| ")][1:] == [
        ["| orders", "0.50 ms", "2,000"],
        ["| inventory", "0.00 ms", ""],
        ["| products (prices)", "0.00 ms", ""],
        ["| MongoDB", "0.00 ms", ""],
        ["| PostgreSQL of inventory", "0.00 ms", ""],
        ["| Kafka", "0.20 ms", "5,000"],
        ["| **all, by REST, without mails**", "**0.7 ms**", "**1,400**"],
    ]
    assert lines[-1] == "Measured: order 2026-01-31."
