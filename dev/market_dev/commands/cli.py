"""The command `market`. A subcommand's modules are imported when it is called, so that `--help` is fast."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

# By name: a function, or a Typer app with subcommands.
COMMANDS = {
    "up": "market_dev.commands.up:run",
    "token": "market_dev.commands.token:run",
    "import": "market_dev.commands.import_:run",
    "replay": "market_dev.commands.replay:run",
    "reconcile": "market_dev.commands.reconcile:run",
    "dead-letters": "market_dev.commands.dead_letters:app",
    "chaos": "market_dev.chaos.command:chaos",
}


class _Lazy(TyperGroup):
    def list_commands(self, _: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            # Markdown joins the lines of a docstring's paragraph.
            single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            single.command(name)(target)
            target = single
        command = get_command(target)
        command.name = name
        return command


app = typer.Typer(
    cls=_Lazy, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"market {version('market')}")
        raise typer.Exit


@app.callback()
def main_options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Market: an online shop of six small services, on this machine.

    Start with `market up`, open the address that it prints, and place an order.
    """


def main() -> None:
    app()


if __name__ == "__main__":
    main()
