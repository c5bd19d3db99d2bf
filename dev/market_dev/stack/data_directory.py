"""The data directory: its lock, who wrote it, and which processes belong to it."""

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

from market_dev.stack import processes as spawn
from market_dev.stack.servers.base import StartError


class Directory:
    """Owns the lock on it as long as it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Makes the directory and takes the lock. Raises StartError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as e:
            raise StartError(f"the data directory {self.path} cannot be used: {e.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise StartError(
                f"the data directory {self.path} is in use by another `market up`{f' (pid {holder})' if holder else ''}: name another one with --data"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def end_leftovers(self) -> list[str]:
        """Ends what an earlier command left running, and answers the names. A pid that has passed to another program is left alone."""
        left = []
        for record in self._read("pids.json") or []:
            # Within a hundredth: the kernel counts in ticks, and the float went through a file.
            begun = spawn.started_at(record["pid"])
            if begun is not None and abs(begun - record["started"]) < 0.02:
                processes = spawn.tree(record["pid"])
                for process in processes:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
                spawn.wait_gone(processes, 10)
                left.append(record["name"])
        return left

    def record(self, pids: Mapping[str, int]) -> None:
        """Writes down what runs, for `end_leftovers`."""
        records = [{"name": name, "pid": pid, "started": spawn.started_at(pid)} for name, pid in pids.items()]
        write_json(self.path / "pids.json", [r for r in records if r["started"] is not None])

    def password(self) -> str:
        """PostgreSQL's, made at the first start."""
        path = self.path / "password"
        if not path.exists():
            write_text(path, secrets.token_hex(16), mode=0o600)
        return path.read_text()

    def versions(self) -> dict[str, str]:
        """Who wrote the data, by server: `maker version`."""
        return dict(self._read("versions.json") or {})

    def check_version(self, name: str, current: str) -> None:
        """Raises StartError where another maker or another major version wrote the data; remembers the current one otherwise."""
        versions = self.versions()
        written = versions.get(name)
        if written is not None and _major(written) != _major(current):
            raise StartError(
                f"the {name} data in {self.path} was written by {written}, and this is {current}: "
                f"use that version, or start with another directory (--data); nothing was changed"
            )
        if written != current:
            write_json(self.path / "versions.json", {**versions, name: current})

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise StartError(f"{self.path / name} cannot be read: {e}") from None


def _major(version: str) -> tuple[str, str]:
    maker, _, number = version.partition(" ")
    return maker, number.split(".")[0]


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replaces the file in one step: who reads it sees the old one or the new one."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(new, "w", opener=lambda path, flags: os.open(path, flags, mode)) as file:
        file.write(text)
    new.rename(path)
