"""This build beside that of an earlier commit, in alternating rounds: goals that are ratios of the two."""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.comparisons import calls, footprint, loads, mails
from benchmarks.comparisons.builds import OWN_COMMAND, Build, Checkout, install, running
from benchmarks.lone_calls import CALLS
from benchmarks.measurements import Row, is_significant, ratio
from benchmarks.scenario import Contestants, Measurements, Scenario, compare, compare_costs_with_before, values
from benchmarks.scenarios.latency import COMPARED_WITH_POST, MAX_RATIO_TO_POST, p50
from benchmarks.scenarios.mails import MAX_P99_MS, RATE
from benchmarks.testbed import Testbed

MIN_RATIO_OF_ORDERS, MIN_RATIO_TO_REST = 1.3, 0.85
MIN_RATIO_OF_LISTS, MIN_RATIO_OF_CHECKS = 1.5, 2.0
MAX_RATIO_OF_POST = 0.6
MAX_RATIO_OF_MAIL_CPU, MAX_RATIO_OF_LONE_MAIL = 0.6, 1.0
MAX_RATIO_OF_COLD_START, MAX_RATIO_OF_MEMORY = 0.8, 0.85
NO_GOAL = "none"
_SMOKE_PRODUCTS, _SMOKE_ORDERS = 200, mails.Orders(lone=2, seconds=0.3)


async def _checkout(testbed: Testbed) -> Checkout:
    """Return the earlier build; in a smoke run this one, which needs no installation."""
    checkout = Checkout("this one", OWN_COMMAND) if testbed.smoke else await asyncio.to_thread(install, testbed.ref)
    testbed.before = checkout.commit
    return checkout


async def _builds(testbed: Testbed) -> list[Build]:
    """Return both builds; they run until the scenarios of this group are done."""
    if not testbed.builds:
        commands = {"ours": OWN_COMMAND, "before": (await _checkout(testbed)).command}
        shops = running(
            commands,
            testbed.directory,
            testbed.port_base,
            kafka=testbed.kafka,
            seconds=testbed.seconds,
            warmup=testbed.warmup,
            products=_SMOKE_PRODUCTS if testbed.smoke else 1000,
        )
        testbed.builds = await testbed.resources.enter_async_context(shops)
    return testbed.builds


async def prepare_lists(testbed: Testbed) -> Contestants:
    return loads.prepare("product-list", await _builds(testbed))


async def prepare_pages(testbed: Testbed) -> Contestants:
    return loads.prepare("product-pages", await _builds(testbed))


async def prepare_checks(testbed: Testbed) -> Contestants:
    return loads.prepare("check-100", await _builds(testbed))


async def prepare_orders(testbed: Testbed) -> Contestants:
    """Return four contestants: "ours" and "before" by REST, "ours graphql" and "before graphql"."""
    builds = await _builds(testbed)
    by_graphql = loads.prepare("graphql-order", builds)
    named = {f"{name} graphql": measure for name, measure in by_graphql.items()}
    return {**loads.prepare("order", builds), **named}


async def prepare_calls(testbed: Testbed) -> Contestants:
    return calls.prepare(await _builds(testbed))


async def prepare_mails(testbed: Testbed) -> Contestants:
    return await mails.prepare(await _builds(testbed), _SMOKE_ORDERS if testbed.smoke else mails.DEFAULT)


async def prepare_cold_starts(testbed: Testbed) -> Contestants:
    """Return "ours embedded", "before embedded", and the same with Apache Kafka if it can run here."""
    commands = {"ours": OWN_COMMAND, "before": (await _checkout(testbed)).command}
    rest_seconds = 0.2 if testbed.smoke else footprint.REST_SECONDS
    contestants = {}
    for kafka in footprint.kafkas(testbed.kafka):
        starts = footprint.prepare(commands, testbed.directory, testbed.port_base, kafka, rest_seconds)
        contestants.update({f"{name} {kafka}": measure for name, measure in starts.items()})
    return contestants


