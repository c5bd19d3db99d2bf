"""A shop that `market up --sign-in` runs, with the local issuer or Keycloak, and the tokens of its people."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from market_dev import tokens
from market_dev.stack import sign_in
from market_dev.stack.sign_in import Kind, SignIn
from market_dev.tokens import Credentials

from tests.support.ports import free_port_base
from tests.support.processes import MarketUp
from tests.support.waiting import PATIENCE


@dataclass
class SignedInShop:
    """A running shop. `subjects`: those of the tokens, by person."""

    up: MarketUp
    sign_in: SignIn
    http: httpx.AsyncClient
    people: dict[str, str]
    subjects: dict[str, str]

    async def program_token(self, client_id: str) -> str:
        """Return a token of a program."""
        async with Credentials.of_stack(self.sign_in, client_id).tokens() as source:
            assert source is not None
            return await source.get(PATIENCE)

    async def send(self, service: str, method: str, path: str, token: str | None, **request: Any) -> httpx.Response:
        """Send a request to a service, with the token if there is one."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= request.pop("headers", {})
        return await self.http.request(method, self.up.urls[service] + path, headers=headers, **request)


@asynccontextmanager
async def running_shop(kind: Kind, directory: Path, *options: str) -> AsyncIterator[SignedInShop]:
    """Run a shop whose tokens come from the issuer of that kind."""
    up = MarketUp(directory / "data", free_port_base(), "--sign-in", kind, *options)
    try:
        # Keycloak builds itself for its options at the first start.
        up.start(600 if kind == "keycloak" else 240)
        stack = sign_in.read(up.data, up.port_base)
        assert stack is not None, "the stack says how to sign in"
        people = {person.name: await tokens.person_token(stack, person.name) for person in stack.people}
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            yield SignedInShop(up, stack, http, people, {name: subject_of(token) for name, token in people.items()})
    finally:
        status = up.stop()
    assert status == 0, f"market up exited with {status}:\n{up.output}"


def subject_of(token: str) -> str:
    """Return the subject that a token names, without verifying it."""
    payload = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])
