"""`market reconcile`: do orders, reservations and events agree? Asks the orders service, which looks them through."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from market_dev.stack.topology import DEFAULT_PORT_BASE, LAST_PORT_BASE, ports

_SILENCE_SECONDS = 120.0


class _Unanswered(Exception):
    """Orders did not do what was asked: one line for the user."""


def run(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what has one right answer; the rest is only reported.")
    ] = False,
    topic: Annotated[
        bool, typer.Option("--topic", help="Read the events in Kafka too, from the first to the last.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as orders sends them; the summary last.")
    ] = False,
    port_base: Annotated[
        int,
        typer.Option(
            help="The port base of the local stack that `market up` was given.", metavar="N", min=1, max=LAST_PORT_BASE
        ),
    ] = DEFAULT_PORT_BASE,
    url: Annotated[
        str | None, typer.Option(help="The admin address of any orders service instead: http://10.0.0.7:9090")
    ] = None,
) -> None:
    """Compare orders, reservations and events, and name each difference with its likely cause.

    May be run while the shop sells: what is younger than the recovery deadline is not looked at, and a
    difference is looked at twice before it counts. Exit status: 0: all agrees, or was mended; 1: differences
    are left; 2: it could not be finished.
    """
    console = Console(stderr=True)
    address = url or f"http://127.0.0.1:{ports(port_base)['orders admin']}"
    try:
        lines = _ask(address, repair=repair, topic=topic)
        summary = _as_json(lines) if as_json else _as_table(lines, console)
    except _Unanswered as e:
        console.print(f"market reconcile: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if not summary["complete"]:
        console.print(
            f"market reconcile: not finished: {summary['error']}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(2)
    raise typer.Exit(1 if summary["differences"] > summary["repaired"] else 0)


def _ask(address: str, *, repair: bool, topic: bool) -> Iterator[dict[str, Any]]:
    """The lines that orders answers, as they come. Raises _Unanswered."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Unanswered(f"{address} is no address; it looks like http://127.0.0.1:9090")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_SILENCE_SECONDS)
    try:
        connection.request("POST", f"{parts.path.rstrip('/')}/reconcile?repair={int(repair)}&topic={int(topic)}")
        with connection.getresponse() as response:
            if response.status != 200:
                raise _Unanswered(
                    f"what answers at {address} is not the admin port of orders (status {response.status})"
                )
            for line in response:
                if line.strip():
                    yield json.loads(line)
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise _Unanswered(f"orders does not answer at {address}: {e or type(e).__name__}") from None
    finally:
        connection.close()


def _as_json(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in lines:
        print(json.dumps(last, ensure_ascii=False), flush=True)
    return _summary(last)


def _as_table(lines: Iterator[dict[str, Any]], console: Console) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        steps: dict[str, TaskID] = {}
        for last in lines:
            if last["kind"] == "difference":
                found.append(last)
            elif last["kind"] == "progress":
                task = steps.get(last["step"])
                if task is None:
                    task = steps[last["step"]] = progress.add_task(last["step"], total=None)
                progress.update(task, completed=last["done"], total=last["total"])
    summary = _summary(last)
    out = Console()
    if found:
        out.print(_table(found))
    messages = "" if summary["messages"] is None else f", {summary['messages']} events"
    out.print(
        f"Compared {summary['orders']} orders, {summary['reservations']} reservations{messages} in {summary['seconds']:.1f} s.",
        highlight=False,
    )
    left = summary["differences"] - summary["repaired"]
    if not summary["complete"]:
        return summary
    if not summary["differences"]:
        out.print("Everything agrees.", style="green")
    else:
        mended = f", {summary['repaired']} of them mended" if summary["repaired"] else ""
        out.print(
            f"{summary['differences']} difference{'s' * (summary['differences'] != 1)}{mended}.",
            style="red" if left else "green",
            highlight=False,
        )
    return summary


def _summary(last: dict[str, Any]) -> dict[str, Any]:
    if last.get("kind") != "summary":
        raise _Unanswered(f"orders broke off before the end: {last.get('detail') or 'its log tells why'}")
    return last


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(header_style="bold", show_lines=True)
    for column in ("what", "id", "what is there, and its likely cause", "mended"):
        # An id in one piece, to be copied.
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for line in found:
        mended = {None: "-", True: "yes", False: "no"}[line["repaired"]]
        table.add_row(line["difference"], line["id"], f"{line['detail']}\n{line['cause']}", mended)
    return table
