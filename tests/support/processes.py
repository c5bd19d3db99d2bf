"""Processes of the project as tests run them: one service, or the whole shop by `market up`."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import yaml
from market_dev.stack import processes

from tests.support.waiting import PATIENCE, until, wait_until

_numbers = itertools.count()


class ServiceProcess:
    """One service in a process of its own, with its own configuration file. Start it from the main thread.

    `command` is what Python runs, by default `-m market.<service>`. A `testing` configuration gets a directory for
    armed failure points. The process is killed when the test run is killed.
    """

    def __init__(
        self,
        service: str,
        config: Mapping[str, Any],
        directory: Path,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.points = directory / "points"
        self.points.mkdir(parents=True, exist_ok=True)
        self.config: dict[str, Any] = dict(config)
        if config.get("testing"):
            self.config["faults"] = {"directory": str(self.points), **config.get("faults", {})}
        self.config_file = directory / f"{service}-{next(_numbers)}.yaml"
        self.config_file.write_text(yaml.safe_dump(self.config), "utf-8")
        self.log_file = self.config_file.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self._command = tuple(command) or ("-m", f"market.{service}")
        self._env = {"CONFIG_PATH": str(self.config_file), **(env or {})}

    @property
    def admin_port(self) -> int:
        return int(self.config["admin"]["port"])

    @property
    def log(self) -> str:
        """Everything that its starts have written to standard output and standard error."""
        return self.log_file.read_text("utf-8") if self.log_file.exists() else ""

    def arm(self, point: str, action: str = "crash") -> None:
        """Let the process crash, pause or fail when it next reaches the failure point."""
        # Renamed, because a process that runs may reach the point while the file is being written.
        written = self.points / f"{point}.written"
        written.write_text(action)
        written.rename(self.points / point)

    def reached(self, point: str) -> bool:
        """Return whether the process has reached the armed failure point."""
        return (self.points / f"{point}.done").exists()

    def start(self, *arguments: str) -> None:
        """Start the process; `arguments` name another command than serving, such as `migrate`."""
        command = processes.Command([sys.executable, *self._command, *arguments], env=self._env)
        self.process = processes.spawn(command, log=self.log_file)

    def get(self, path: str, port: int | None = None) -> tuple[int, Any]:
        """Return status and JSON body of the admin port (or another `port`); status 0 if nothing responds."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.admin_port, timeout=PATIENCE)
        with closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, json.loads(response.read() or b"null")
            except (OSError, http.client.HTTPException):
                return 0, None

    def is_ready(self) -> bool:
        """Return what /readyz says. Raises AssertionError with the log if the process has exited."""
        assert self.process is not None
        assert self.process.poll() is None, self.log
        return self.get("/readyz")[0] == 200

    async def ready(self, seconds: float = 2 * PATIENCE) -> None:
        """Wait until the process is ready."""
        await until(lambda: asyncio.to_thread(self.is_ready), seconds, lambda: f"ready\n{self.log}")

    def wait_ready(self, seconds: float = 2 * PATIENCE) -> None:
        """`ready` for tests without an event loop."""
        wait_until(self.is_ready, seconds, lambda: f"ready\n{self.log}")

    def terminate(self) -> None:
        """Send SIGTERM."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def exited(self, seconds: float = PATIENCE) -> int:
        """Wait until the process has exited, and return its exit status (negative: the signal that killed it)."""
        assert self.process is not None
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), seconds)

    def wait_exited(self, seconds: float = PATIENCE) -> int:
        """`exited` for tests without an event loop."""
        assert self.process is not None
        return self.process.wait(seconds)

    async def stop(self, seconds: float = PATIENCE) -> int:
        """Send SIGTERM if the process runs, and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.terminate()
        return await self.exited(seconds)

    def kill(self) -> None:
        """Send SIGKILL if the process runs, and wait until it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class MarketUp:
    """`market up` as a process, with its output and the JSON file that it writes when the shop is ready."""

    def __init__(self, data: Path, port_base: int, *options: str) -> None:
        self.data = data
        self.port_base = port_base
        self.json_file = data.with_name(f"{data.name}.{port_base}.json")
        self.log_file = data.with_name(f"{data.name}.{port_base}.out")
        self._command = [sys.executable, "-m", "market_dev.commands.cli", "up"]
        self._command += ["--data", str(data), "--port-base", str(port_base), "--json", str(self.json_file), *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 240) -> None:
        """Start the shop and wait until it is ready."""
        self.spawn()
        self.wait_ready(seconds)

    def spawn(self) -> None:
        """Start the process without waiting."""
        # A process that was killed could not remove its file.
        self.json_file.unlink(missing_ok=True)
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=processes.bound_to_parent(),
                env={**os.environ, "COLUMNS": "200"},
            )

    def wait_ready(self, seconds: float = 240) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            if self.json_file.exists():
                return True
            assert self.process.poll() is None, f"market up exited with {self.process.returncode}:\n{self.output}"
            return False

        wait_until(is_ready, seconds, lambda: f"market up is ready\n{self.output}", interval=0.05)

    def exit_status(self, seconds: float = 120) -> int:
        """Wait until the process has exited, and return its status."""
        assert self.process is not None
        return self.process.wait(seconds)

    @property
    def output(self) -> str:
        """What it has printed, standard output and standard error together."""
        return self.log_file.read_text()

    @property
    def urls(self) -> dict[str, Any]:
        return dict(self.report["urls"])

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.report["pids"])

    @property
    def report(self) -> dict[str, Any]:
        """The JSON file: `urls` and `pids`."""
        return dict(json.loads(self.json_file.read_text()))

    def process_trees(self) -> list[psutil.Process]:
        """Return every process of the shop with its descendants."""
        return [process for pid in self.pids.values() for process in processes.tree(pid)]

    def stop(self) -> int | None:
        """Stop it gracefully, or kill it after two minutes; return its exit status, None if it was never started."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode
