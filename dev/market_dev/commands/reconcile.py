"""`market reconcile`: run the reconcile command of orders with the configuration of the local stack, and show a
table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from market_dev.stack import sign_in
from market_dev.stack.configurations import Configurations
from market_dev.stack.topology import DEFAULT_DATA, DEFAULT_PORT_BASE, LAST_PORT_BASE, environment, ports

# Rows of the table, which is held in memory.
_MAX_ROWS = 1_000
COMMAND = (sys.executable, "-m", "market.orders", "reconcile")


class _NotFinished(Exception):
    """The command of orders ended without a summary. `str()` is one line for the user."""


def run(
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair differences whose repair is unambiguous; the rest is only reported."),
    ] = False,
    topic: Annotated[
        bool, typer.Option("--topic", help="Also read all events in Kafka, from the first to the last.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, the summary last.")] = False,
    port_base: Annotated[
        int,
        typer.Option(
            help="The port base of the local shop, as in `market up`.", metavar="N", min=1, max=LAST_PORT_BASE
        ),
    ] = DEFAULT_PORT_BASE,
    data: Annotated[
        Path,
        typer.Option(
            help="The data directory of the local shop, as in `market up`, for the secret with which orders signs in.",
            metavar="DIR",
        ),
    ] = DEFAULT_DATA,
) -> None:
    """Compare orders, reservations and events, and name each difference with its likely cause.

    It may run while the shop sells: what is younger than the recovery deadline is not compared, and a difference is
    checked twice before it counts. Exit status: 0: no differences are left; 1: differences are left; 2: not finished.
    """
    stack = sign_in.read(data, port_base)
    configuration = Configurations(data.absolute(), {}, stack).path("orders")
    env = environment("orders", ports(port_base)) | {"CONFIG_PATH": str(configuration)}
    if stack is not None:
        # The command asks inventory for the reservations, which tells them to services only.
        env |= stack.environment("orders")
    raise typer.Exit(reconcile(COMMAND, env, repair=repair, topic=topic, as_json=as_json))


def reconcile(command: Sequence[str], env: Mapping[str, str], *, repair: bool, topic: bool, as_json: bool) -> int:
    """Run the command, with these additions to the environment, and show what it finds. Return the exit status."""
    console = Console(stderr=True)
    options = [*(["--repair"] if repair else []), *(["--topic"] if topic else [])]
    lines = _lines([*command, "--json", *options], env)
    try:
        summary = _as_json(lines) if as_json else _as_table(lines, console)
    except _NotFinished as e:
        console.print(f"market reconcile: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    if not summary["complete"]:
        console.print(
            f"market reconcile: not finished: {summary['error']}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 2
    return 1 if summary["differences"] > summary["repaired"] else 0


def _lines(command: Sequence[str], env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the command's lines as it prints them. Raises _NotFinished if the last one is not the summary."""
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=log) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    last = json.loads(line)
                    yield last
                process.wait()
            except ValueError:
                raise _NotFinished("orders printed a line that is not JSON") from None
            finally:
                # No effect if it has ended.
                process.terminate()
        if last.get("kind") != "summary":
            log.seek(0)
            reason = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise _NotFinished(f"orders stopped before the end, with status {process.returncode}: {' '.join(reason)}")


def _as_json(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in lines:
        print(json.dumps(last, ensure_ascii=False), flush=True)
    return last


def _as_table(lines: Iterator[dict[str, Any]], console: Console) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    omitted = 0
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
                if len(found) < _MAX_ROWS:
                    found.append(last)
                else:
                    omitted += 1
            elif last["kind"] == "progress":
                task = steps.get(last["step"])
                if task is None:
                    task = steps[last["step"]] = progress.add_task(last["step"], total=None)
                progress.update(task, completed=last["done"], total=last["total"])
    summary = last
    out = Console()
    if found:
        out.print(_table(found))
    if omitted:
        out.print(f"{_count(omitted, 'further difference')} not shown: --json prints all.", highlight=False)
    compared = [_count(summary["orders"], "order"), _count(summary["reservations"], "reservation")]
    if summary["messages"] is not None:
        compared.append(_count(summary["messages"], "event"))
    out.print(f"Compared {', '.join(compared)} in {summary['seconds']:.1f} s.", highlight=False)
    left = summary["differences"] - summary["repaired"]
    if not summary["complete"]:
        return summary
    if not summary["differences"]:
        out.print("No differences.", style="green")
    else:
        repaired = f", {summary['repaired']} of them repaired" if summary["repaired"] else ""
        out.print(
            f"{_count(summary['differences'], 'difference')}{repaired}.",
            style="red" if left else "green",
            highlight=False,
        )
    return summary


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(header_style="bold", show_lines=True)
    for column in ("difference", "id", "detail and likely cause", "repaired"):
        # An id is never wrapped, so that it can be copied.
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for line in found:
        repaired = {None: "-", True: "yes", False: "no"}[line["repaired"]]
        table.add_row(line["difference"], line["id"], f"{line['detail']}\n{line['cause']}", repaired)
    return table
