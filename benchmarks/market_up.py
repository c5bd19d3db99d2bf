"""`market up` in a process of its own: the shop as a user starts it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from market_dev.stack import processes

_MODULE = (sys.executable, "-m", "market_dev.commands.cli")


@dataclass(frozen=True)
class MarketUp:
    """A running shop. `urls` and `pids`: as in the file that `market up --json` writes. `data`: its data directory."""

    process: subprocess.Popen[bytes]
    data: Path
    urls: dict[str, Any]
    pids: dict[str, int]


@asynccontextmanager
async def market_up(
    directory: Path,
    port_base: int,
    *,
    kafka: str = "auto",
    empty: bool = False,
    command: Sequence[str | Path] = _MODULE,
) -> AsyncIterator[MarketUp]:
    """Start the shop with its data in `directory`, which is removed afterwards. Raises RuntimeError if it exits.

    `command`: the command `market`, of this build or another. `empty`: without the demo catalogue.
    """
    json_file = directory.with_name(f"{directory.name}.json")
    json_file.unlink(missing_ok=True)
    options = ["--data", directory, "--port-base", str(port_base), "--kafka", kafka, "--json", json_file]
    process = subprocess.Popen(
        [*command, "up", *options, *(["--empty"] if empty else [])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=processes.bound_to_parent(),
    )
    try:
        while not json_file.exists():
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"market up exited: {process.stderr.read().decode()[-1000:]}")
            await asyncio.sleep(0.01)
        report = json.loads(json_file.read_text())
        yield MarketUp(process, directory, report["urls"], report["pids"])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.to_thread(process.communicate, timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)
