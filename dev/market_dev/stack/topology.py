"""The whole local system, declared in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from market_dev.issuer.settings import Person
from market_dev.stack.sign_in import PEOPLE, Kind

DEFAULT_PORT_BASE = 8080
DEFAULT_DATA = Path(".market")
# Ports are base + offset; the highest offset in the table is 20.
PORT_COUNT = 21
LAST_PORT_BASE = 65_515


@dataclass(frozen=True)
class Row:
    """One process of the stack.

    name: also the name of its data directory and log file
    description: for people, in the table that `market up` prints
    ports: offsets from the port base, by port name
    depends_on: the rows that it calls, which are stopped after it
    is_service: one of the shop's own services, rather than a server that they use
    migrates: has a `migrate` command, and waits until that has been run
    for_sign_in: only part of a stack in which people sign in
    """

    name: str
    description: str
    ports: Mapping[str, int]
    depends_on: tuple[str, ...] = ()
    is_service: bool = False
    migrates: bool = False
    for_sign_in: bool = False


def _service(name: str, description: str, ports: dict[str, int], *depends_on: str, migrates: bool = False) -> Row:
    return Row(name, description, ports, depends_on, is_service=True, migrates=migrates)


# In the order in which they are started.
ROWS = {
    row.name: row
    for row in (
        Row("postgres", "PostgreSQL: products and stock", {"postgres": 6}),
        Row("redis", "Valkey: cached availability", {"redis": 7}),
        Row("mongodb", "MongoDB: orders", {"mongodb": 8}),
        Row("kafka", "Kafka: events", {"kafka": 9, "kafka controller": 10}),
        Row("mail", "mail server and its web page", {"mail": 4, "smtp": 5}),
        Row("issuer", "sign-in by OpenID Connect", {"issuer": 16, "issuer management": 17}, for_sign_in=True),
        _service(
            "inventory",
            "gRPC: stock",
            {"inventory": 3, "inventory admin": 13},
            *("postgres", "issuer"),
            migrates=True,
        ),
        _service(
            "products",
            "REST: the catalogue",
            {"products": 1, "products admin": 11},
            *("postgres", "redis", "inventory", "issuer"),
            migrates=True,
        ),
        _service(
            "orders",
            "REST: orders",
            {"orders": 2, "orders admin": 12},
            *("mongodb", "kafka", "inventory", "products", "issuer"),
            migrates=True,
        ),
        _service(
            "notifications",
            "mails about orders; REST: dead letters",
            {"notifications": 20, "notifications admin": 14},
            *("kafka", "mail", "issuer"),
        ),
        _service(
            "graphql",
            "GraphQL and GraphiQL",
            {"graphql": 0, "graphql admin": 15},
            *("products", "orders", "issuer"),
        ),
        _service(
            "storefront",
            "the shop, for a browser",
            {"storefront": 18, "storefront admin": 19},
            *("graphql", "orders", "notifications", "issuer"),
        ),
    )
}
SERVICES = tuple(row.name for row in ROWS.values() if row.is_service)
# The port of a row that others call, where its name differs from the row's.
_CALLED_PORTS = {"mail": "smtp"}


def ports(base: int) -> dict[str, int]:
    """Return every port of the stack by name. For `base` see `market up --port-base`."""
    return {name: base + offset for row in ROWS.values() for name, offset in row.ports.items()}


def environment(
    service: str,
    ports: Mapping[str, int],
    *,
    password: str = "",
    cookie_secrets_file: Path | None = None,
    kafka: str = "apache",
    log_format: str = "console",
    routes: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, str]:
    """Return the environment variables that `config/<service>.yaml` refers to.

    ports: by name, as `ports()` returns them
    password: PostgreSQL's
    cookie_secrets_file: the secrets of the storefront's cookies
    kafka: "apache" or "embedded"
    routes: replaces the port of a dependency, by (service, port name); a proxy of the chaos test, for example
    """
    row = ROWS[service]
    env = {
        "MARKET_ADMIN_PORT": str(ports[f"{service} admin"]),
        "MARKET_LOG_FORMAT": log_format,
        # The embedded broker creates its topics itself.
        "MARKET_KAFKA_PARTITIONS": "12" if kafka == "apache" else "0",
        "MARKET_POSTGRES_PASSWORD": password,
        "MARKET_COOKIE_SECRETS_FILE": str(cookie_secrets_file or ""),
    }
    if service in ports:
        env["MARKET_PORT"] = str(ports[service])
    for dependency in row.depends_on:
        name = _CALLED_PORTS.get(dependency, dependency)
        env[f"MARKET_{name.upper()}_PORT"] = str((routes or {}).get((service, name), ports[name]))
    return env


def config_directory() -> Path:
    """Return the directory of the services' configuration files: in the installed package, or in the checkout."""
    package = Path(str(files("market_dev")))
    packaged = package / "config"
    return packaged if packaged.is_dir() else package.parents[1] / "config"


@dataclass(frozen=True)
class Options:
    """How to start a stack.

    data: the data directory, created if it does not exist
    port_base: the first of 21 ports
    kafka: "apache", "embedded", or "auto" (Apache Kafka if this machine can run it)
    log_format: of the services, "console" or "json"
    services: False starts the servers that the services use, without the services
    overrides: by service, values merged into its configuration file
    routes: see `environment`
    kafka_advertised: the port that Kafka tells its clients, if it is not Kafka's own; a proxy's, for example
    mail_testing: the mail server takes injected faults over HTTP
    postgres_settings: added to those of the stack, or replacing them
    sign_in: the issuer that is started, "local" or "keycloak", and whose tokens the services require; None: no sign-in
    people, token_seconds: who can sign in at the local issuer, and how long their tokens are valid
    """

    data: Path
    port_base: int = DEFAULT_PORT_BASE
    kafka: str = "auto"
    log_format: str = "console"
    services: bool = True
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    routes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    kafka_advertised: int | None = None
    mail_testing: bool = False
    postgres_settings: Mapping[str, str] = field(default_factory=dict)
    sign_in: Kind | None = None
    people: tuple[Person, ...] = PEOPLE
    token_seconds: int = 3600
