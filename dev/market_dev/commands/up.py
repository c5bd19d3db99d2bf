"""`market up`: the whole shop on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from market_dev.stack.data_directory import write_json
from market_dev.stack.servers.base import StartError
from market_dev.stack.stack import Stack
from market_dev.stack.topology import DEFAULT_PORT_BASE, LAST_PORT_BASE, TABLE, Options


class Kafka(StrEnum):
    auto = "auto"
    apache = "apache"
    embedded = "embedded"


def run(
    *,
    data: Annotated[Path, typer.Option(help="Where the data is kept for the next start.", metavar="DIR")] = Path(
        ".market"
    ),
    kafka: Annotated[
        Kafka,
        typer.Option(
            help="`apache` needs Java 17+ and Maven; `embedded` is in memory; `auto` takes Apache Kafka where it can."
        ),
    ] = Kafka.auto,
    port_base: Annotated[
        int,
        typer.Option(
            help="The first of 16 ports: GraphQL N, products N+1, orders N+2, inventory N+3, mail page N+4, SMTP N+5, then the rest.",
            metavar="N",
            min=1,
            max=LAST_PORT_BASE,
        ),
    ] = DEFAULT_PORT_BASE,
    empty: Annotated[bool, typer.Option("--empty", help="No demo catalogue.")] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Written when all is ready: addresses and process ids; removed at the stop.", metavar="FILE"
        ),
    ] = None,
    overrides: Annotated[
        Path | None, typer.Option(hidden=True, help="YAML: by service, what is laid over its configuration; for tests.")
    ] = None,
) -> None:
    """Start the shop on this machine: real servers and the five services. It goes on until Ctrl-C.

    Nothing is left running afterwards, and the data stays in DIR for the next start. What dies meanwhile is
    started again. Logs are in DIR/logs.
    """
    console = Console(stderr=True)
    try:
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise StartError(f"--json {json_file}: there is no directory {json_file.absolute().parent}")
        options = _options(data, port_base, kafka, overrides)
        status = asyncio.run(_up(options, console, empty=empty, file=json_file))
    except StartError as e:
        console.print(f"market up: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        status = 1
    raise typer.Exit(status)


def _options(data: Path, port_base: int, kafka: Kafka, overrides: Path | None) -> Options:
    tree: dict[str, Any] = yaml.safe_load(overrides.read_text("utf-8")) if overrides else {}
    testing = bool(tree.pop("mail_testing", False))
    return Options(
        data,
        port_base,
        kafka.value,
        overrides=tree,
        mail_testing=testing,
        log_format=os.environ.get("MARKET_LOG_FORMAT", "console"),
    )


async def _up(options: Options, console: Console, *, empty: bool, file: Path | None) -> int:
    begun = time.monotonic()
    stopping = asyncio.Event()
    stack: Stack

    def say(line: str) -> None:
        # Also called from other threads.
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def changed() -> None:
        if ready and file is not None and not stopping.is_set():
            try:
                write_json(file, {"urls": stack.urls, "pids": stack.pids})
            except OSError as e:
                say(f"{file} cannot be written: {e.strerror}")

    def stop() -> None:
        if stopping.is_set():
            # Asked twice: now.
            stack.kill_all()
        stopping.set()

    ready = False
    stack = Stack(options, say=say, changed=changed)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop)
    if file is not None:
        file.unlink(missing_ok=True)
    try:
        with _progress(stack, console):
            await _unless(stopping, stack.start())
        if not stopping.is_set():
            if not empty:
                await _unless(stopping, _fill(stack, console))
            product = await asyncio.to_thread(_product, stack)
            if not stopping.is_set():
                ready = True
                changed()
                _announce(stack, Console(), product, time.monotonic() - begun)
                await _unless(stopping, stack.failed())
    finally:
        ready = False
        if file is not None:
            file.unlink(missing_ok=True)
        if stopping.is_set():
            console.print("Stopping ...", style="dim")
        await stack.stop()
    return 0


async def _unless(stopping: asyncio.Event, work: Any) -> None:
    """Awaits `work`, or gives it up when the user wants to stop."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, StartError):
            await task
        return
    task.result()


