"""Which Kafka this machine gets: Apache Kafka where Java and Maven are there, else the one built into librdkafka."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from market_dev.stack import processes as spawn
from market_dev.stack.kafka import apache
from market_dev.stack.kafka.apache import ApacheKafka, has_broker
from market_dev.stack.servers.base import Server, StartError


class EmbeddedKafka(Server):
    kind = "embedded"

    def __init__(self, port: int, directory: Path, logs: Path, *, advertised: int | None = None) -> None:
        super().__init__("kafka", port, directory, logs)
        self._advertised = advertised or port

    def command(self) -> spawn.Command:
        return spawn.Command(
            [
                sys.executable,
                "-m",
                "market_dev.stack.kafka.embedded",
                "--port",
                str(self.port),
                "--advertised",
                str(self._advertised),
            ]
        )

    def probe(self) -> bool:
        return has_broker(self.port)


Kafka = ApacheKafka | EmbeddedKafka

Kind = Literal["auto", "apache", "embedded"]


def choose(wanted: Kind, *, kept: bool) -> tuple[Literal["apache", "embedded"], str | None]:
    """The kind to start, and in `auto` why it is not Apache Kafka. `kept`: the data directory holds Apache Kafka's data.

    May take a minute the first time, when Maven fetches the jars. Raises StartError.
    """
    if wanted == "embedded":
        return "embedded", "--kafka embedded"
    reason = apache.missing()
    if reason is None and not apache.fetched():
        try:
            apache.fetch()
        except StartError as e:
            reason = str(e)
    if reason is None:
        return "apache", None
    if wanted == "apache":
        raise StartError(f"--kafka apache: {reason}")
    if kept:
        raise StartError(f"this data directory was written with Apache Kafka, and {reason}")
    return "embedded", reason
