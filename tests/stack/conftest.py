"""Runs `market up` as a user does: as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from market_dev.stack import processes as spawn
from market_dev.stack import topology as table

_candidates = spawn.free_ports()
_given: set[int] = set()


def free_base() -> int:
    """A port base whose sixteen ports nobody listens on."""
    while True:
        base = next(_candidates)
        ports = set(table.ports(base).values())
        # Nor will those who were given a base, and have not begun yet.
        if not ports & _given and all(spawn.is_free(port) for port in ports):
            _given.update(ports)
            return base


class Up:
    """A `market up`: its process, what it wrote, and its JSON file."""

    def __init__(self, data: Path, base: int, *options: str) -> None:
        self.data = data
        self.base = base
        self.file = data.with_suffix(f".{base}.json")
        self.out = data.with_suffix(f".{base}.out")
        self._command = [sys.executable, "-m", "market_dev.commands.cli", "up"]
        self._command += ["--data", str(data), "--port-base", str(base), "--json", str(self.file), *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it has written its JSON file."""
        self.begin()
        assert self.process is not None
        deadline = time.monotonic() + 180
        while not self.file.exists():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def begin(self) -> None:
        # One that was killed could not remove its own.
        self.file.unlink(missing_ok=True)
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                self._command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                preexec_fn=spawn.bound_to_parent(),
                env={**os.environ, "COLUMNS": "200"},
            )

    def ended(self, seconds: float = 120) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        return self.process.wait(seconds)

    @property
    def said(self) -> str:
        return self.out.read_text()

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.file.read_text()))

    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        return [p for pid in self.facts["pids"].values() for p in spawn.tree(pid)]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="session")
def make_up(server_directory: Path) -> Iterator[Callable[..., Up]]:
    """Makes a `market up` on ports and, unless told otherwise, data of its own; stopped at the end."""
    made: list[Up] = []

    def make(*options: str, data: Path | None = None, base: int | None = None) -> Up:
        up = Up(data or server_directory / f"up-{len(made)}", base or free_base(), *options)
        made.append(up)
        return up

    yield make
    for up in made:
        up.stop()
        shutil.rmtree(up.data, ignore_errors=True)


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