async def _fill(stack: Stack, console: Console) -> None:
    from market_dev.commands import demo

    with console.status("Filling the demo catalogue ..."):
        made = await demo.fill(stack.urls["products"])
    if made:
        console.print(f"Made a demo catalogue of {made} goods.", style="dim")


@contextmanager
def _progress(stack: Stack, console: Console) -> Iterator[None]:
    """A bar that counts what is ready and names what is not."""
    columns = (
        SpinnerColumn(),
        TextColumn("Starting"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(TABLE))

        async def refresh() -> None:
            while True:
                waiting = stack.waiting()
                more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
                what = (
                    f"waiting for {', '.join(waiting[:3])}{more}"
                    if stack.parts
                    else "Maven fetches Kafka the first time"
                )
                progress.update(task, completed=len(TABLE) - len(waiting), description=what)
                await asyncio.sleep(0.1)

        refreshing = asyncio.create_task(refresh())
        try:
            yield
        finally:
            refreshing.cancel()


def _product(stack: Stack) -> str | None:
    """The id of a product that can be bought; None: there is none, or the shop does not say."""
    for _ in range(5):
        # One that is busy with its start may answer 503.
        connection = http.client.HTTPConnection("127.0.0.1", stack.ports["products"], timeout=5)
        with closing(connection), suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            connection.request("GET", "/api/product?limit=20")
            with connection.getresponse() as response:
                items = json.loads(response.read())["items"]
            return str(next((i for i in items if i["available"]), items[0])["id"]) if items else None
        time.sleep(0.2)
    return None


def _announce(stack: Stack, console: Console, product: str | None, seconds: float) -> None:
    urls = stack.urls
    addresses = {
        "graphql": f"{urls['graphql']}/",
        "products": f"{urls['products']}/api/product",
        "orders": f"{urls['orders']}/api/order",
        "inventory": urls["inventory"],
        "notifications": f"{urls['admin']['notifications']}/readyz",
        "mail": f"{urls['mail']}/",
        "postgres": f"127.0.0.1:{stack.ports['postgres']}",
        "redis": f"127.0.0.1:{stack.ports['redis']}",
        "mongodb": f"127.0.0.1:{stack.ports['mongodb']}",
        "kafka": urls["kafka"],
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("address", no_wrap=True)
    table.add_column("what it is")
    for row in reversed(TABLE):
        what = f"{row.what} (in memory)" if row.name == "kafka" and stack.kafka_kind == "embedded" else row.what
        table.add_row(row.name, addresses[row.name], what)
    console.print(f"The shop is ready, after {seconds:.1f} s.\n", style="bold green", highlight=False)
    console.print(table, highlight=False)
    if product is None:
        title, path = "Make a product:", addresses["products"]
        body: dict[str, Any] = {
            "name": "Teapot",
            "description": "Holds a litre.",
            "price": "19.90",
            "currency": "EUR",
            "stock": 10,
        }
    else:
        title, path = "Order something:", addresses["orders"]
        body = {"user": "ann", "email": "ann@example.test", "items": [{"product_id": product, "quantity": 1}]}
    text = json.dumps(body)
    console.print(f"\n{title}", style="bold")
    # One line, however narrow the terminal is: it is there to be copied.
    print(f"  curl -sS {path} -H 'Content-Type: application/json' -d {shlex.quote(text)}")
    console.print("\nTry GraphQL:", style="bold", end=" ")
    console.print(addresses["graphql"], highlight=False)
    console.print("Read the mail:", style="bold", end=" ")
    console.print(addresses["mail"], highlight=False)
    data = stack.directory.path
    console.print(
        f"\nData in {data}, logs in {stack.directory.logs}. Ctrl-C stops everything.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
