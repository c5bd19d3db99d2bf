"""`market up`: run the whole shop on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from market_dev.stack import processes
from market_dev.stack.data_directory import write_json
from market_dev.stack.servers.base import StartError
from market_dev.stack.sign_in import SignIn
from market_dev.stack.stack import Stack
from market_dev.stack.topology import DEFAULT_DATA, DEFAULT_PORT_BASE, LAST_PORT_BASE, Options


class Kafka(StrEnum):
    auto = "auto"
    apache = "apache"
    embedded = "embedded"


class Issuer(StrEnum):
    local = "local"
    keycloak = "keycloak"


def run(
    issuer: Annotated[
        Issuer | None,
        typer.Argument(
            help="With --sign-in: `local`, the default, needs no password; `keycloak` needs Java 17+ and Maven.",
            show_default=False,
        ),
    ] = None,
    *,
    data: Annotated[
        Path, typer.Option(help="The data directory, which is kept for the next start.", metavar="DIR")
    ] = DEFAULT_DATA,
    sign_in: Annotated[
        bool,
        typer.Option(
            "--sign-in", help="Require sign-in, and start the issuer of the tokens: a small local one, or ISSUER."
        ),
    ] = False,
    kafka: Annotated[
        Kafka,
        typer.Option(
            help="`apache` needs Java 17+ and Maven; `embedded` is in memory; `auto` is `apache` if it can run here."
        ),
    ] = Kafka.auto,
    port_base: Annotated[
        int,
        typer.Option(
            help="The first of 21 ports: GraphQL N, products N+1, orders N+2, inventory N+3, mail page N+4, SMTP N+5, "
            "then the rest.",
            metavar="N",
            min=1,
            max=LAST_PORT_BASE,
        ),
    ] = DEFAULT_PORT_BASE,
    empty: Annotated[bool, typer.Option("--empty", help="Do not create the demo catalogue.")] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write addresses and process ids to FILE when everything is ready; removed at the end.",
            metavar="FILE",
        ),
    ] = None,
    overrides: Annotated[
        Path | None, typer.Option(hidden=True, help="YAML file by service, merged into its configuration; for tests.")
    ] = None,
) -> None:
    """Run the shop on this machine, real servers and all six services, until Ctrl-C.

    A process that exits is restarted. No process outlives the command; the data stays in DIR for the next start, and
    logs are in DIR/logs.
    """
    console = Console(stderr=True)
    try:
        if json_file is not None and not json_file.absolute().parent.is_dir():
            raise StartError(f"--json {json_file}: the directory {json_file.absolute().parent} does not exist")
        if issuer is not None and not sign_in:
            raise StartError(f"{issuer.value} is an issuer, which --sign-in starts: market up --sign-in {issuer.value}")
        options = _options(data, port_base, kafka, overrides, (issuer or Issuer.local) if sign_in else None)
        status = asyncio.run(_up(options, console, empty=empty, file=json_file))
    except StartError as e:
        console.print(f"market up: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        status = 1
    raise typer.Exit(status)


def _options(data: Path, port_base: int, kafka: Kafka, overrides: Path | None, issuer: Issuer | None) -> Options:
    tree: dict[str, Any] = yaml.safe_load(overrides.read_text("utf-8")) if overrides else {}
    testing = bool(tree.pop("mail_testing", False))
    return Options(
        data,
        port_base,
        kafka.value,
        overrides=tree,
        mail_testing=testing,
        log_format=os.environ.get("MARKET_LOG_FORMAT", "console"),
        sign_in=None if issuer is None else issuer.value,
    )


async def _up(options: Options, console: Console, *, empty: bool, file: Path | None) -> int:
    started = time.monotonic()
    stopping = asyncio.Event()
    stack: Stack

    def notify(line: str) -> None:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def on_change() -> None:
        if ready and file is not None and not stopping.is_set():
            try:
                write_json(file, {"urls": stack.urls, "pids": stack.pids})
            except OSError as e:
                notify(f"{file} cannot be written: {e.strerror}")

    def stop() -> None:
        if stopping.is_set():
            # The second Ctrl-C does not wait.
            stack.kill_all()
        stopping.set()

    ready = False
    stack = Stack(options, notify=notify, on_change=on_change)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop)
    if file is not None:
        file.unlink(missing_ok=True)
    try:
        with _demo_process(empty) as demo:
            with _progress(stack, console):
                await _unless(stopping, stack.start())
            if demo is not None and not stopping.is_set():
                await _unless(stopping, _create_demo_catalogue(stack, console, demo))
        if not stopping.is_set():
            product = await asyncio.to_thread(_product, stack)
            if not stopping.is_set():
                ready = True
                on_change()
                _announce(stack, Console(), product, time.monotonic() - started)
                await _unless(stopping, stack.wait_failed())
    finally:
        ready = False
        if file is not None:
            file.unlink(missing_ok=True)
        if stopping.is_set():
            console.print("Stopping ...", style="dim")
        await stack.stop()
    return 0


async def _unless(stopping: asyncio.Event, work: Any) -> None:
    """Await `work`, or cancel it when `stopping` is set."""
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


@contextmanager
def _demo_process(empty: bool) -> Iterator[subprocess.Popen[bytes] | None]:
    """Start the process that creates the demo catalogue, which waits for its input. None if the shop is to be empty."""
    if empty:
        yield None
        return
    process = subprocess.Popen(
        # -P: import nothing from the current directory, which may be any.
        [sys.executable, "-P", "-m", "market_dev.commands.demo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=processes.bound_to_parent(),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def _create_demo_catalogue(stack: Stack, console: Console, process: subprocess.Popen[bytes]) -> None:
    """Let the process create the demo catalogue, if the shop has no products. Raises StartError."""
    shop: dict[str, Any] = {"products": stack.urls["products"]}
    if stack.sign_in is not None:
        from market_dev.tokens import Credentials

        shop["credentials"] = asdict(Credentials.of_stack(stack.sign_in))
    with console.status("Creating the demo catalogue ..."):
        created, _ = await asyncio.to_thread(process.communicate, json.dumps(shop).encode())
    if process.returncode:
        raise StartError("the demo catalogue could not be created, see above")
    if int(created):
        console.print(f"Created a demo catalogue of {int(created)} products.", style="dim")


@contextmanager
def _progress(stack: Stack, console: Console) -> Iterator[None]:
    """Show a bar that counts the ready processes and names the others."""
    columns = (
        SpinnerColumn(),
        TextColumn("Starting"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(stack.rows))

        async def refresh() -> None:
            while True:
                waiting = stack.not_ready()
                more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
                description = f"waiting for {', '.join(waiting[:3])}{more}"
                if not stack.supervisors:
                    also = " and Keycloak" if stack.options.sign_in == "keycloak" else ""
                    description = f"the first start downloads Kafka{also}"
                progress.update(task, completed=len(stack.rows) - len(waiting), description=description)
                await asyncio.sleep(0.1)

        refreshing = asyncio.create_task(refresh())
        try:
            yield
        finally:
            refreshing.cancel()


def _product(stack: Stack) -> str | None:
    """Return the id of an available product, or None if there is none or the shop does not respond in time."""
    for _ in range(5):
        # A service may return 503 just after its start.
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
        "storefront": f"{urls['storefront']}/",
        "graphql": f"{urls['graphql']}/",
        "products": f"{urls['products']}/api/product",
        "orders": f"{urls['orders']}/api/order",
        "inventory": urls["inventory"],
        "notifications": f"{urls['notifications']}/api/dead-letters",
        "mail": f"{urls['mail']}/",
        "postgres": f"127.0.0.1:{stack.ports['postgres']}",
        "redis": f"127.0.0.1:{stack.ports['redis']}",
        "mongodb": f"127.0.0.1:{stack.ports['mongodb']}",
        "kafka": urls["kafka"],
        "issuer": urls.get("issuer", ""),
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("address", no_wrap=True)
    table.add_column("purpose")
    for row in reversed(stack.rows.values()):
        in_memory = row.name == "kafka" and stack.kafka_kind == "embedded"
        table.add_row(row.name, addresses[row.name], f"{row.description}{' (in memory)' if in_memory else ''}")
    console.print(f"The shop is ready after {seconds:.1f} s.\n", style="bold green", highlight=False)
    console.print(table, highlight=False)
    if product is None:
        title, path = "Create a product without a browser:", addresses["products"]
        body: dict[str, Any] = {
            "name": "Teapot",
            "description": "Holds a litre.",
            "price": "19.90",
            "currency": "EUR",
            "stock": 10,
        }
    else:
        title, path = "Place an order without a browser:", addresses["orders"]
        body = {"user": "ann", "email": "ann@example.test", "items": [{"product_id": product, "quantity": 1}]}
    authorization = ""
    if stack.sign_in is not None:
        # An order is its buyer's, and the mail goes to the address that the issuer has verified.
        body = {key: value for key, value in body.items() if key not in ("user", "email")}
        authorization = f' -H "Authorization: Bearer $({_token_command(stack, "mia" if product is None else "ann")})"'
    console.print("\nOpen the shop:", style="bold", end=" ")
    console.print(addresses["storefront"], highlight=False)
    console.print("Read the mails:", style="bold", end=" ")
    console.print(addresses["mail"], highlight=False)
    console.print("Use GraphQL:", style="bold", end=" ")
    console.print(addresses["graphql"], highlight=False)
    text = json.dumps(body)
    console.print(f"\n{title}", style="bold")
    # One line, however narrow the terminal is, so that it can be copied.
    print(f"  curl -sS {path} -H 'Content-Type: application/json'{authorization} -d {shlex.quote(text)}")
    if stack.sign_in is not None:
        _announce_people(stack.sign_in, console)
    data = stack.directory.path
    console.print(
        f"\nData in {data}, logs in {stack.directory.logs}. Ctrl-C stops everything.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _token_command(stack: Stack, person: str) -> str:
    """Return the command that prints a token, with the path of the program, which may not be in PATH."""
    command = [str(Path(sys.argv[0])), "token", person]
    if stack.options.data != DEFAULT_DATA:
        command += ["--data", str(stack.options.data)]
    if stack.options.port_base != DEFAULT_PORT_BASE:
        command += ["--port-base", str(stack.options.port_base)]
    return shlex.join(command)


def _announce_people(sign_in: SignIn, console: Console) -> None:
    console.print("\nSign in as:", style="bold")
    for person in sign_in.people:
        console.print(f"  {person.name:<6}{', '.join(person.roles)}, {person.email}", highlight=False)
    if sign_in.password is not None:
        console.print(f"  with the password {sign_in.password}", highlight=False)
