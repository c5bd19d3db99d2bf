"""The mail server of the local stack: takes every mail and shows it on a page."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

from market_dev.stack import processes as spawn
from market_dev.stack.servers.base import Server


class Mail(Server):
    def __init__(
        self,
        port: int,
        smtp_port: int,
        directory: Path,
        logs: Path,
        *,
        testing: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__("mail", port, directory, logs)
        self.smtp_port = smtp_port
        self._options = (*options, *(["--testing"] if testing else []))

    @property
    def ports(self) -> dict[str, int]:
        return {"mail page": self.port, "SMTP": self.smtp_port}

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def command(self) -> spawn.Command:
        return spawn.Command(
            [
                sys.executable,
                "-m",
                "market_dev.mailcatcher",
                "--port",
                str(self.port),
                "--smtp-port",
                str(self.smtp_port),
                "--directory",
                self.directory,
                *self._options,
            ]
        )

    def probe(self) -> bool:
        return http_ok(self.port, "/healthz") and spawn.answers(self.smtp_port)


def http_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
