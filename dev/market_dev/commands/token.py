"""`market token`: print an access token of a person who can sign in to the local stack, for curl."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from market_dev import tokens
from market_dev.stack import sign_in
from market_dev.stack.topology import DEFAULT_DATA, DEFAULT_PORT_BASE, LAST_PORT_BASE


def run(
    person: Annotated[str, typer.Argument(help="Who signs in: ann, ben, mia or olga.", show_default=False)],
    *,
    data: Annotated[
        Path, typer.Option(help="The data directory of the local shop, as in `market up`.", metavar="DIR")
    ] = DEFAULT_DATA,
    port_base: Annotated[
        int,
        typer.Option(
            help="The port base of the local shop, as in `market up`.", metavar="N", min=1, max=LAST_PORT_BASE
        ),
    ] = DEFAULT_PORT_BASE,
) -> None:
    """Print an access token of a person, and nothing else, for a shop that `market up --sign-in` runs.

    It is valid for an hour: `curl -H "Authorization: Bearer $(market token ann)" ...`
    """
    try:
        found = sign_in.read(data, port_base)
        if found is None:
            raise tokens.SignInFailed(
                f"no shop with sign-in runs on port {port_base} with its data in {data}: start one with "
                "market up --sign-in, or name it by --port-base and --data"
            )
        print(asyncio.run(tokens.person_token(found, person)))
    except tokens.SignInFailed as e:
        Console(stderr=True).print(f"market token: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
