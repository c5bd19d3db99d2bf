"""`market import`: create a catalogue from a file in the Online Retail format.

Each product is created with the idempotency key `import:<code>`, so that a later run finds it instead of creating it
again. If the later run's product differs (another file, another `--stock`), the shop reports that the key was used
with another request: then the product is found by the stock code at the end of its description, and is not changed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from market.storefront.importing import online_retail, rows
from market.storefront.importing.online_retail import Article, InvalidFile, Survey
from market_dev.shop_client import (
    InvalidAddress,
    RequestRejected,
    ShopClient,
    ShopNotRunning,
    ShopUnavailable,
    SignInRequired,
)
from market_dev.stack.topology import DEFAULT_DATA, DEFAULT_PORT_BASE, LAST_PORT_BASE
from market_dev.tokens import SignInFailed

CONCURRENCY = 64

FileArgument = Annotated[
    Path, typer.Argument(help="A CSV file in the Online Retail format.", metavar="FILE.csv", show_default=False)
]
PortBaseOption = Annotated[
    int,
    typer.Option(help="The port base of the local shop, as in `market up`.", metavar="N", min=1, max=LAST_PORT_BASE),
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="The public address of another shop, such as https://shop.example.", metavar="URL"),
]

DataOption = Annotated[
    Path,
    typer.Option(
        help="The data directory of the local shop, as in `market up`, for the secret with which the command signs in.",
        metavar="DIR",
    ),
]


class NoSuchProduct(Exception):
    """The idempotency key belongs to a product that no longer exists or has another description."""


@dataclass(slots=True)
class Catalogue:
    """The product id of each stock code, and statistics.

    created, existing: in this run, by an earlier run
    differing: existing with another name, price or stock than in the file
    failed: occurrences by `code: reason`
    """

    ids: dict[str, str] = field(default_factory=dict)
    created: int = 0
    existing: int = 0
    differing: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(
    file: FileArgument,
    *,
    stock: Annotated[
        int | None,
        typer.Option(
            help="Units in stock of each product; default: what the file sells of it.",
            metavar="N",
            min=0,
            max=online_retail.MAX_QUANTITY,
        ),
    ] = None,
    port_base: PortBaseOption = DEFAULT_PORT_BASE,
    url: UrlOption = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Create a catalogue from FILE.csv: one product per stock code.

    A product has the most frequent description and the median price of its stock code.

    Running it again creates nothing twice, and does not change existing products.
    """
    console = Console(stderr=True)
    with one_line_errors(console, "import"):
        shop = ShopClient.at(port_base=port_base, url=url, data=data, max_connections=CONCURRENCY)
        survey, catalogue = uvloop.run(_run(file, stock, shop, console))
    Console().print(_table(survey, catalogue))
    if catalogue.failed:
        raise typer.Exit(1)


async def _run(file: Path, stock: int | None, shop: ShopClient, console: Console) -> tuple[Survey, Catalogue]:
    with progress_bars(console) as bars:
        survey = read(file, bars)
        async with shop:
            await require_running(shop)
            catalogue = await create_or_find(shop, survey.articles, bars, "Creating the products", stock=stock)
    return survey, catalogue


async def require_running(shop: ShopClient) -> None:
    """Return when the shop responds. Raises ShopNotRunning after 5 seconds, with the command that starts a shop."""
    try:
        await shop.count_products(retry_seconds=5)
    except RequestRejected as e:
        raise ShopNotRunning(f"the server at {shop.products} is not the shop: {e}") from None
    except ShopUnavailable as e:
        raise ShopNotRunning(f"{e}. Is the shop running? `market up` starts one on this machine") from None


async def create_or_find(
    shop: ShopClient, articles: list[Article], bars: Progress, title: str, *, stock: int | None = None
) -> Catalogue:
    """Create the products that do not exist yet, `stock` units each (default: what the file sells).

    Rejected requests are counted in the result. Raises ShopUnavailable.
    """
    catalogue = Catalogue()
    task = bars.add_task(title, total=len(articles))
    started = perf_counter()
    remaining = iter(articles)

    async def work() -> None:
        for article in remaining:
            try:
                await _create_or_find(shop, article, article.sold if stock is None else stock, catalogue)
            except (RequestRejected, NoSuchProduct) as e:
                catalogue.failed[f"{article.code}: {e}"] += 1
            bars.advance(task)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(CONCURRENCY, len(articles))):
            tasks.create_task(work())
    catalogue.seconds = perf_counter() - started
    return catalogue


