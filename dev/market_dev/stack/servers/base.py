"""How each server of the local stack is prepared, started and probed."""

from __future__ import annotations

import signal
from pathlib import Path

from market_dev.stack import processes


class StartError(Exception):
    """A server cannot be started; the message is written for the user."""


class Server:
    """One process of the local stack. All methods but `command` may block and are called in any thread."""

    name: str
    host = "127.0.0.1"
    # For a graceful stop, which may take `stop_seconds`.
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, name: str, port: int, directory: Path, logs: Path) -> None:
        self.name = name
        self.port = port
        self.directory = directory
        self.log = logs / f"{name}.log"

    @property
    def ports(self) -> dict[str, int]:
        """Every port it listens on, by purpose."""
        return {self.name: self.port}

    @property
    def cwd(self) -> Path:
        return self.directory

    def version(self) -> str | None:
        """Return what writes the data, as `package version`, or None if any version can read the data."""
        return None

    def prepare(self) -> None:
        """Create the data directory if it does not exist. Raises StartError."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def before_start(self) -> None:
        """Run before every start of the process: clean up after one that was killed."""

    def after_stop(self) -> None:
        """Run after the process has exited for any reason."""

    def command(self) -> processes.Command:
        """Return what to run."""
        raise NotImplementedError

    def probe(self) -> bool:
        """Return whether it can be used now; takes about a second at most."""
        return processes.is_listening(self.port)


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
