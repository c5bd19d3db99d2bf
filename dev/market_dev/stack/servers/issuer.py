"""The issuer of the tokens: the local provider, in which people sign in without a password, or Keycloak."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from market_dev.issuer.settings import Settings
from market_dev.stack import processes
from market_dev.stack.files import write_text
from market_dev.stack.keycloak.server import Keycloak
from market_dev.stack.servers.base import Server
from market_dev.stack.servers.mail import http_ok
from market_dev.stack.sign_in import SignIn


class Issuer(Server):
    def __init__(self, port: int, directory: Path, logs: Path, settings: Settings) -> None:
        super().__init__("issuer", port, directory, logs)
        self._settings = settings

    def prepare(self) -> None:
        super().prepare()
        # Not as an argument, which every user of the machine could read: it contains secrets.
        write_text(self._settings_file, msgspec.json.encode(self._settings).decode(), mode=0o600)

    @property
    def _settings_file(self) -> Path:
        return self.directory / "settings.json"

    def command(self) -> processes.Command:
        options = ("--port", str(self.port), "--directory", self.directory, "--settings", self._settings_file)
        return processes.Command([sys.executable, "-m", "market_dev.issuer", *options])

    def probe(self) -> bool:
        return http_ok(self.port, "/healthz")


def issuer(sign_in: SignIn, ports: Mapping[str, int], directory: Path, logs: Path) -> Server:
    """Return the issuer of a stack with these ports."""
    if sign_in.kind == "keycloak":
        return Keycloak(ports, directory, logs, sign_in)
    return Issuer(ports["issuer"], directory, logs, sign_in.provider_settings(ports))
