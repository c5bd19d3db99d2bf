"""The goals: a row that just meets each of them, and one that just misses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from benchmarks import lone_calls
from benchmarks.measurements import Latency, Measurement, Row
from benchmarks.scenario import Measurements
from benchmarks.scenarios import before, catalogue_size, footprint, latency, mails, order_count, orders, products

ROUNDS = 3


def rates(value: float) -> list[Measurement]:
    return [Measurement(value=value, operations=1000)] * ROUNDS


def calls(default: float, **p50: float) -> list[Measurement]:
    """Lone calls that take `default` ms by REST and GraphQL, except these: their names with underscores."""
    found = {
        f"{prefix}{call}": {"p50": p50.get(call.replace(" ", "_"), default)}
        for prefix in ("REST ", "GraphQL ", "")
        for call in lone_calls.CALLS
    }
    return [Measurement(value=default, notes={"calls": found})] * ROUNDS


def mail(cpu_ms: float, p99: float, lone: float, operations: int = 2400) -> list[Measurement]:
    notes = {"lone": {"p50": lone}}
    return [Measurement(value=p99, operations=operations, cpu_ms={"orders": cpu_ms}, notes=notes)] * ROUNDS


def start(seconds: float, mib: float) -> list[Measurement]:
    return [Measurement(value=seconds, notes={"MiB": mib})] * ROUNDS


def cpu(**cpu_ms: float) -> list[Measurement]:
    return [Measurement(value=1000, operations=1000, cpu_ms=cpu_ms)] * ROUNDS


def reads(p50: float, p99: float) -> list[Measurement]:
    return [Measurement(value=p50, latency=Latency(p50=p50, p99=p99))] * ROUNDS


def memory(first_mib: float, last_mib: float, max_mib: float) -> list[Measurement]:
    notes = {"idle_MiB": 500, "minutes": 30, "orders": 90_000}
    return [Measurement(value=max_mib, notes={**notes, "first_third_MiB": first_mib, "last_third_MiB": last_mib})]


def two(ours: list[Measurement], earlier: list[Measurement]) -> Measurements:
    return {"ours": ours, "before": earlier}


def orders_beside_before(rest: float, graphql: float) -> Measurements:
    return {
        **two(rates(rest), rates(1000)),
        "ours graphql": rates(graphql),
        "before graphql": rates(500),
    }


def mails_beside_before(ours: list[Measurement]) -> Measurements:
    return {**two(ours, mail(10, 400, 20)), "ours again": rates(20)}


def starts_beside_before(kafka: str, ours: list[Measurement]) -> Measurements:
    return {f"ours {kafka}": ours, f"before {kafka}": start(10, 1000)}


def order_measurements(ours: float, batched: float, graphql: float) -> Measurements:
    return {
        "ours": rates(ours),
        "peer": rates(10),
        "litestar": rates(10),
        "limit": rates(100),
        "batched": rates(batched),
        "graphql": rates(graphql),
    }


def order_count_measurements(post: float, get: float) -> Measurements:
    def measured(p50: float) -> list[Measurement]:
        return [Measurement(value=p50, notes={"orders": 10_000_000})] * ROUNDS

    lists = {f"{order_count.LIST}, {size}": measured(10) for size in ("all", "few")}
    return {
        "POST order, all": measured(post),
        "POST order, few": measured(10),
        "GET order, all": measured(get),
        "GET order, few": measured(10),
        **lists,
        f"{order_count.HEAVY_LIST}, all": measured(1000),
    }


def reconciliation_measurements(mib: float) -> Measurements:
    return {
        name: [Measurement(value=value, notes={"orders": 10_000_000})]
        for name, value in {"all": mib, "few": 100}.items()
    }


def page_measurements(ours_ms: float) -> Measurements:
    own = cpu(products=ours_ms - 0.2, postgres=0.1, redis=0.05, inventory=0.05, kafka=99)
    select = cpu(postgres=0.2, pgbench=0.1)
    return {
        "ours": own,
        "peer": rates(100),
        "litestar": rates(100),
        "limit": cpu(static=0.2),
        "pgbench": select,
        "different pages": own,
        "pgbench, different pages": select,
    }


def catalogue_measurements(p50: float, p99: float) -> Measurements:
    return {
        f"{read}, {size.name}": reads(p50 if size.name == "million" else 10, p99)
        for read in catalogue_size.READS
        for size in catalogue_size.SIZES
    }


class Goal(NamedTuple):
    """row: the beginning of its title. met, missed: measurements that just meet the row's goal, and just miss it."""

    judge: Callable[[Measurements], list[Row]]
    row: str
    met: Measurements
    missed: Measurements