def judge_lists(measurements: Measurements) -> list[Row]:
    title = "GET a list of 20 products with availability"
    return [_rates(measurements, title, "requests/s", MIN_RATIO_OF_LISTS)]


def judge_pages(measurements: Measurements) -> list[Row]:
    title = "GET 50 different lists of 20 products with availability in turn"
    return [_rates(measurements, title, "requests/s", MIN_RATIO_OF_LISTS)]


def judge_checks(measurements: Measurements) -> list[Row]:
    return [_rates(measurements, "CheckAvaliable of 100 products, 64 callers", "calls/s", MIN_RATIO_OF_CHECKS)]


def _rates(measurements: Measurements, title: str, unit: str, min_ratio: float) -> Row:
    goal = f">= {min_ratio:g}x before"
    return compare(
        measurements, title, unit, goal, peer=None, limit=None, before="before", min_ratio_to_before=min_ratio
    )


def judge_orders(measurements: Measurements) -> list[Row]:
    by_rest = _rates(measurements, "POST order by REST, 3 lines, 64 buyers", "orders/s", MIN_RATIO_OF_ORDERS)
    by_graphql = compare(
        measurements,
        "the same by GraphQL",
        "orders/s",
        f">= {MIN_RATIO_TO_REST:.0%} of REST in the same rounds",
        ours="ours graphql",
        peer=None,
        limit="ours",
        before="before graphql",
        min_ratio_to_limit=MIN_RATIO_TO_REST,
    )
    return [by_rest, by_graphql]


def judge_calls(measurements: Measurements) -> list[Row]:
    return [_judge_call(measurements, api, call) for api in ("REST", "GraphQL") for call in CALLS]


def _judge_call(measurements: Measurements, api: str, call: str) -> Row:
    ours, before = (p50(measurements[build], f"{api} {call}") for build in ("ours", "before"))
    row = compare_costs_with_before(f"lone {call} by {api}", "ms (p50)", NO_GOAL, ours=ours, before=before, met=None)
    if call == "POST":
        row.goal, row.met = f"<= {MAX_RATIO_OF_POST:g}x before", ratio(ours, before).median <= MAX_RATIO_OF_POST
    elif call in COMPARED_WITH_POST:
        to_post = ratio(ours, p50(measurements["ours"], f"{api} POST"))
        row.goal, row.met = f"<= {MAX_RATIO_TO_POST:g}x the POST", to_post.median <= MAX_RATIO_TO_POST
        row.remark = f"{to_post.median:.2f}x the POST of the same build ({to_post.low:.2f} - {to_post.high:.2f})"
    return row


def judge_mails(measurements: Measurements) -> list[Row]:
    ours, before, again = (measurements[name] for name in ("ours", "before", mails.AGAIN))
    # Without mails there is no latency, which must not look like a short one.
    complete = all(map(is_significant, [*ours, *before, *again]))
    lone = [mails.lone_p50(m) for m in ours]
    noise = ratio(values(again), lone)
    rows = [
        compare_costs_with_before(
            f"order to mail at {RATE:g} orders/s: CPU per order",
            "ms of CPU",
            f"<= {MAX_RATIO_OF_MAIL_CPU:g}x before",
            ours=[mails.cpu_per_order(m) for m in ours],
            before=[mails.cpu_per_order(m) for m in before],
            max_ratio=MAX_RATIO_OF_MAIL_CPU,
            met=complete,
        ),
        compare_costs_with_before(
            f"order to mail at {RATE:g} orders/s: p99",
            "ms (p99)",
            f"p99 <= {MAX_P99_MS} ms",
            ours=values(ours),
            before=values(before),
            met=complete and statistics.median(values(ours)) <= MAX_P99_MS,
        ),
        compare_costs_with_before(
            "a lone order to its mail",
            "ms (p50)",
            f"<= {MAX_RATIO_OF_LONE_MAIL:g}x before",
            ours=lone,
            before=[mails.lone_p50(m) for m in before],
            max_ratio=MAX_RATIO_OF_LONE_MAIL,
            met=complete,
            remark=f"the noise: the same build measured twice in each round has a ratio of {noise.median:.2f} "
            f"({noise.low:.2f} - {noise.high:.2f})",
        ),
    ]
    if not complete:
        for row in rows:
            row.remark = "; ".join(filter(None, (row.remark, "not judged: too few mails in some rounds")))
    return rows


