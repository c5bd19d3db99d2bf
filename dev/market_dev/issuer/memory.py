"""The codes and refresh tokens, in memory. They are lost when the provider stops, and people sign in again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from authlib.oauth2.rfc6749 import TokenMixin
from authlib.oidc.core import AuthorizationCodeMixin

T = TypeVar("T")
# The oldest ones are dropped first.
MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class AuthorizationCode(AuthorizationCodeMixin):
    """What a person granted to a client. `challenge`: of PKCE, by S256 (RFC 7636)."""

    client_id: str
    person: str
    redirect_uri: str
    scope: str
    nonce: str | None
    challenge: str

    code_challenge_method = "S256"

    @property
    def code_challenge(self) -> str:
        return self.challenge

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int | None:
        return None


@dataclass(frozen=True)
class RefreshToken(TokenMixin):
    """Lets a client renew the tokens of a person."""

    value: str
    client_id: str
    person: str
    scope: str

    def check_client(self, client: object) -> bool:
        return getattr(client, "id", None) == self.client_id

    def get_scope(self) -> str:
        return self.scope


class Expiring(Generic[T]):
    """Entries that are forgotten after `seconds`, or when there are too many."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[str, tuple[float, T]] = {}

    def put(self, key: str, value: T) -> None:
        while len(self._entries) >= MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (self._clock() + self._seconds, value)

    def get(self, key: str) -> T | None:
        """Return the entry, or None if there is none any more."""
        expires_at, value = self._entries.get(key, (0.0, None))
        return value if self._clock() < expires_at else None

    def remove(self, key: str) -> None:
        self._entries.pop(key, None)

    def remove_if(self, condition: Callable[[T], bool]) -> None:
        """Remove the entries that meet the condition."""
        self._entries = {key: (at, value) for key, (at, value) in self._entries.items() if not condition(value)}
