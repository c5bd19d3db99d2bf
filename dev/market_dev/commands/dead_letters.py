"""`market dead-letters`: what could not be mailed. Runs the command of notifications with the stack's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from market_dev.stack.topology import DEFAULT_PORT_BASE, config_directory, environment, ports

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="What could not be mailed: list it, look at it, mail it after all, or drop it.",
)

PortBase = Annotated[
    int, typer.Option("--port-base", help="The port base of the local stack that `market up` was given.", metavar="N")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Ids = Annotated[list[str], typer.Argument(help="As `list` shows them.", metavar="ID...")]
MaybeIds = Annotated[list[str] | None, typer.Argument(help="As `list` shows them.", metavar="[ID...]")]


def _run(port_base: int, verb: str, *args: str, json: bool) -> None:
    env = environment("notifications", ports(port_base), log_format="console")
    done = subprocess.run(
        [sys.executable, "-m", "market.notifications", "dead-letters", verb, *args, *(["--json"] if json else [])],
        env={**os.environ, **env, "CONFIG_PATH": str(config_directory() / "notifications.yaml")},
        check=False,
    )
    raise typer.Exit(done.returncode)


@app.command("list")
def list_(
    *,
    all_: Annotated[bool, typer.Option("--all", help="Those that were mailed after all or dropped, too.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """The open letters, oldest first: id, time, order, origin and reason."""
    _run(port_base, "list", *(["--all"] if all_ else []), json=json)


@app.command()
def show(ids: Ids, *, json: Json = False, port_base: PortBase = DEFAULT_PORT_BASE) -> None:
    """Letters whole, with the original message."""
    _run(port_base, "show", *ids, json=json)


@app.command()
def replay(
    ids: MaybeIds = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """Try to mail them now; what the mail server accepts is done."""
    _run(port_base, "replay", *(ids or []), *(["--all"] if all_ else []), json=json)


@app.command()
def drop(
    ids: MaybeIds = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """Be done with them, without a mail."""
    _run(port_base, "drop", *(ids or []), *(["--all"] if all_ else []), json=json)
