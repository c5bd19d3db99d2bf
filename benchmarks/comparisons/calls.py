"""Each call alone, in two builds in turn."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.comparisons.builds import Build, pin
from benchmarks.comparisons.tables import render_ratio
from benchmarks.measurements import Measurement
from benchmarks.scenario import Contestants, Measurements
from benchmarks.scenarios import latency


def prepare(builds: Sequence[Build]) -> Contestants:
    """Return a contestant for each build. Notifications is paused: the orders have no mails."""

    def contestant(build: Build) -> Callable[[], Awaitable[Measurement]]:
        ports = {service: build.port(service) for service in ("products", "orders", "graphql")}
        return lambda: latency.measure_calls(build, ports, build.product_ids)

    for build in builds:
        build.pause("notifications")
    pin(builds)
    return {build.name: contestant(build) for build in builds}


def render(measurements: Measurements) -> str:
    """Return the comparison as Markdown."""
    ours, before = measurements["ours"], measurements["before"]
    lines = [
        f"Each call alone, {len(ours)} rounds: the median of the rounds' p50. A ratio below 1 is better.",
        "",
        "| call | ours | before | ratio |",
        "|---|---|---|---|",
    ]
    for call in ours[0].notes["calls"]:
        a, b = latency.p50(ours, call), latency.p50(before, call)
        lines.append(
            f"| {call} | {statistics.median(a):.1f} ms | {statistics.median(b):.1f} ms | {render_ratio(a, b)} |"
        )
    return "\n".join(lines)
