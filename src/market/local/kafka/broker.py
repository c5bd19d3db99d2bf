"""Which Kafka this machine gets: Apache Kafka where Java and Maven are there, else the one built into librdkafka."""

from __future__ import annotations

import sys
from pathlib import Path

from market.local import spawn
from market.local.kafka.apache import ApacheKafka, has_broker
from market.local.servers.base import Server


class EmbeddedKafka(Server):
    kind = "embedded"

    def __init__(self, port: int, directory: Path, logs: Path, *, advertised: int | None = None) -> None:
        super().__init__("kafka", port, directory, logs)
        self._advertised = advertised or port

    def command(self) -> spawn.Command:
        return spawn.Command(
            [sys.executable, "-m", "market.local.kafka.embedded", "--port", str(self.port), "--advertised", str(self._advertised)]
        )

    def probe(self) -> bool:
        return has_broker(self.port)


Kafka = ApacheKafka | EmbeddedKafka
