"""The data directory: its lock, which version wrote the data, and which processes belong to it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from market_dev.stack import processes
from market_dev.stack.files import write_text
from market_dev.stack.servers.base import StartError


class DataDirectory:
    """Holds the directory's lock from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Create the directory if it does not exist, and take its lock. Raises StartError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as e:
            raise StartError(f"the data directory {self.path} cannot be used: {e.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise StartError(
                f"the data directory {self.path} is in use by another `market up`{f' (pid {pid})' if pid else ''}: "
                "choose another one with --data"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill_leftovers(self) -> list[str]:
        """Kill what an earlier command left running, and return the names.

        A recorded pid that now belongs to another program, which its start time shows, is left alone.
        """
        killed = []
        for record in self._read("pids.json") or []:
            # To a hundredth of a second: the kernel counts in ticks, and the float went through a file.
            started = processes.started_at(record["pid"])
            if started is not None and abs(started - record["started"]) < 0.02:
                tree = processes.tree(record["pid"])
                for process in tree:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                processes.wait_gone(tree, 10)
                killed.append(record["name"])
        return killed

    def record(self, pids: Mapping[str, int]) -> None:
        """Write the running processes to disk, for `kill_leftovers`."""
        records = [{"name": name, "pid": pid, "started": processes.started_at(pid)} for name, pid in pids.items()]
        write_json(self.path / "pids.json", [r for r in records if r["started"] is not None])

    def password(self) -> str:
        """Return PostgreSQL's password, generated at the first start."""
        return self._secret_file("password").read_text()

    def cookie_secrets_file(self) -> Path:
        """Return the file with the secrets of the storefront's cookies, one per line, generated at the first start."""
        return self._secret_file("cookie-secret")

    def _secret_file(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            write_text(path, secrets.token_hex(16), mode=0o600)
        return path

    def versions(self) -> dict[str, str]:
        """Return what wrote the data, by server, as `package version`."""
        return dict(self._read("versions.json") or {})

    def check_version(self, name: str, current: str) -> None:
        """Record the current version of the server.

        Raises StartError, and changes nothing, if the data was written by another package or another major version.
        """
        versions = self.versions()
        written_by = versions.get(name)
        if written_by is not None and _major(written_by) != _major(current):
            raise StartError(
                f"the {name} data in {self.path} was written by {written_by}, and this is {current}: "
                f"use that version, or start with another directory (--data); nothing was changed"
            )
        if written_by != current:
            write_json(self.path / "versions.json", {**versions, name: current})

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise StartError(f"{self.path / name} cannot be read: {e}") from None


def _major(version: str) -> tuple[str, str]:
    package, _, number = version.partition(" ")
    return package, number.split(".")[0]


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
