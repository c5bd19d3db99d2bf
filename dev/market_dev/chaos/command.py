"""`market chaos`: kills every process again and again while clients place orders, and checks every order afterwards."""

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

from market_dev.chaos.report import RunReport, render_markdown
from market_dev.chaos.runner import Settings, run
from market_dev.stack.servers.base import StartError

_MAX_VIOLATIONS_SHOWN = 10


def chaos(
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the faults and orders of a run; repeat it for further runs.")
    ] = None,
    kills: Annotated[int, typer.Option(help="Number of processes to kill in each run.", min=0)] = 200,
    clients: Annotated[int, typer.Option(help="Number of concurrent clients.", min=1)] = 12,
    max_fault_seconds: Annotated[
        float, typer.Option(help="Maximum duration of a pause or network fault, in seconds.", min=1)
    ] = 20.0,
    sign_in: Annotated[
        bool,
        typer.Option(
            "--sign-in", help="Require sign-in: each client is a person of its own, and the issuer is killed, too."
        ),
    ] = False,
    kafka: Annotated[
        str, typer.Option(help="auto, apache or embedded (the embedded broker loses its data when killed).")
    ] = "auto",
    port_base: Annotated[int, typer.Option(help="First port; 36 are used.")] = 8280,
    data: Annotated[Path | None, typer.Option(help="Empty directory in which all data of the runs is kept.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report to this file (Markdown), and the raw data beside it (JSON).")
    ] = None,
) -> None:
    """Kill every process of a shop again and again while clients place orders; then check that nothing was lost or sold
    twice.

    Starts a separate shop. Exits with 0 if all nine invariants hold.
    """
    console = Console(stderr=True)
    directory = _data_directory(data)
    reports: list[RunReport] = []
    try:
        for run_seed in seed or [1]:
            run_directory = directory / f"seed-{run_seed}"
            run_directory.mkdir(parents=True, exist_ok=True)
            run_directory.chmod(0o755)
            settings = Settings(
                directory=run_directory,
                seed=run_seed,
                kills=kills,
                clients=clients,
                max_fault_seconds=max_fault_seconds,
                kafka=kafka,
                port_base=port_base,
                sign_in=sign_in,
            )
            reports.append(_run_with_progress(settings, console))
            _print_result(reports[-1], console)
            if report is not None:
                # After each run, so that a failure in the last one does not lose the hours before it.
                options = f"--kills {kills} --clients {clients} --max-fault-seconds {max_fault_seconds:g}"
                options += " --sign-in" * sign_in
                _write_report(reports, report, options)
    except StartError as e:
        console.print(f"[red]{e}[/red]")
        raise typer.Exit(2) from None
    finally:
        if data is None and all(r.clean for r in reports):
            shutil.rmtree(directory, ignore_errors=True)
    if not all(r.clean for r in reports):
        console.print(f"the data of all stores is kept in {directory}")
        raise typer.Exit(1)


def _write_report(reports: list[RunReport], path: Path, options: str) -> None:
    seeds = " ".join(f"--seed {r.seed}" for r in reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_markdown(reports, f"market chaos {seeds} {options}"), "utf-8")
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(reports), indent=1) + b"\n")


def _print_result(r: RunReport, console: Console) -> None:
    verdict = "[green]clean[/green]" if r.clean else "[red]VIOLATIONS[/red]"
    console.print(
        f"seed {r.seed}: {r.kills} kills, {r.orders_placed} orders placed, {r.duplicate_mails} duplicate mails, "
        f"{verdict}"
    )
    for check, sentences in r.violations.items():
        for sentence in sentences[:_MAX_VIOLATIONS_SHOWN]:
            console.print(f"  [red]{check}[/red]: {sentence}", highlight=False)


def _data_directory(data: Path | None) -> Path:
    """Create the directory if it does not exist, and return it. Raises BadParameter if it cannot be used."""
    try:
        if data is not None:
            data.mkdir(parents=True, exist_ok=True)
            if old := next(data.glob("seed-*"), None):
                raise typer.BadParameter(f"{data} is not empty: it has {old.name}", param_hint="--data")
        directory = data or Path(tempfile.mkdtemp(prefix="market-chaos-"))
        # PostgreSQL runs as another user if this one is root.
        directory.chmod(0o755)
    except OSError as e:
        raise typer.BadParameter(f"{e.filename}: {e.strerror}", param_hint="--data") from None
    return directory


def _run_with_progress(settings: Settings, console: Console) -> RunReport:
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"seed {settings.seed}: starting the shop", total=None)

        def on_progress(injected: int, total: int, activity: str) -> None:
            progress.update(task, completed=injected, total=total, description=f"seed {settings.seed}: {activity}")

        return asyncio.run(run(settings, on_progress=on_progress))
