"""Searches among a million products that find one, about 1,000, or more than are counted."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote

from benchmarks.catalogue import fill_searchable_up_to, read_retail_words
from benchmarks.measurements import Measurement, Row, Spread, ratio
from benchmarks.scenario import Contestants, Measurements, Scenario, rounded, values
from benchmarks.scenarios.pages import COUNT, SMOKE_COUNT
from benchmarks.testbed import Testbed

MAX_P99_MS = 50
# Without availability, as in the scenario of pages.
_PAGE = "/api/product?limit=20&availability=false"
# How many different searches of a kind are sent, and how many of them in one round. With fewer, the p99 would be the
# longest one.
_SEARCHES = 40
_SEARCHES_PER_ROUND = 320
KINDS = ("one product", "about 1,000 products", "many products")


def searches(kind: str, count: int) -> list[str]:
    """Return searches of this kind for a catalogue of `count` products."""
    rng = random.Random(7)
    if kind == "one product":
        return [f"KL-{n}" for n in rng.sample(range(100, count), _SEARCHES)]
    words, totals = read_retail_words()
    weights = [total - before for total, before in zip(totals, [0, *totals], strict=False)]
    if kind == "about 1,000 products":
        # Ten words per product, so a word that is one of 8,500 occurs in one product of 850.
        return rng.sample([w for w, n in zip(words, weights, strict=True) if n == 1 and w.isalpha()], _SEARCHES)
    return [w for w, _ in zip(words, weights, strict=True) if w.isalpha()][:_SEARCHES]


async def prepare(testbed: Testbed) -> Contestants:
    count = SMOKE_COUNT if testbed.smoke else COUNT
    await fill_searchable_up_to(testbed.urls["postgres_products"], count)
    port = testbed.port("products")
    paths = {kind: [f"{_PAGE}&q={quote(text)}" for text in searches(kind, count)] for kind in KINDS}
    for kind in KINDS:
        page = await testbed.get(f"http://127.0.0.1:{port}{paths[kind][0]}")
        if page["suggested"] or not page["items"] or (kind == KINDS[-1] and page["total_exact"] and not testbed.smoke):
            raise RuntimeError(f"the search for {kind} finds something else: {page}")
    testbed.pin("products")

    def contestant(workload: str, *, count: int | None = None, **params: Any) -> Any:
        load = {"workload": workload, "params": params, "connections": 1, "count": count}

        async def measure() -> Measurement:
            measured = await testbed.closed_loop(port=port, **load)
            assert measured.latency is not None
            measured.value = measured.latency.p99
            return measured

        return measure

    first_page = contestant("get", path=_PAGE)
    per_round = None if testbed.smoke else _SEARCHES_PER_ROUND
    kinds = {kind: contestant("get_any", count=per_round, paths=paths[kind]) for kind in KINDS}
    return {**kinds, "first page": first_page}


def judge(measurements: Measurements) -> list[Row]:
    rows = []
    limit = measurements["first page"]
    for kind in KINDS:
        ours = measurements[kind]
        spread = ratio(values(ours), values(limit))
        p50 = Spread.of([m.latency.p50 for m in ours if m.latency]).median
        p99 = Spread.of(values(ours)).median
        rows.append(
            Row(
                scenario=f"search among a million products that finds {kind}",
                unit="ms (p99)",
                ours=rounded(p99),
                peer=None,
                limit=rounded(Spread.of(values(limit)).median),
                ratio_to_peer=None,
                ratio_to_limit=rounded(spread.median),
                spread_to_limit=[rounded(spread.low), rounded(spread.high)],
                goal=f"p99 <= {MAX_P99_MS} ms",
                met=p99 <= MAX_P99_MS,
                remark=f"one caller, p50 {p50:.1f} ms; the limit is the first page of the list",
            )
        )
    return rows


SCENARIOS = [
    Scenario(
        name="search",
        title="Searches among a million products",
        unit="ms (p99)",
        goal=f"p99 <= {MAX_P99_MS} ms",
        prepare=prepare,
        judge=judge,
        group="million",
    )
]
