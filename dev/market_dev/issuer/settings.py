"""The settings of the provider, read from a file: people who can sign in, and clients that may request tokens."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import msgspec


class InvalidSettings(Exception):
    """The settings cannot be used; the message is written for the user."""


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Somebody who can sign in. `name` is the subject of the tokens, `roles` are those of the shop."""

    name: str
    roles: tuple[str, ...] = ()
    email: str | None = None
    email_verified: bool = True


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program that requests tokens.

    secret: None for a public client
    audience, roles: what its tokens are for, and the roles of the client itself
    redirect_uris: where people may be redirected to; a URI of the loopback address without a port allows each port.
        People sign in at a client with such URIs; a client without signs in as itself, with its secret.
    sign_out_uris: where people may be redirected to after they have signed out
    """

    id: str
    secret: str | None = None
    audience: str
    roles: tuple[str, ...] = ()
    redirect_uris: tuple[str, ...] = ()
    sign_out_uris: tuple[str, ...] = ()

    @property
    def is_for_people(self) -> bool:
        return bool(self.redirect_uris)

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"Client({self.id!r})"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`token_seconds`: how long an access token is valid; `refresh_seconds`: the same for a refresh token."""

    people: tuple[Person, ...] = ()
    clients: tuple[Client, ...] = ()
    token_seconds: int = 3600
    refresh_seconds: int = 12 * 3600


def load(path: Path) -> Settings:
    """Return the settings in a JSON file. Raises InvalidSettings."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except OSError as e:
        raise InvalidSettings(f"{path} cannot be read: {e.strerror}") from None
    except msgspec.DecodeError as e:
        raise InvalidSettings(f"{path}: {e}") from None


def require_loopback(host: str) -> None:
    """Raise InvalidSettings unless the address is one of this machine's loopback interface.

    Anybody who reaches the provider can sign in as anybody.
    """
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidSettings(f"--host must be a loopback address such as 127.0.0.1, got {host}")
