"""`market torture`: kills everything, time and again, while orders pour in, and checks every order afterwards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from market_dev.chaos.report import markdown
from market_dev.chaos.runner import Report, Settings, run
from market_dev.stack.servers.base import StartError


def torture(
    seed: Annotated[
        list[int] | None, typer.Option(help="Draws the faults and the orders; give it again for another run.")
    ] = None,
    kills: Annotated[int, typer.Option(help="How many processes are killed in each run.", min=0)] = 200,
    clients: Annotated[int, typer.Option(help="Clients that order at the same time.", min=1)] = 12,
    most_seconds: Annotated[float, typer.Option(help="The longest time for which a store stands still.", min=1)] = 20.0,
    kafka: Annotated[
        str, typer.Option(help="auto, apache or embedded (the embedded one forgets when killed).")
    ] = "auto",
    port_base: Annotated[int, typer.Option(help="The first port; 36 are used.")] = 8280,
    data: Annotated[Path | None, typer.Option(help="Keeps everything of the run in this empty directory.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Writes the report here (Markdown), and the raw figures beside it (JSON).")
    ] = None,
) -> None:
    """Kill every process of a shop, time and again, while clients order; then check that nothing was lost or sold twice.

    Starts a shop of its own, apart from any other. Ends with 0 when all eight statements hold.
    """
    console = Console(stderr=True)
    seeds = seed or [1]
    directory = data or Path(tempfile.mkdtemp(prefix="market-torture-"))
    directory.chmod(0o755)
    reports: list[Report] = []
    try:
        for number in seeds:
            here = directory / f"seed-{number}"
            here.mkdir(parents=True, exist_ok=True)
            here.chmod(0o755)
            settings = Settings(
                directory=here,
                seed=number,
                kills=kills,
                clients=clients,
                most_seconds=most_seconds,
                kafka=kafka,
                port_base=port_base,
            )
            reports.append(_show(settings, console))
            _say(reports[-1], console)
            if report is not None:
                # After each seed: hours of work are not lost with the last of them.
                _write(reports, report, f"--kills {kills} --clients {clients} --most-seconds {most_seconds:g}")
    except StartError as e:
        console.print(f"[red]{e}[/red]")
        raise typer.Exit(2) from None
    finally:
        if data is None and all(r.clean for r in reports):
            shutil.rmtree(directory, ignore_errors=True)
    if not all(r.clean for r in reports):
        console.print(f"what the stores hold is kept in {directory}")
        raise typer.Exit(1)


def _write(reports: list[Report], path: Path, options: str) -> None:
    seeds = " ".join(f"--seed {r.seed}" for r in reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(reports, f"market torture {seeds} {options}"), "utf-8")
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(reports), indent=1) + b"\n")


def _say(r: Report, console: Console) -> None:
    verdict = "[green]clean[/green]" if r.clean else "[red]VIOLATIONS[/red]"
    console.print(
        f"seed {r.seed}: {r.kills} kills, {r.placed} orders placed, {r.mails_repeated} mails repeated, {verdict}"
    )
    for check, found in r.violations.items():
        for sentence in found[:10]:
            console.print(f"  [red]{check}[/red]: {sentence}", highlight=False)


def _show(settings: Settings, console: Console) -> Report:
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"seed {settings.seed}: starting the shop", total=None)

        def step(done: int, of: int, what: str) -> None:
            progress.update(task, completed=done, total=of, description=f"seed {settings.seed}: {what}")

        return asyncio.run(run(settings, say=lambda _: None, step=step))
