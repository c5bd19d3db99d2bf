"""`market import` and `market replay`, compared with the same requests from the load generator."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from market_dev.commands import import_, replay, retail
from market_dev.shop_client import ShopClient
from rich.progress import Progress

from benchmarks import retail_data
from benchmarks.cpu import cpu_ms_per_operation
from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare
from benchmarks.testbed import Testbed, outbox_drained
from market.storefront.importing import online_retail

GOAL = ">= 50 % of the load generator"
REPLAY_STOCK = 100_000_000


class CommandResult(NamedTuple):
    """`rate`: as the command prints it; `seconds`, `cpu_seconds`: of the whole command."""

    rate: float
    seconds: float
    cpu_seconds: float
    output: str

    def number(self, title: str) -> int | None:
        """Return the number that the command prints beside that title, or None."""
        found = re.search(rf"\b{title}\s+\D*([0-9,]+)", self.output)
        return int(found[1].replace(",", "")) if found else None


async def _run_command(testbed: Testbed, *args: str) -> CommandResult:
    started, before = time.perf_counter(), os.times()
    port_base = ["--port-base", str(testbed.port_base)]
    output = await testbed.run([sys.executable, "-m", "market_dev.commands.cli", *args, *port_base])
    seconds, after = time.perf_counter() - started, os.times()
    rate = re.search(r"(?:products/s|orders/s)\D+([0-9.,]+)", output)
    if rate is None:
        raise RuntimeError(f"market {args[0]} prints no rate: {output}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return CommandResult(float(rate[1].replace(",", "")), seconds, cpu_seconds, output)


async def prepare_import(testbed: Testbed) -> Contestants:
    testbed.pin()
    products = 200 if testbed.smoke else 2000 if testbed.quick else 20_000
    port = testbed.port("products")
    numbers = itertools.count()

    async def measure() -> Measurement:
        path = testbed.directory / "catalogue.csv"
        retail_data.write_catalogue(path, f"M{next(numbers)}X", products)
        before = testbed.cpu_seconds()
        result = await _run_command(testbed, "import", str(path), "--stock", "1000")
        cpu_ms = cpu_ms_per_operation(before, testbed.cpu_seconds(), products)
        cpu_ms["market import"] = round(1000 * result.cpu_seconds / products, 4)
        return Measurement(
            value=result.rate,
            operations=products,
            cpu_ms=cpu_ms,
            notes={"whole_command_seconds": round(result.seconds, 2), "products": products},
        )

    def generator(connections: int, count: int) -> Any:
        async def measure() -> Measurement:
            params = {"prefix": f"N{next(numbers)}X"}
            load = {"workload": "catalogue", "params": params, "connections": connections, "count": count}
            return await testbed.closed_loop(port=port, **load)

        return measure

    return {
        "ours": measure,
        "peer": generator(1, min(products, 300)),
        "limit": generator(import_.CONCURRENCY, products),
    }


async def prepare_replay(testbed: Testbed) -> Contestants:
    testbed.pin()
    testbed.stack.resume("notifications")
    times, limit = (1, 400) if testbed.smoke else (2, None) if testbed.quick else (4, None)
    numbers = itertools.count()
    path = testbed.directory / "invoices.csv"
    retail_data.write_invoices(testbed.data, path, f"P{next(numbers)}", 1, limit)
    await _run_command(testbed, "import", str(path), "--stock", str(REPLAY_STOCK))
    survey = online_retail.survey(path)
    async with ShopClient.at(port_base=testbed.port_base, url=None) as shop:
        catalogue = await import_.create_or_find(shop, survey.articles, Progress(disable=True), "", stock=REPLAY_STOCK)

    async def measure() -> Measurement:
        retail_data.write_invoices(testbed.data, path, f"P{next(numbers)}", times, limit)
        before = testbed.cpu_seconds()
        result = await _run_command(testbed, "replay", str(path))
        orders = result.number("placed")
        if orders is None or result.number("rejected") != 0:
            raise RuntimeError(f"market replay did not place all orders: {result.output}")
        cpu_ms = cpu_ms_per_operation(before, testbed.cpu_seconds(), orders)
        cpu_ms["market replay"] = round(1000 * result.cpu_seconds / orders, 4)
        await outbox_drained(testbed.urls["mongodb"])
        notes = {
            "whole_command_seconds": round(result.seconds, 2),
            "orders": orders,
            "invoices": "real" if testbed.data else "generated",
        }
        return Measurement(value=result.rate, operations=orders, cpu_ms=cpu_ms, notes=notes)

    def generator(connections: int, share: int) -> Any:
        async def measure() -> Measurement:
            retail_data.write_invoices(testbed.data, path, f"P{next(numbers)}", times, limit)
            file = testbed.directory / "bodies.jsonl"
            count = _write_bodies(path, file, catalogue.ids)
            params = {"path": "/api/order", "file": str(file)}
            load = {"workload": "bodies", "params": params, "connections": connections, "count": count // share}
            measured = await testbed.closed_loop(port=testbed.port("orders"), **load)
            await outbox_drained(testbed.urls["mongodb"])
            return measured

        return measure

    return {"ours": measure, "peer": generator(1, 8), "limit": generator(32, 1)}


def _write_bodies(invoices: Path, file: Path, ids: dict[str, str]) -> int:
    """Write the requests that `market replay` makes of the invoices, for the workload `bodies`. Return their number."""
    count = 0
    with file.open("w") as out:
        for invoice in retail.invoices(invoices, online_retail.survey(invoices)):
            out.write(json.dumps({"body": replay.order(invoice, ids), "key": invoice.number}) + "\n")
            count += 1
    return count


def judge_import(measurements: Measurements) -> list[Row]:
    products = measurements["ours"][0].notes["products"]
    remark = (
        f"{products:,} products each, for ours and the limit; the peer is the load generator with one request at a time"
    )
    title = "market import of 20,000 products"
    return [compare(measurements, title, "products/s", GOAL, min_ratio_to_limit=0.5, remark=remark)]


def judge_replay(measurements: Measurements) -> list[Row]:
    notes = measurements["ours"][0].notes
    remark = f"{notes['orders']:,} orders per round; the peer is the load generator with one request at a time"
    title = f"market replay of {notes['invoices']} invoices"
    return [compare(measurements, title, "orders/s", GOAL, min_ratio_to_limit=0.5, remark=remark)]


SCENARIOS = [
    Scenario(
        name="import",
        title="market import of 20,000 products",
        unit="products/s",
        prepare=prepare_import,
        group="tools",
        judge=judge_import,
        goal=GOAL,
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="replay",
        title="market replay of invoices",
        unit="orders/s",
        prepare=prepare_replay,
        group="tools",
        judge=judge_replay,
        goal=GOAL,
        rounds=FEWER_ROUNDS,
    ),
]
