"""Chooses the broker: Apache Kafka if Java and Maven are installed, else the one embedded in librdkafka."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from market_dev.stack import processes
from market_dev.stack.kafka import apache
from market_dev.stack.kafka.apache import ApacheKafka, has_broker
from market_dev.stack.servers.base import Server, StartError


class EmbeddedKafka(Server):
    """The broker embedded in librdkafka, in memory. `advertised`: the port that clients connect to, default `port`."""

    kind = "embedded"

    def __init__(self, port: int, directory: Path, logs: Path, *, advertised: int | None = None) -> None:
        super().__init__("kafka", port, directory, logs)
        self._advertised = advertised or port

    def command(self) -> processes.Command:
        return processes.Command(
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


def choose(wanted: Kind, *, has_data: bool) -> tuple[Literal["apache", "embedded"], str | None]:
    """Return the kind to start, and the reason if it is the embedded one.

    `has_data`: the data directory holds data of Apache Kafka, so the embedded broker must not be started instead.
    May take a minute the first time, when Maven downloads the jars. Raises StartError.
    """
    if wanted == "embedded":
        return "embedded", "--kafka embedded"
    reason = apache.why_unavailable()
    if reason is None and not apache.is_downloaded():
        try:
            apache.download()
        except StartError as e:
            reason = str(e)
    if reason is None:
        return "apache", None
    if wanted == "apache":
        raise StartError(f"--kafka apache: {reason}")
    if has_data:
        raise StartError(f"this data directory was written by Apache Kafka, which cannot be started: {reason}")
    return "embedded", reason
