"""Sign-in on the local stack: who can sign in, the secrets of the programs, and how each service is configured.

A running stack describes it in `sign-in.json` in its data directory, where the commands find it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from market_dev.issuer.settings import Client, Person, Settings
from market_dev.stack.files import write_text

Kind = Literal["local", "keycloak"]

PEOPLE = (
    Person(name="ann", roles=("buyer",), email="ann@example.test"),
    Person(name="ben", roles=("buyer",), email="ben@example.test"),
    Person(name="mia", roles=("merchant",), email="mia@example.test"),
    Person(name="olga", roles=("operator",), email="olga@example.test"),
)
AUDIENCE = "market"
INVENTORY_AUDIENCE = "market-inventory"
# The clients in which people sign in: with a browser, and by `market token`.
WEB, CLI = "market-web", "market-cli"
# The client as which the storefront signs people in.
SHOP = "market-storefront"
# The client as which `market import`, `market replay` and the demo catalogue sign in.
TOOLS = "market-tools"
# The services that call inventory.
CALLERS = ("products", "orders")
# The subjects of the services' tokens: in Keycloak the ids of their accounts, which realm.json contains.
SUBJECTS: Mapping[Kind, Mapping[str, str]] = {
    "local": {name: name for name in CALLERS},
    "keycloak": {
        "products": "00000000-0000-4000-8000-000000000002",
        "orders": "00000000-0000-4000-8000-000000000003",
    },
}
# The clients with a secret.
_PROGRAMS = (TOOLS, SHOP, *CALLERS)
_FILE = "sign-in.json"
_SECRETS_FILE = "client-secrets.json"
_PASSWORD = "people"  # noqa: S105 (a name)
_OWNER_ONLY = 0o600


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """How to sign in to a stack.

    port_base: the stack's, so that a file of another stack is not used
    secrets: by client
    password: of all people; None if they sign in without one
    """

    kind: Kind
    issuer: str
    port_base: int
    people: tuple[Person, ...]
    secrets: dict[str, str]
    password: str | None = None
    token_seconds: int = 3600

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return f"SignIn({self.kind!r}, {self.issuer!r})"

    @classmethod
    def of_stack(
        cls,
        kind: Kind,
        directory: Path,
        ports: Mapping[str, int],
        port_base: int,
        *,
        people: tuple[Person, ...] = PEOPLE,
        token_seconds: int = 3600,
    ) -> SignIn:
        """Return the sign-in of a stack with that data directory, whose secrets are generated at its first start."""
        known = _secrets(directory)
        address = f"http://127.0.0.1:{ports['issuer']}"
        return cls(
            kind=kind,
            issuer=address if kind == "local" else f"{address}/realms/market",
            port_base=port_base,
            people=people,
            secrets={client: known[client] for client in _PROGRAMS},
            password=known[_PASSWORD] if kind == "keycloak" else None,
            token_seconds=token_seconds,
        )

    def provider_settings(self, ports: Mapping[str, int]) -> Settings:
        """Return the settings of the local provider of a stack with these ports."""
        graphiql, shop = (_addresses(ports[name]) for name in ("graphql", "storefront"))
        clients = (
            Client(
                id=WEB,
                audience=AUDIENCE,
                redirect_uris=tuple(f"{address}/graphql" for address in graphiql),
            ),
            Client(
                id=SHOP,
                secret=self.secrets[SHOP],
                audience=AUDIENCE,
                redirect_uris=tuple(f"{address}/sign-in/callback" for address in shop),
                sign_out_uris=tuple(f"{address}/" for address in shop),
            ),
            Client(id=CLI, audience=AUDIENCE, redirect_uris=("http://127.0.0.1/",)),
            Client(id=TOOLS, secret=self.secrets[TOOLS], audience=AUDIENCE, roles=("merchant",)),
            *(
                Client(id=name, secret=self.secrets[name], audience=INVENTORY_AUDIENCE, roles=("service",))
                for name in CALLERS
            ),
        )
        return Settings(people=self.people, clients=clients, token_seconds=self.token_seconds)

    def configuration(self, service: str) -> dict[str, Any]:
        """Return what is merged into the configuration of the service."""
        auth: dict[str, Any] = {"mode": "required", "issuer": self.issuer, "audience": AUDIENCE}
        if self.kind == "keycloak":
            auth["roles_claim"] = "realm_access.roles"
        if service == "inventory":
            callers = {subject: name for name, subject in SUBJECTS[self.kind].items()}
            return {"auth": {**auth, "audience": INVENTORY_AUDIENCE, "callers": callers}}
        if service in CALLERS:
            identity = {"client_id": service, "client_secret": "${MARKET_CLIENT_SECRET}"}
            return {"auth": auth, "service_identity": identity}
        if service == "storefront":
            return {"auth": auth, "sign_in": {"client_id": SHOP, "client_secret": "${MARKET_CLIENT_SECRET}"}}
        # With the client's id, GraphiQL has a button to sign in.
        return {"auth": auth, "graphiql": {"client_id": WEB}} if service == "graphql" else {"auth": auth}

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment variables that the configuration of the service refers to."""
        client = SHOP if service == "storefront" else service
        return {"MARKET_CLIENT_SECRET": self.secrets[client]} if client in (SHOP, *CALLERS) else {}

    def write(self, directory: Path) -> None:
        """Write the file that the commands read; only its owner can read it."""
        write_text(directory / _FILE, msgspec.json.encode(self).decode() + "\n", mode=_OWNER_ONLY)


def read(directory: Path, port_base: int) -> SignIn | None:
    """Return the sign-in of the running stack with that data directory and port base; None if it has none."""
    try:
        found = msgspec.json.decode((directory / _FILE).read_bytes(), type=SignIn)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.port_base == port_base else None


def remove(directory: Path) -> None:
    """Remove the file that the commands read."""
    (directory / _FILE).unlink(missing_ok=True)


def _secrets(directory: Path) -> dict[str, str]:
    path = directory / _SECRETS_FILE
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
    # An earlier version may have written the file, for fewer clients.
    if missing := [name for name in (*_PROGRAMS, _PASSWORD) if name not in known]:
        known |= {name: secrets.token_urlsafe(24) for name in missing}
        write_text(path, msgspec.json.encode(known).decode() + "\n", mode=_OWNER_ONLY)
    return known


def _addresses(port: int) -> tuple[str, ...]:
    """Return how browsers on this machine reach a port."""
    return tuple(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost"))
