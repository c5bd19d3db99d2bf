"""The mail catcher: accepts every mail and shows it on a web page."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

from market_dev.stack import processes
from market_dev.stack.servers.base import Server


class Mail(Server):
    """`testing`: `POST /api/faults` injects faults. `options` are passed to `python -m market_dev.mailcatcher`."""

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

    def command(self) -> processes.Command:
        return processes.Command(
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
        return http_ok(self.port, "/healthz") and processes.is_listening(self.smtp_port)


def http_ok(port: int, path: str) -> bool:
    """Return whether GET returns status 200 within a second."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
