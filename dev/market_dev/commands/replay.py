"""`market replay`: the invoices of a file in the Online Retail format, each placed as one order.

The invoice's number is the order's Idempotency-Key, so that running it again places nothing twice.
Prices are the shop's own at that moment, as for every customer; quantities and goods are the invoice's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from market_dev.commands import retail
from market_dev.commands.import_ import (
    Catalogue,
    FileArgument,
    PortBaseOption,
    UrlOption,
    explained,
    make_or_find,
    progress_bars,
    reach,
    read,
    two_columns,
)
from market_dev.commands.retail import Invoice, Survey
from market_dev.shop_client import Refused, Shop, key

# What the shop's refusals are called in the table.
_REASONS = {
    "out-of-stock": "out of stock",
    "idempotency-key-reused": "placed before with other goods",
    "order-cancelled": "cancelled meanwhile",
}
NO_PRODUCT = "a product that could not be made"


@dataclass(slots=True)
class Report:
    """What came of a replay. `latencies` in seconds, from the first attempt to the final answer."""

    placed: int = 0
    before: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    retries: int = 0
    # How far behind the invoices' own times the last order was, with --speed.
    late: float = 0.0

    def percentile(self, share: float) -> float:
        """Seconds within which `share` (0..1) of the orders had their answer."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(
    file: FileArgument,
    *,
    concurrency: Annotated[
        int, typer.Option(help="Orders under way at the same time.", metavar="N", min=1, max=1024)
    ] = 32,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Keep to the invoices' own times, X times as fast; default: as fast as it can.", metavar="X", min=0.001
        ),
    ] = None,
    port_base: PortBaseOption = 8080,
    url: UrlOption = None,
) -> None:
    """Place each invoice of FILE.csv as one order, through the shop's public API.

    The goods are those that `market import FILE.csv` makes; what is missing of them is made.

    Running it again places nothing twice: the invoice's number is the order's idempotency key.
    """
    console = Console(stderr=True)
    with explained(console, "replay"):
        shop = Shop.at(port_base=port_base, url=url, connections=max(64, concurrency))
        found, catalogue, report = uvloop.run(_run(file, shop, concurrency, speed, console))
    Console().print(table(found, catalogue, report))


async def _run(
    file: Path, shop: Shop, concurrency: int, speed: float | None, console: Console
) -> tuple[Survey, Catalogue, Report]:
    with progress_bars(console) as bars:
        found = read(file, bars)
        async with shop:
            await reach(shop)
            sold = [good for good in found.goods if good.sold]
            catalogue = await make_or_find(shop, sold, bars, "Finding the products")
            report = await place_all(shop, file, found, catalogue, bars, concurrency=concurrency, speed=speed)
    return found, catalogue, report


async def place_all(
    shop: Shop,
    file: Path,
    found: Survey,
    catalogue: Catalogue,
    bars: Progress,
    *,
    concurrency: int = 32,
    speed: float | None = None,
) -> Report:
    """Places all invoices of the file. Raises Unreachable when the shop is gone for longer than a minute."""
    report = Report()
    task = bars.add_task("Placing the orders", total=found.invoices)
    waiting = retail.invoices(file, found)
    first: datetime | None = None
    started = perf_counter()

    async def work() -> None:
        nonlocal first
        for invoice in waiting:
            if speed is not None:
                first = first or invoice.at
                due = started + (invoice.at - first).total_seconds() / speed
                await asyncio.sleep(max(0.0, due - perf_counter()))
                report.late = max(0.0, perf_counter() - due)
            await _place(shop, invoice, catalogue, report)
            bars.advance(task)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work())
    report.seconds = perf_counter() - started
    report.retries = shop.retries
    return report


async def _place(shop: Shop, invoice: Invoice, catalogue: Catalogue, report: Report) -> None:
    try:
        body = order(invoice, catalogue.ids)
    except KeyError:
        report.refused[NO_PRODUCT] += 1
        return
    started = perf_counter()
    try:
        made = await shop.place(body, key(invoice.number))
    except Refused as e:
        report.refused[_REASONS.get(e.kind, f"{e.status} {e.detail[:60]}")] += 1
    else:
        if made.before:
            report.before += 1
        else:
            report.placed += 1
    report.latencies.append(perf_counter() - started)


def order(invoice: Invoice, ids: dict[str, str]) -> dict[str, Any]:
    """The body that places the invoice. Raises KeyError where a product is missing."""
    return {
        "user": invoice.user,
        "email": f"{invoice.user}@example.test",
        "items": [{"product_id": ids[code], "quantity": units} for code, units in invoice.units.items()],
    }


def table(found: Survey, catalogue: Catalogue, report: Report) -> Table:
    """What the command prints at the end."""
    table = two_columns("Replay")
    table.add_row("placed", f"{report.placed:,}")
    if report.before:
        table.add_row("placed by an earlier run", f"{report.before:,}")
    table.add_row("refused", f"{report.refused.total():,}")
    for reason, count in report.refused.most_common():
        table.add_row(f"  {reason}", f"{count:,}")
    table.add_section()
    table.add_row("invoices that sell nothing", f"{len(found.last) - found.invoices:,}")
    table.add_row("lines skipped", f"{found.skipped.total():,} of {found.lines:,}")
    for reason in retail.SKIPPED:
        table.add_row(f"  {reason}", f"{found.skipped[reason]:,}")
    if catalogue.made:
        table.add_row("products that were missing, made", f"{catalogue.made:,}")
    table.add_section()
    table.add_row("seconds", f"{report.seconds:.1f}")
    table.add_row("orders/s", f"{len(report.latencies) / max(report.seconds, 1e-9):,.1f}")
    for share in (50, 95, 99):
        table.add_row(f"latency p{share}", f"{report.percentile(share / 100) * 1000:,.0f} ms")
    if report.retries:
        table.add_row("requests made again", f"{report.retries:,}")
    if report.late > 1:
        table.add_row("behind the invoices' times at the end", f"{report.late:,.1f} s")
    return table
