"""`market dead-letters`: run the dead-letter command of notifications with the configuration of the local stack."""

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
    help="List, show, replay or drop the events that could not be mailed.",
)

PortBase = Annotated[
    int, typer.Option("--port-base", help="The port base of the local shop, as in `market up`.", metavar="N")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Ids = Annotated[list[str], typer.Argument(help="Ids as `list` shows them.", metavar="ID...")]
MaybeIds = Annotated[list[str] | None, typer.Argument(help="Ids as `list` shows them.", metavar="[ID...]")]


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
    all_: Annotated[bool, typer.Option("--all", help="Include those that were replayed or dropped.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """List the open dead letters, oldest first: id, time, order, origin and reason."""
    _run(port_base, "list", *(["--all"] if all_ else []), json=json)


@app.command()
def show(ids: Ids, *, json: Json = False, port_base: PortBase = DEFAULT_PORT_BASE) -> None:
    """Show dead letters in full, with the original message."""
    _run(port_base, "show", *ids, json=json)


@app.command()
def replay(
    ids: MaybeIds = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All open dead letters.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """Try to send the mails now; those that the mail server accepts are closed."""
    _run(port_base, "replay", *(ids or []), *(["--all"] if all_ else []), json=json)


@app.command()
def drop(
    ids: MaybeIds = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All open dead letters.")] = False,
    json: Json = False,
    port_base: PortBase = DEFAULT_PORT_BASE,
) -> None:
    """Close dead letters without sending a mail."""
    _run(port_base, "drop", *(ids or []), *(["--all"] if all_ else []), json=json)
