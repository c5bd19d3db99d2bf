"""Two builds under load, in turn: the scenarios, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparisons.builds import Build, pin
from benchmarks.comparisons.tables import render_ratio
from benchmarks.measurements import Measurement
from benchmarks.scenario import Contestants, Measurements, values
from benchmarks.scenarios.gateway import LIST
from benchmarks.testbed import outbox_drained


@dataclass(frozen=True)
class Comparison:
    """A scenario for two builds.

    load: arguments of `Build.closed_loop` beside the port
    alone: the services that get a core for themselves; none: nothing is pinned
    writes_orders: each round ends when all events are published
    """

    unit: str
    service: str
    load: Callable[[Build], dict[str, Any]]
    alone: tuple[str, ...] = ()
    writes_orders: bool = False


def _get_product(build: Build) -> dict[str, Any]:
    return {"workload": "products", "params": {"ids": build.product_ids}}


def _get_products(_: Build) -> dict[str, Any]:
    return {"workload": "get", "params": {"path": "/api/product?limit=20"}}


def _get_different_pages(build: Build) -> dict[str, Any]:
    return {"workload": "get_any", "params": {"paths": build.pages}}


def _query_products(_: Build) -> dict[str, Any]:
    return {"workload": "graphql", "params": {"query": LIST}}


def _post_order(build: Build) -> dict[str, Any]:
    return {"workload": "orders", "params": {"ids": build.product_ids}}


def _create_order(build: Build) -> dict[str, Any]:
    return {"workload": "graphql_orders", "params": {"ids": build.product_ids}}


def _check_products(build: Build) -> dict[str, Any]:
    load = {"kind": "grpc", "workload": "check", "connections": 8, "streams": 8}
    return {**load, "params": {"ids": build.product_ids}}


COMPARISONS = {
    "product-one": Comparison("requests/s", "products", _get_product, alone=("products",)),
    "product-list": Comparison("requests/s", "products", _get_products, alone=("products",)),
    "product-pages": Comparison("requests/s", "products", _get_different_pages, alone=("products",)),
    "check-100": Comparison("calls/s", "inventory", _check_products, alone=("inventory",)),
    "graphql-list": Comparison("queries/s", "graphql", _query_products),
    "order": Comparison("orders/s", "orders", _post_order, writes_orders=True),
    "graphql-order": Comparison("orders/s", "graphql", _create_order, writes_orders=True),
}


def prepare(name: str, builds: Sequence[Build]) -> Contestants:
    """Return a contestant for each build. Notifications is paused: the orders have no mails.

    Without the consumer, one build's events cost nothing during the other's round.
    """
    comparison = COMPARISONS[name]
    for build in builds:
        build.pause("notifications")
    pin(builds, *comparison.alone)

    def contestant(build: Build) -> Callable[[], Awaitable[Measurement]]:
        async def measure() -> Measurement:
            measured = await build.closed_loop(port=build.port(comparison.service), **comparison.load(build))
            if comparison.writes_orders:
                await outbox_drained(build.shop.urls["mongodb"])
            return measured

        return measure

    return {build.name: contestant(build) for build in builds}


def render(loads: Mapping[str, Measurements]) -> str:
    """Return the comparison as Markdown. `loads`: the measurements by scenario."""
    lines = [
        "A ratio is taken within each round: ours / before, median (min - max). Rates above 1 and CPU and p99 below 1 "
        "are better.",
        "",
        "| scenario | rounds | ours | before | rate: ratio | CPU per operation: ratio | p99: ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measurements in loads.items():
        ours, before = measurements["ours"], measurements["before"]
        rates = [f"{statistics.median(values(rounds)):,.0f} {COMPARISONS[name].unit}" for rounds in (ours, before)]
        ratios = [
            render_ratio(values(ours), values(before)),
            render_ratio([sum(m.cpu_ms.values()) for m in ours], [sum(m.cpu_ms.values()) for m in before]),
            render_ratio(
                [m.latency.p99 if m.latency else 0 for m in ours], [m.latency.p99 if m.latency else 0 for m in before]
            ),
        ]
        lines.append(f"| {name} | {len(ours)} | {' | '.join(rates)} | {' | '.join(ratios)} |")
    return "\n".join(lines)