async def _create_or_find(shop: ShopClient, article: Article, stock: int, catalogue: Catalogue) -> None:
    try:
        created = await shop.create_product(product(article, stock), rows.creation_key(article.code))
    except RequestRejected as e:
        if e.kind != "idempotency-key-reused":
            raise
        catalogue.ids[article.code] = await _find(shop, article.code)
        catalogue.differing += 1
        return
    catalogue.ids[article.code] = created.id
    if created.replayed:
        catalogue.existing += 1
    else:
        catalogue.created += 1


async def _find(shop: ShopClient, code: str) -> str:
    ending = rows.ending(code)
    for item in await shop.search_products(rows.search_phrase(code)):
        if item["description"].endswith(ending):
            return str(item["id"])
    raise NoSuchProduct(f"was imported before, but no product's description ends with {ending!r} now")


def product(article: Article, stock: int) -> dict[str, Any]:
    """Return the request that creates the product; the same file gives the same bytes, as the key requires."""
    row = rows.of_article(article, stock)
    return {
        "name": row.name,
        "description": row.description,
        "price": row.price,
        "currency": row.currency,
        "stock": row.stock,
    }


def read(file: Path, bars: Progress) -> Survey:
    """Return the survey of the file, showing a progress bar. Raises InvalidFile."""
    size = file.stat().st_size if file.is_file() else None
    task = bars.add_task("Reading the file", total=size, unit="bytes")
    survey = online_retail.survey(file, lambda read: bars.update(task, completed=read))
    bars.update(task, completed=size)
    return survey


class _Amount(MofNCompleteColumn):
    """n/m, or a percentage if the unit is bytes."""

    def render(self, task: Any) -> Any:
        return (
            TextColumn("{task.percentage:>3.0f}%").render(task)
            if task.fields.get("unit") == "bytes"
            else super().render(task)
        )


def progress_bars(console: Console) -> Progress:
    """Return progress bars on standard error."""
    return Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        _Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=5,
    )


@contextmanager
def one_line_errors(console: Console, command: str) -> Iterator[None]:
    """Report expected errors in one line, with exit status 1, or 2 for invalid options."""
    try:
        yield
    except Exception as e:
        cause = e
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        if not isinstance(cause, (InvalidFile, ShopUnavailable, InvalidAddress, SignInRequired, SignInFailed)):
            raise
        may_resume = isinstance(cause, ShopUnavailable) and not isinstance(cause, ShopNotRunning)
        hint = ". Run it again: nothing is created twice" if may_resume else ""
        if isinstance(cause, SignInRequired):
            hint = (
                ". Name the data directory of the local shop by --data, or set MARKET_ISSUER, MARKET_CLIENT_ID and "
                "MARKET_CLIENT_SECRET"
            )
        console.print(f"market {command}: {cause}{hint}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(cause, InvalidAddress) else 1) from None


def two_columns(title: str) -> Table:
    """Return an empty table of names and right-aligned values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _table(survey: Survey, catalogue: Catalogue) -> Table:
    table = two_columns("Import")
    table.add_row("lines read", f"{survey.lines:,}")
    table.add_row("products created", f"{catalogue.created:,}")
    table.add_row("existing products", f"{catalogue.existing:,}")
    if catalogue.differing:
        table.add_row("existing products with another name, price or stock", f"{catalogue.differing:,}")
    if survey.incomplete:
        table.add_row(online_retail.INCOMPLETE, f"{survey.incomplete:,}")
    for reason in catalogue.failed:
        table.add_row(f"rejected: {reason}", "1")
    table.add_section()
    table.add_row("seconds", f"{catalogue.seconds:.1f}")
    table.add_row("products/s", f"{len(catalogue.ids) / max(catalogue.seconds, 1e-9):,.0f}")
    return table
