"""Apache Kafka with the users of the production overlay's example."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from market_dev.stack.kafka import apache

from tests.deploy.conftest import ROOT
from tests.support.ports import free_port
from tests.support.servers import KafkaHandle

STORES = ROOT / "deploy/overlays/production/stores"
PASSWORD = "secret"

# Records the arguments of each call, each in a line of its own.
RECORD = '#!/bin/bash\n{ printf "%s\\n" "${0##*/}" "$@"; echo; } >> "$RECORDED"\n'


def example_calls(folder: Path) -> list[list[str]]:
    """Return what kafka.sh runs, for the passwords of the two services."""
    (folder / "stores").mkdir()
    (folder / "secrets").mkdir()
    script = folder / "stores/kafka.sh"
    script.write_text((STORES / "kafka.sh").read_text())
    for service in ("order-service", "notification-service"):
        (folder / f"secrets/{service}.env").write_text(f"OTHER=1\nMARKET_KAFKA_PASSWORD={PASSWORD}\n")
    (folder / "bin").mkdir()
    for name in ("kafka-acls.sh", "kafka-configs.sh"):
        (folder / "bin" / name).write_text(RECORD)
        (folder / "bin" / name).chmod(0o755)
    environ = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "RECORDED": str(folder / "calls")}
    subprocess.run(
        ["bash", script], check=True, env={**environ, "BOOTSTRAP": "kafka:9093", "ADMIN": "admin.properties"}
    )
    return [call.splitlines() for call in (folder / "calls").read_text().split("\n\n") if call]


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def acl_bindings(call: list[str]) -> list[AclBinding]:
    """Return the rules that a call of kafka-acls.sh adds."""
    kind = "topic" if "--topic" in call else "group"
    operations = [call[n + 1] for n, argument in enumerate(call) if argument == "--operation"]
    return [
        AclBinding(
            ResourceType[kind.upper()],
            option(call, f"--{kind}"),
            ResourcePatternType[option(call, "--resource-pattern-type").upper()],
            option(call, "--allow-principal"),
            "*",
            AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]


class KafkaWithUsers(KafkaHandle):
    """Apache Kafka with an authorizer. `bootstrap_servers`: for the administrator; `services`: with SCRAM."""

    def __init__(self, directory: Path, logs: Path) -> None:
        port, services, controller = free_port(), free_port(), free_port()
        settings = {
            "listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{services},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{services}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        super().__init__(apache.ApacheKafka(port, controller, directory, logs, settings=settings))
        self.services = f"127.0.0.1:{services}"

    def options(self, user: str) -> dict[str, str]:
        """Return the options of a service's connection."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": PASSWORD,
        }
