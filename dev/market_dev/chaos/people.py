"""The clients of the chaos test as people who sign in."""

from __future__ import annotations

import asyncio
import time

from market_dev.issuer.settings import Person
from market_dev.stack.sign_in import SignIn
from market_dev.tokens import SignInFailed, person_token

# Short, so that every client renews its token during a run.
TOKEN_SECONDS = 60
_RENEW_AT = 0.5


def name_of(number: int) -> str:
    """Return the name of a client, which is the subject of its tokens and its e-mail address."""
    return f"client-{number}@chaos.test"


def people(clients: int) -> tuple[Person, ...]:
    """Return the clients as people: buyers, whose address is verified."""
    return tuple(Person(name=name_of(n), roles=("buyer",), email=name_of(n)) for n in range(clients))


class Tokens:
    """The current access token of each person.

    A token is renewed after half of its lifetime. If the issuer does not respond, the old one remains in use.
    """

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in
        self._tokens: dict[str, tuple[str, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def get(self, name: str) -> str:
        """Return a token of the person. Raises SignInFailed if there is none."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            token, fetched_at = self._tokens.get(name, ("", 0.0))
            age = time.monotonic() - fetched_at
            if not token or age > _RENEW_AT * self._sign_in.token_seconds:
                started_at = time.monotonic()
                try:
                    token = await person_token(self._sign_in, name)
                except SignInFailed:
                    if not token or age > self._sign_in.token_seconds:
                        raise
                else:
                    self._tokens[name] = token, started_at
            return token
