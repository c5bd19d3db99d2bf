"""One of the shop's services as a process of the local stack."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from market_dev.stack import processes
from market_dev.stack.servers.base import Server
from market_dev.stack.servers.mail import http_ok


class Service(Server):
    stop_seconds = 25.0  # Longer than the configured grace period for requests in flight.

    def __init__(
        self, name: str, ports: Mapping[str, int], directory: Path, logs: Path, *, config: Path, env: Mapping[str, str]
    ) -> None:
        super().__init__(name, next(iter(ports.values())), directory, logs)
        self._ports = dict(ports)
        self.admin_port = ports[f"{name} admin"]
        self.env = {**env, "CONFIG_PATH": str(config)}

    @property
    def ports(self) -> dict[str, int]:
        return self._ports

    def command(self) -> processes.Command:
        return processes.Command([sys.executable, "-m", f"market.{self.name}"], self.env)

    def probe(self) -> bool:
        return http_ok(self.admin_port, "/readyz")

    def unready_reasons(self) -> str:
        """Return the failed readiness checks with their reasons, as the service reports them."""
        connection = http.client.HTTPConnection(self.host, self.admin_port, timeout=2)
        with closing(connection), suppress(OSError, http.client.HTTPException, ValueError):
            connection.request("GET", "/readyz")
            with connection.getresponse() as response:
                found = json.loads(response.read()).get("reasons", {})
            return "; ".join(f"{name}: {reason}" for name, reason in found.items())
        return "no response"