GOALS = [
    Goal(before.judge_lists, "GET a list", two(rates(1500), rates(1000)), two(rates(1499), rates(1000))),
    Goal(before.judge_pages, "GET 50 different", two(rates(1500), rates(1000)), two(rates(1499), rates(1000))),
    Goal(before.judge_checks, "CheckAvaliable", two(rates(2000), rates(1000)), two(rates(1999), rates(1000))),
    Goal(before.judge_orders, "POST order", orders_beside_before(1300, 1), orders_beside_before(1299, 1)),
    Goal(before.judge_orders, "the same by GraphQL", orders_beside_before(1000, 850), orders_beside_before(1000, 849)),
    *(
        Goal(
            before.judge_calls,
            f"lone POST by {api}",
            two(calls(9, POST=6), calls(10)),
            two(calls(9, POST=6.1), calls(10)),
        )
        for api in ("REST", "GraphQL")
    ),
    *(
        Goal(
            before.judge_calls,
            f"lone {call} by {api}",
            two(calls(10, **{call.replace(" ", "_"): 12}), calls(1)),
            two(calls(10, **{call.replace(" ", "_"): 12.1}), calls(1)),
        )
        for call in ("repeated POST", "DELETE", "second DELETE")
        for api in ("REST", "GraphQL")
    ),
    Goal(
        before.judge_mails,
        "order to mail at 300 orders/s: CPU",
        mails_beside_before(mail(6, 999, 99)),
        mails_beside_before(mail(6.1, 1, 1)),
    ),
    Goal(
        before.judge_mails,
        "order to mail at 300 orders/s: p99",
        mails_beside_before(mail(99, 150, 99)),
        mails_beside_before(mail(1, 151, 1)),
    ),
    Goal(
        before.judge_mails, "a lone order", mails_beside_before(mail(9, 999, 20)), mails_beside_before(mail(1, 1, 20.1))
    ),
    *(
        goal
        for kafka, broker in (("embedded", "the embedded broker"), ("apache", "Apache Kafka"))
        for goal in (
            Goal(
                before.judge_cold_starts,
                f"cold start to the first order, {broker}",
                starts_beside_before(kafka, start(8, 9999)),
                starts_beside_before(kafka, start(8.1, 1)),
            ),
            Goal(
                before.judge_cold_starts,
                f"memory of everything at rest, {broker}",
                starts_beside_before(kafka, start(99, 850)),
                starts_beside_before(kafka, start(1, 851)),
            ),
        )
    ),
    Goal(
        orders.judge_orders,
        "the same by REST, compared with a bare program that batches",
        order_measurements(700, 1000, 1),
        order_measurements(699, 1000, 1),
    ),
    Goal(
        orders.judge_orders, "the same by GraphQL", order_measurements(1000, 1, 850), order_measurements(1000, 1, 849)
    ),
    Goal(
        orders.judge_orders,
        "the same by REST, compared with Litestar",
        order_measurements(30, 1, 1),
        order_measurements(29, 1, 1),
    ),
    *(
        Goal(
            latency.judge,
            f"lone GET by {api}",
            {"ours": calls(10, GET=5), "limit": calls(10, GET=2)},
            {"ours": calls(10, GET=5.1), "limit": calls(10, GET=2)},
        )
        for api in ("REST", "GraphQL")
    ),
    Goal(products.judge_list, "CPU of a list of 20", page_measurements(1.0), page_measurements(1.01)),
    Goal(products.judge_list, "the same, 50 different", page_measurements(1.0), page_measurements(1.01)),
    Goal(catalogue_size.judge, "first page", catalogue_measurements(15, 99), catalogue_measurements(15.1, 1)),
    Goal(catalogue_size.judge, "search that finds all", catalogue_measurements(15, 50), catalogue_measurements(15, 51)),
    Goal(order_count.judge, "POST order", order_count_measurements(12, 99), order_count_measurements(12.1, 1)),
    Goal(order_count.judge, "GET order", order_count_measurements(99, 12), order_count_measurements(1, 12.1)),
    Goal(
        order_count.judge_reconciliation,
        "memory of a reconciliation",
        reconciliation_measurements(110),
        reconciliation_measurements(111),
    ),
    Goal(mails.judge, "order to mail", {"ours": rates(150)}, {"ours": rates(151)}),
    Goal(footprint.judge_memory, "memory", {"ours": memory(800, 839, 900)}, {"ours": memory(800, 840, 900)}),
    Goal(footprint.judge_memory, "memory", {"ours": memory(800, 800, 953)}, {"ours": memory(800, 800, 954)}),
]


def row_of(goal: Goal, measurements: Measurements) -> Row:
    (row,) = (row for row in goal.judge(measurements) if row.scenario.startswith(goal.row))
    return row


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.judge.__module__.split('.')[-1]}: {goal.row}")
def test_a_row_that_just_meets_its_goal_is_met_and_one_that_just_misses_it_is_not(goal: Goal) -> None:
    assert row_of(goal, goal.met).met is True
    assert row_of(goal, goal.missed).met is False


def test_each_row_beside_the_build_before_has_its_value_and_the_ratio_with_the_range_of_the_rounds() -> None:
    ours = [Measurement(value=value, operations=1000) for value in (1000, 3000, 2000)]

    (row,) = before.judge_lists(two(ours, rates(1000)))

    assert (row.ours, row.before, row.ratio_to_before, row.spread_to_before) == (2000, 1000, 2, [1, 3])
    assert (row.peer, row.limit) == (None, None)


def test_calls_without_a_goal_are_not_judged() -> None:
    rows = before.judge_calls(two(calls(10), calls(1)))

    without = {row.scenario.removeprefix("lone ").rpartition(" by ")[0] for row in rows if row.met is None}
    assert without == {"GET", "list", "PUT product", "PUT product with stock"}
    assert all(row.goal == "none" for row in rows if row.met is None)


def test_rounds_without_mails_meet_no_goal() -> None:
    rows = before.judge_mails(mails_beside_before(mail(0, 0, 0, operations=0)))

    assert [row.met for row in rows] == [False, False, False]
    assert all("not judged: too few mails in some rounds" in row.remark for row in rows)


def test_the_noise_of_a_lone_mail_is_the_ratio_of_the_same_build_measured_twice() -> None:
    measurements = {**mails_beside_before(mail(1, 1, 20)), "ours again": rates(25)}

    assert "a ratio of 1.25 (1.25 - 1.25)" in before.judge_mails(measurements)[-1].remark


def test_a_broker_that_was_not_started_has_no_rows() -> None:
    rows = before.judge_cold_starts(starts_beside_before("embedded", start(1, 1)))

    assert [row.scenario.rpartition(", ")[2] for row in rows] == ["the embedded broker"] * 2
