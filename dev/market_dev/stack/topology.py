"""The whole local system, declared in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

DEFAULT_PORT_BASE = 8080
# The highest offset in the table is 15.
LAST_PORT_BASE = 65_520


@dataclass(frozen=True)
class Row:
    """One process.

    `ports`: offsets from the port base, by name; `uses`: which other rows it calls, and so must outlive it;
    `migrates`: it has a `migrate` command, and waits until that is done.
    """

    name: str
    what: str
    ports: Mapping[str, int]
    uses: tuple[str, ...] = ()
    service: bool = False
    migrates: bool = False


TABLE = (
    Row("postgres", "PostgreSQL: goods and stock", {"postgres": 6}),
    Row("redis", "Valkey: what is available", {"redis": 7}),
    Row("mongodb", "MongoDB: the orders", {"mongodb": 8}),
    Row("kafka", "Kafka: what happened", {"kafka": 9, "kafka controller": 10}),
    Row("mail", "mail server, and its page", {"mail": 4, "smtp": 5}),
    Row(
        "inventory",
        "gRPC: the stock",
        {"inventory": 3, "inventory admin": 13},
        ("postgres",),
        service=True,
        migrates=True,
    ),
    Row(
        "products",
        "REST: the catalogue",
        {"products": 1, "products admin": 11},
        ("postgres", "redis", "inventory"),
        service=True,
        migrates=True,
    ),
    Row(
        "orders",
        "REST: the orders",
        {"orders": 2, "orders admin": 12},
        ("mongodb", "kafka", "inventory", "products"),
        service=True,
        migrates=True,
    ),
    Row("notifications", "mails about orders", {"notifications admin": 14}, ("kafka", "mail"), service=True),
    Row("graphql", "GraphQL, and its page", {"graphql": 0, "graphql admin": 15}, ("products", "orders"), service=True),
)

ROWS = {row.name: row for row in TABLE}
SERVICES = tuple(row.name for row in TABLE if row.service)
# The port of a row that others call, where it is not the one of the same name.
_CALLED = {"mail": "smtp"}


def ports(base: int) -> dict[str, int]:
    """Every port of the stack by name. For `base` see `market up --port-base`."""
    return {name: base + offset for row in TABLE for name, offset in row.ports.items()}


def environment(
    service: str,
    ports: Mapping[str, int],
    *,
    password: str = "",
    kafka: str = "apache",
    log_format: str = "console",
    routes: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, str]:
    """The variables that `config/<service>.yaml` names.

    `routes`: another port for what a service calls, as (service, port's name); a proxy of the fault suite, say.
    """
    row = ROWS[service]
    env = {
        "MARKET_ADMIN_PORT": str(ports[f"{service} admin"]),
        "MARKET_LOG_FORMAT": log_format,
        # The embedded broker makes its topics itself.
        "MARKET_KAFKA_PARTITIONS": "12" if kafka == "apache" else "0",
        "MARKET_POSTGRES_PASSWORD": password,
    }
    if service in ports:
        env["MARKET_PORT"] = str(ports[service])
    for used in row.uses:
        name = _CALLED.get(used, used)
        env[f"MARKET_{name.upper()}_PORT"] = str((routes or {}).get((service, name), ports[name]))
    return env


def config_directory() -> Path:
    """Where the services' configuration files are: in an installed package, or beside `src` in a checkout."""
    package = Path(str(files("market_dev")))
    inside = package / "config"
    return inside if inside.is_dir() else package.parents[1] / "config"


@dataclass(frozen=True)
class Options:
    """How a stack is to be started.

    `overrides`: by service, what is laid over its configuration file; for tests. `kafka_advertised`: the port that
    Kafka's clients are told; a proxy's, say. `mail_testing`: the mail server misbehaves on demand.
    """

    data: Path
    port_base: int = DEFAULT_PORT_BASE
    kafka: str = "auto"
    log_format: str = "console"
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    routes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    kafka_advertised: int | None = None
    mail_testing: bool = False
