"""`market replay`: place each invoice of a file in the Online Retail format as one order.

The invoice number is the order's Idempotency-Key, so that running it again places nothing twice. Products and
quantities are the invoice's; prices are the shop's current ones, as for every customer.
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

from market.storefront.importing import online_retail
from market.storefront.importing.online_retail import Survey
from market_dev.commands import retail
from market_dev.commands.import_ import (
    Catalogue,
    DataOption,
    FileArgument,
    PortBaseOption,
    UrlOption,
    create_or_find,
    one_line_errors,
    progress_bars,
    read,
    require_running,
    two_columns,
)
from market_dev.commands.retail import Invoice
from market_dev.shop_client import RequestRejected, ShopClient, idempotency_key
from market_dev.stack.topology import DEFAULT_DATA, DEFAULT_PORT_BASE

# Names for the rejections in the table.
_REASONS = {
    "out-of-stock": "out of stock",
    "idempotency-key-reused": "idempotency key used for another order",
    "order-cancelled": "cancelled in the meantime",
}
NO_PRODUCT = "a product could not be created"


@dataclass(slots=True)
class Report:
    """Statistics of a replay.

    placed, replayed: orders placed by this run, by an earlier run
    rejected: occurrences by reason
    latencies: in seconds, from the first attempt to the final response
    seconds: duration of the run
    retries: repeated requests
    lag: with --speed, seconds by which the last order was placed later than its invoice's time
    """

    placed: int = 0
    replayed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    retries: int = 0
    lag: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the seconds within which `share` (0 to 1) of the orders had their final response."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(
    file: FileArgument,
    *,
    concurrency: Annotated[
        int, typer.Option(help="Maximum number of orders in flight.", metavar="N", min=1, max=1024)
    ] = 32,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Keep the intervals between invoices, X times as fast; default: no pauses.", metavar="X", min=0.001
        ),
    ] = None,
    port_base: PortBaseOption = DEFAULT_PORT_BASE,
    url: UrlOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Place each invoice of FILE.csv as one order, through the shop's public API.

    Products that `market import FILE.csv` has not created yet are created first.

    Running it again places nothing twice: the invoice number is the order's idempotency key.
    """
    console = Console(stderr=True)
    with one_line_errors(console, "replay"):
        shop = ShopClient.at(port_base=port_base, url=url, data=data, max_connections=max(64, concurrency))
        survey, catalogue, report = uvloop.run(_run(file, shop, concurrency, speed, console))
    Console().print(table(survey, catalogue, report))


async def _run(
    file: Path, shop: ShopClient, concurrency: int, speed: float | None, console: Console
) -> tuple[Survey, Catalogue, Report]:
    with progress_bars(console) as bars:
        survey = read(file, bars)
        async with shop:
            await require_running(shop)
            sold = [article for article in survey.articles if article.sold]
            catalogue = await create_or_find(shop, sold, bars, "Finding the products")
            report = await place_all(shop, file, survey, catalogue, bars, concurrency=concurrency, speed=speed)
    return survey, catalogue, report


async def place_all(
    shop: ShopClient,
    file: Path,
    survey: Survey,
    catalogue: Catalogue,
    bars: Progress,
    *,
    concurrency: int = 32,
    speed: float | None = None,
) -> Report:
    """Place all invoices of the file. Raises ShopUnavailable if the shop does not respond for a minute."""
    report = Report()
    task = bars.add_task("Placing the orders", total=survey.invoices)
    remaining = retail.invoices(file, survey)
    first: datetime | None = None
    started = perf_counter()

    async def work() -> None:
        nonlocal first
        for invoice in remaining:
            if speed is not None:
                first = first or invoice.at
                due = started + (invoice.at - first).total_seconds() / speed
                await asyncio.sleep(max(0.0, due - perf_counter()))
                report.lag = max(0.0, perf_counter() - due)
            await _place(shop, invoice, catalogue, report)
            bars.advance(task)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work())
    report.seconds = perf_counter() - started
    report.retries = shop.retries
    return report


async def _place(shop: ShopClient, invoice: Invoice, catalogue: Catalogue, report: Report) -> None:
    try:
        body = order(invoice, catalogue.ids)
    except KeyError:
        report.rejected[NO_PRODUCT] += 1
        return
    started = perf_counter()
    try:
        created = await shop.place_order(body, idempotency_key(invoice.number))
    except RequestRejected as e:
        report.rejected[_REASONS.get(e.kind, f"{e.status} {e.detail[:60]}")] += 1
    else:
        if created.replayed:
            report.replayed += 1
        else:
            report.placed += 1
    report.latencies.append(perf_counter() - started)


def order(invoice: Invoice, ids: dict[str, str]) -> dict[str, Any]:
    """Return the request that places the invoice. Raises KeyError if `ids` lacks one of its stock codes."""
    return {
        "user": invoice.user,
        "email": f"{invoice.user}@example.test",
        "items": [{"product_id": ids[code], "quantity": units} for code, units in invoice.units.items()],
    }


def table(survey: Survey, catalogue: Catalogue, report: Report) -> Table:
    """Return the statistics as a table."""
    table = two_columns("Replay")
    table.add_row("placed", f"{report.placed:,}")
    if report.replayed:
        table.add_row("placed by an earlier run", f"{report.replayed:,}")
    table.add_row("rejected", f"{report.rejected.total():,}")
    for reason, count in report.rejected.most_common():
        table.add_row(f"  {reason}", f"{count:,}")
    table.add_section()
    table.add_row("invoices without a sale", f"{len(survey.last_lines) - survey.invoices:,}")
    table.add_row("lines skipped", f"{survey.skipped.total():,} of {survey.lines:,}")
    for reason in online_retail.SKIPPED:
        table.add_row(f"  {reason}", f"{survey.skipped[reason]:,}")
    if catalogue.created:
        table.add_row("products created", f"{catalogue.created:,}")
    table.add_section()
    table.add_row("seconds", f"{report.seconds:.1f}")
    table.add_row("orders/s", f"{len(report.latencies) / max(report.seconds, 1e-9):,.1f}")
    for share in (50, 95, 99):
        table.add_row(f"latency p{share}", f"{report.percentile(share / 100) * 1000:,.0f} ms")
    if report.retries:
        table.add_row("retried requests", f"{report.retries:,}")
    if report.lag > 1:
        table.add_row("lag behind the invoices at the end", f"{report.lag:,.1f} s")
    return table
