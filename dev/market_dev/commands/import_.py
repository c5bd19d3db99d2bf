"""`market import`: a catalogue from a file in the Online Retail format.

Each product is made with the key `import:<code>`, so that a later run finds it again instead of making
it twice. Where the later run's product looks different (another file, another `--stock`), the shop
answers that the key was used with another body: then the product is found by its stock code, which
stands at the end of its description, and is left as it is.
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

from market.contracts import money
from market_dev.commands import retail
from market_dev.commands.retail import BadFile, Good, Survey
from market_dev.shop_client import BadAddress, NotThere, Refused, Shop, Unreachable, key

CURRENCY = "GBP"
CONCURRENCY = 64

FileArgument = Annotated[
    Path, typer.Argument(help="A CSV file in the Online Retail format.", metavar="FILE.csv", show_default=False)
]
PortBaseOption = Annotated[
    int, typer.Option(help="The port base that `market up` was given.", metavar="N", min=1, max=65_520)
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="The public address of any shop, instead of a local one: https://shop.example", metavar="URL"),
]


class NoSuchProduct(Exception):
    """The shop has used the key for a product that cannot be found any more."""


@dataclass(slots=True)
class Catalogue:
    """Which product stands for which code. `other`: there before, with another name, price or stock than the file gives."""

    ids: dict[str, str] = field(default_factory=dict)
    made: int = 0
    there: int = 0
    other: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(
    file: FileArgument,
    *,
    stock: Annotated[
        int | None,
        typer.Option(
            help="Units of each product; default: what the file sells of it.",
            metavar="N",
            min=0,
            max=retail.MOST_QUANTITY,
        ),
    ] = None,
    port_base: PortBaseOption = 8080,
    url: UrlOption = None,
) -> None:
    """Make a catalogue from FILE.csv: one product per stock code, with its most frequent description and median price.

    Running it again makes nothing twice; products that are there already are left as they are.
    """
    console = Console(stderr=True)
    with explained(console, "import"):
        shop = Shop.at(port_base=port_base, url=url, connections=CONCURRENCY)
        found, catalogue = uvloop.run(_run(file, stock, shop, console))
    Console().print(_table(found, catalogue))
    if catalogue.failed:
        raise typer.Exit(1)


async def _run(file: Path, stock: int | None, shop: Shop, console: Console) -> tuple[Survey, Catalogue]:
    with progress_bars(console) as bars:
        found = read(file, bars)
        async with shop:
            await reach(shop)
            catalogue = await make_or_find(shop, found.goods, bars, "Making the products", stock=stock)
    return found, catalogue


async def reach(shop: Shop) -> None:
    """Returns when the shop answers. Raises NotThere within seconds, with the command that may be missing."""
    try:
        await shop.count(patience=5)
    except Refused as e:
        raise NotThere(f"what answers at {shop.products} is not the shop: {e}") from None
    except Unreachable as e:
        raise NotThere(f"{e}. Is the shop running? `market up` starts one here") from None


async def make_or_find(
    shop: Shop, goods: list[Good], bars: Progress, title: str, *, stock: int | None = None
) -> Catalogue:
    """The product of each good, made where there is none. Raises Unreachable; what the shop refuses is counted."""
    catalogue = Catalogue()
    task = bars.add_task(title, total=len(goods))
    started = perf_counter()
    waiting = iter(goods)

    async def work() -> None:
        for good in waiting:
            try:
                await _make_or_find(shop, good, good.sold if stock is None else stock, catalogue)
            except (Refused, NoSuchProduct) as e:
                catalogue.failed[f"{good.code}: {e}"] += 1
            bars.advance(task)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(CONCURRENCY, len(goods))):
            tasks.create_task(work())
    catalogue.seconds = perf_counter() - started
    return catalogue


async def _make_or_find(shop: Shop, good: Good, stock: int, catalogue: Catalogue) -> None:
    try:
        made = await shop.make_product(product(good, stock), key(f"import:{good.code}"))
    except Refused as e:
        if e.kind != "idempotency-key-reused":
            raise
        catalogue.ids[good.code] = await _find(shop, good.code)
        catalogue.other += 1
        return
    catalogue.ids[good.code] = made.id
    if made.before:
        catalogue.there += 1
    else:
        catalogue.made += 1


async def _find(shop: Shop, code: str) -> str:
    ending = f"Stock code {code}."
    for item in await shop.find(code):
        if item["description"].endswith(ending):
            return str(item["id"])
    raise NoSuchProduct(f"was imported before, and no product's description ends with {ending!r} any more")


def product(good: Good, stock: int) -> dict[str, Any]:
    """The body that makes the good: the same file gives the same bytes, as the key wants it."""
    return {
        "name": good.name,
        "description": f"{good.name}. Stock code {good.code}.",
        "price": money.write(good.price),
        "currency": CURRENCY,
        "stock": stock,
    }


def read(file: Path, bars: Progress) -> Survey:
    """The survey of the file, with a progress bar. Raises BadFile."""
    size = file.stat().st_size if file.is_file() else None
    task = bars.add_task("Reading the file", total=size, unit="bytes")
    found = retail.survey(file, lambda bytes: bars.update(task, completed=bytes))
    bars.update(task, completed=size)
    return found


class _Amount(MofNCompleteColumn):
    """n/m; per cent where the unit is bytes."""

    def render(self, task: Any) -> Any:
        return (
            TextColumn("{task.percentage:>3.0f}%").render(task)
            if task.fields.get("unit") == "bytes"
            else super().render(task)
        )


def progress_bars(console: Console) -> Progress:
    """The bars of all long work; they go to standard error."""
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
def explained(console: Console, command: str) -> Iterator[None]:
    """Turns what can go wrong into one line and exit status 1 (2: wrong use)."""
    try:
        yield
    except Exception as e:
        cause = e
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        if not isinstance(cause, (BadFile, Unreachable, BadAddress)):
            raise
        hint = (
            ". Run it again: nothing is made twice"
            if isinstance(cause, Unreachable) and not isinstance(cause, NotThere)
            else ""
        )
        console.print(f"market {command}: {cause}{hint}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(cause, BadAddress) else 1) from None


def two_columns(title: str) -> Table:
    """An empty table of names and figures."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _table(found: Survey, catalogue: Catalogue) -> Table:
    table = two_columns("Import")
    table.add_row("lines read", f"{found.lines:,}")
    table.add_row("products made", f"{catalogue.made:,}")
    table.add_row("there already", f"{catalogue.there:,}")
    if catalogue.other:
        table.add_row("there already with another name, price or stock, left as they are", f"{catalogue.other:,}")
    if found.nameless:
        table.add_row("codes without a description or a price, not made", f"{found.nameless:,}")
    for reason in catalogue.failed:
        table.add_row(f"refused: {reason}", "1")
    table.add_section()
    table.add_row("seconds", f"{catalogue.seconds:.1f}")
    table.add_row("products/s", f"{len(catalogue.ids) / max(catalogue.seconds, 1e-9):,.0f}")
    return table