def judge_cold_starts(measurements: Measurements) -> list[Row]:
    rows = []
    for kafka in ("embedded", "apache"):
        if f"ours {kafka}" not in measurements:
            continue
        ours, before = (measurements[f"{build} {kafka}"] for build in ("ours", "before"))
        broker = "Apache Kafka" if kafka == "apache" else "the embedded broker"
        rows += [
            compare_costs_with_before(
                f"cold start to the first order, {broker}",
                "s",
                f"<= {MAX_RATIO_OF_COLD_START:g}x before",
                ours=values(ours),
                before=values(before),
                max_ratio=MAX_RATIO_OF_COLD_START,
            ),
            compare_costs_with_before(
                f"memory of everything at rest, {broker}",
                "MiB",
                f"<= {MAX_RATIO_OF_MEMORY:g}x before",
                ours=[footprint.memory_at_rest(m) for m in ours],
                before=[footprint.memory_at_rest(m) for m in before],
                max_ratio=MAX_RATIO_OF_MEMORY,
            ),
        ]
    return rows


SCENARIOS = [
    Scenario(
        name="before-product-list",
        title="beside the commit before: GET a list of 20 products",
        goal=f">= {MIN_RATIO_OF_LISTS:g}x before",
        prepare=prepare_lists,
        judge=judge_lists,
        group="before",
        needs_stack=False,
    ),
    Scenario(
        name="before-product-pages",
        title="beside the commit before: GET 50 different lists of 20 products",
        goal=f">= {MIN_RATIO_OF_LISTS:g}x before",
        prepare=prepare_pages,
        judge=judge_pages,
        group="before",
        needs_stack=False,
    ),
    Scenario(
        name="before-check-100",
        title="beside the commit before: CheckAvaliable of 100 products",
        goal=f">= {MIN_RATIO_OF_CHECKS:g}x before",
        prepare=prepare_checks,
        judge=judge_checks,
        group="before",
        needs_stack=False,
        unit="calls/s",
    ),
    Scenario(
        name="before-order",
        title="beside the commit before: POST order by REST and by GraphQL",
        goal=f">= {MIN_RATIO_OF_ORDERS:g}x before; GraphQL >= {MIN_RATIO_TO_REST:.0%} of REST",
        prepare=prepare_orders,
        judge=judge_orders,
        group="before",
        needs_stack=False,
        unit="orders/s",
    ),
    Scenario(
        name="before-latency",
        title="beside the commit before: each call alone",
        goal=f"POST <= {MAX_RATIO_OF_POST:g}x before; a repeated POST and a DELETE <= {MAX_RATIO_TO_POST:g}x the POST",
        prepare=prepare_calls,
        judge=judge_calls,
        group="before",
        needs_stack=False,
        unit="ms (POST by REST)",
    ),
    Scenario(
        name="before-mail",
        title=f"beside the commit before: order to mail at {RATE:g} orders/s, and of a lone order",
        goal=f"CPU <= {MAX_RATIO_OF_MAIL_CPU:g}x before, p99 <= {MAX_P99_MS} ms; a lone order's mail no later",
        prepare=prepare_mails,
        judge=judge_mails,
        group="before",
        needs_stack=False,
        unit="ms",
    ),
    Scenario(
        name="before-cold-start",
        title="beside the commit before: cold start, and memory at rest",
        goal=f"cold start <= {MAX_RATIO_OF_COLD_START:g}x, memory <= {MAX_RATIO_OF_MEMORY:g}x before",
        prepare=prepare_cold_starts,
        judge=judge_cold_starts,
        # Apart from the others, whose shops would compete for memory and processors.
        group="before-start",
        needs_stack=False,
        unit="s",
    ),
]
