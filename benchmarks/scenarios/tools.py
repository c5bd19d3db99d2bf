"""`market import` and `market replay`, beside the same requests from the bare generator."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any, NamedTuple

from market_dev.commands import import_ as importer
from market_dev.commands import replay, retail

from benchmarks import retail_like
from benchmarks.figures import Figure, Row
from benchmarks.lab import Lab, settle
from benchmarks.scenario import Contestants, Figures, Scenario, compared

GOAL = ">= 50 % of the bare generator"
_RATE = re.compile(r"(?:products/s|orders/s)\D+([0-9.,]+)")


class Command(NamedTuple):
    """The rate that the command prints, the seconds of all of it, its CPU seconds, and what it printed."""

    rate: float
    seconds: float
    cpu: float
    out: str


async def _market(lab: Lab, *args: str) -> Command:
    started = time.perf_counter()
    times = os.times()
    out = await lab.run([sys.executable, "-m", "market_dev.commands.cli", *args, "--port-base", str(lab.base)])
    found = _RATE.search(out)
    if found is None:
        raise RuntimeError(f"the command says {out}")
    now = os.times()
    cpu = now.children_user + now.children_system - times.children_user - times.children_system
    return Command(float(found[1].replace(",", "")), time.perf_counter() - started, cpu, out)


async def imports(lab: Lab) -> Contestants:
    lab.pin()
    products = 200 if lab.smoke else 2000 if lab.quick else 20_000
    port = lab.port("products")
    numbers = iter(range(10**6))

    async def ours() -> Figure:
        path = lab.directory / "catalogue.csv"
        prefix = f"M{next(numbers)}X"
        retail_like.catalogue(path, prefix, products)
        before = lab.cpu()
        done = await _market(lab, "import", str(path), "--stock", "1000")
        cpu = {n: round(1000 * (t - before[n]) / products, 4) for n, t in lab.cpu().items()}
        cpu["market import"] = round(1000 * done.cpu / products, 4)
        return Figure(
            value=done.rate,
            done=products,
            cpu=cpu,
            notes={"whole_command_seconds": round(done.seconds, 2), "products": products},
        )

    def bare(connections: int, count: int) -> Any:
        async def one() -> Figure:
            spec = {
                "workload": "catalogue",
                "params": {"prefix": f"N{next(numbers)}X"},
                "connections": connections,
                "count": count,
            }
            return await lab.closed(port=port, **spec)

        return one

    return {"ours": ours, "peer": bare(1, min(products, 300)), "limit": bare(importer.CONCURRENCY, products)}


async def replays(lab: Lab) -> Contestants:
    lab.pin()
    lab.stack.resume("notifications")
    times, limit = (1, 400) if lab.smoke else (2, None) if lab.quick else (4, None)
    numbers = iter(range(10**6))
    path = lab.directory / "invoices.csv"
    retail_like.invoices(lab.data, path, f"P{next(numbers)}", 1, limit)
    await _market(lab, "import", str(path), "--stock", "100000000")
    port = lab.port("orders")
    found = retail.survey(path)
    shop = importer.ShopClient.at(port_base=lab.base, url=None)
    from rich.progress import Progress

    async with shop:
        known = await importer.create_or_find(shop, found.articles, Progress(disable=True), "", stock=100_000_000)

    async def ours() -> Figure:
        retail_like.invoices(lab.data, path, f"P{next(numbers)}", times, limit)
        before = lab.cpu()
        done = await _market(lab, "replay", str(path))
        refused = re.search(r"refused\s+\D*([0-9,]+)", done.out)
        if refused and refused[1] != "0":
            raise RuntimeError(f"orders were refused: {done.out}")
        placed = re.search(r"placed\s+\D*([0-9,]+)", done.out)
        count = int(placed[1].replace(",", "")) if placed else 1
        cpu = {n: round(1000 * (t - before[n]) / count, 4) for n, t in lab.cpu().items()}
        cpu["market replay"] = round(1000 * done.cpu / count, 4)
        await settle(lab)
        notes = {
            "whole_command_seconds": round(done.seconds, 2),
            "orders": count,
            "invoices": "real" if lab.data else "made up",
        }
        return Figure(value=done.rate, done=count, cpu=cpu, notes=notes)

    def bare(connections: int, share: int) -> Any:
        async def one() -> Figure:
            retail_like.invoices(lab.data, path, f"P{next(numbers)}", times, limit)
            survey = retail.survey(path)
            bodies = lab.directory / "bodies.jsonl"
            count = 0
            with bodies.open("w") as file:
                for invoice in retail.invoices(path, survey):
                    file.write(json.dumps({"body": replay.order(invoice, known.ids), "key": invoice.number}) + "\n")
                    count += 1
            spec = {
                "workload": "bodies",
                "params": {"path": "/api/order", "file": str(bodies)},
                "connections": connections,
            }
            figure = await lab.closed(port=port, **spec, count=count // share)
            await settle(lab)
            return figure

        return one

    return {"ours": ours, "peer": bare(1, 8), "limit": bare(32, 1)}


def judge_import(figures: Figures) -> list[Row]:
    made = figures["ours"][0].notes["products"]
    remark = f"{made:,} products each, for ours and the limit; the peer is one request at a time"
    return [
        compared(figures, "market import of 20,000 products", "products/s", GOAL, least_to_limit=0.5, remark=remark)
    ]


def judge_replay(figures: Figures) -> list[Row]:
    notes = figures["ours"][0].notes
    remark = f"{notes['orders']:,} orders a round; the peer is one request at a time"
    title = f"market replay of {'the real' if notes['invoices'] == 'real' else 'made-up'} invoices"
    return [compared(figures, title, "orders/s", GOAL, least_to_limit=0.5, remark=remark)]


SCENARIOS = [
    Scenario(
        name="import",
        title="market import of 20,000 products",
        unit="products/s",
        prepare=imports,
        group="tools",
        judge=judge_import,
        goal=GOAL,
    ),
    Scenario(
        name="replay",
        title="market replay of invoices",
        unit="orders/s",
        prepare=replays,
        group="tools",
        judge=judge_replay,
        goal=GOAL,
    ),
]
