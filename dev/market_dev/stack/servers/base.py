"""What each server of the local stack says of itself, and a handle that runs one by hand."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from market_dev.stack import processes as spawn


class StartError(Exception):
    """A server cannot be started: one line for the user."""


class Server:
    """One process: how it is prepared, started and known to be ready.

    `prepare` may take its time and runs in any thread; `probe` takes at most about a second.
    """

    name: str
    host = "127.0.0.1"
    # Ends it in an orderly way.
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, name: str, port: int, directory: Path, logs: Path) -> None:
        self.name = name
        self.port = port
        self.directory = directory
        self.log = logs / f"{name}.log"

    @property
    def ports(self) -> dict[str, int]:
        """Every port it listens on, by what it is for."""
        return {self.name: self.port}

    @property
    def cwd(self) -> Path:
        return self.directory

    def version(self) -> str | None:
        """Who writes the data, as `maker version`; None: no data that another version could not read."""
        return None

    def prepare(self) -> None:
        """Makes the data directory when it is not there. Raises StartError."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def before_start(self) -> None:
        """Runs before every start of the process: takes away what a dead one left."""

    def after_stop(self) -> None:
        """Runs when the process has ended, for whatever reason."""

    def command(self) -> spawn.Command:
        raise NotImplementedError

    def probe(self) -> bool:
        """Whether it can be used now. The first true answer ends the start."""
        return spawn.answers(self.port)


class Handle:
    """A server started by hand, for tests: `start`, `kill`, `restart`, `pause`, `resume`, `stop`; the port stays."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = server.host
        self.port = server.port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.server.name} is not running"
        return self.process.pid

    def start(self, seconds: float = 120) -> None:
        """Starts it and waits until it is ready. Raises StartError."""
        self.server.prepare()
        self.restart(seconds)

    def restart(self, seconds: float = 120) -> None:
        """Starts it again, on the same port and data; one that still runs is stopped first."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        deadline = time.monotonic() + seconds
        while True:
            self.server.before_start()
            self.process = spawn.spawn(self.server.command(), log=self.server.log, cwd=self.server.cwd)
            if self._until(self.server.probe, deadline):
                return
            self.kill()
            if time.monotonic() > deadline:
                raise StartError(f"{self.server.name} did not start; its log ends with:\n{tail(self.server.log)}")
            # It died at once, perhaps because its predecessor is not quite gone.
            time.sleep(0.2)

    def _until(self, probe: Callable[[], bool], deadline: float) -> bool:
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            if probe():
                return True
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """kill -9; returns when it is dead."""
        if self.process is not None:
            children = spawn.tree(self.process.pid)[1:]
            self.process.kill()
            self.process.wait()
            self.server.after_stop()
            # Children end by themselves when they notice; ours must not meet the next start.
            for child in spawn.wait_gone(children, 5):
                child.kill()

    def pause(self) -> None:
        """SIGSTOP to it and its children: connections stay open and nothing answers."""
        spawn.signal_tree(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        spawn.signal_tree(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends it in an orderly way; kills it when that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        self.resume()
        self.process.send_signal(self.server.stop_signal)
        try:
            self.process.wait(self.server.stop_seconds)
            self.server.after_stop()
        except subprocess.TimeoutExpired:
            self.kill()


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
