"""How the commands sign in: programs with a client secret, and people for `market token`.

A secret comes from the environment or from the data directory of the local stack, never from an argument, which every
user of the machine could read.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import msgspec

from market_dev.stack import sign_in
from market_dev.stack.sign_in import CLI, TOOLS, SignIn

if TYPE_CHECKING:
    # Imported where somebody signs in: with the cryptography, it takes 0.3 s.
    from market.kit.auth.config import Auth
    from market.kit.auth.service_tokens import ServiceTokens

_VARIABLES = ("MARKET_ISSUER", "MARKET_CLIENT_ID", "MARKET_CLIENT_SECRET")
_TIMEOUT_SECONDS = 10.0
_MAX_RESPONSE_BYTES = 256 * 1024
# Nothing listens there: the code is taken from the redirect (RFC 8252, section 7.3).
_REDIRECT_URI = "http://127.0.0.1/"


class SignInFailed(Exception):
    """There is no token; the message is written for the user."""


@dataclass(frozen=True)
class Credentials:
    """The credentials of a program."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)

    @classmethod
    def find(cls, data: Path, port_base: int, url: str | None, environ: Mapping[str, str]) -> Credentials | None:
        """Return the credentials in the environment, or those of the local stack; None if there are none.

        url: the address of another shop, for which those of the local stack are not used. Raises SignInFailed.
        """
        values = [environ.get(name, "") for name in _VARIABLES]
        if any(values):
            if missing := [name for name, value in zip(_VARIABLES, values, strict=True) if not value]:
                raise SignInFailed(f"{', '.join(missing)} must be set, too")
            return cls(*values)
        found = None if url is not None else sign_in.read(data, port_base)
        return None if found is None else cls.of_stack(found)

    @classmethod
    def of_stack(cls, stack: SignIn, client_id: str = TOOLS) -> Credentials:
        """Return the credentials of a client of the local stack."""
        return cls(stack.issuer, client_id, stack.secrets[client_id])

    def tokens(self) -> AbstractAsyncContextManager[ServiceTokens | None]:
        """Return a context manager with the program's tokens, which are renewed in time. Raises SignInFailed."""
        from market.kit.auth.config import ServiceIdentity
        from market.kit.auth.service_tokens import service_tokens

        identity = ServiceIdentity(client_id=self.client_id, client_secret=self.client_secret)
        return service_tokens(identity, _auth(self.issuer))


def _auth(issuer: str) -> Auth:
    from market.kit.auth.config import Auth

    try:
        return Auth(issuer=issuer)
    except ValueError as e:
        raise SignInFailed(str(e)) from None


async def person_token(stack: SignIn, name: str) -> str:
    """Return an access token of a person of the local stack. Raises SignInFailed."""
    from market.kit.auth.fetch import FetchError, fetch
    from market.kit.auth.issuer import Issuer

    if name not in (names := [person.name for person in stack.people]):
        raise SignInFailed(f"nobody is called {name}: {', '.join(names)} can sign in")
    if stack.password is not None:
        form = {"grant_type": "password", "username": name, "password": stack.password, "scope": "openid"}
    else:
        form = await _choose(stack.issuer, name)
    issuer = Issuer(_auth(stack.issuer))
    try:
        response = await fetch(
            await issuer.token_endpoint(),
            method="POST",
            headers={"content-type": "application/x-www-form-urlencoded"},
            body=urlencode({**form, "client_id": CLI}).encode(),
            tls=issuer.tls,
            seconds=_TIMEOUT_SECONDS,
            max_bytes=_MAX_RESPONSE_BYTES,
        )
        return msgspec.json.decode(response.body, type=_TokenResponse).access_token
    except FetchError as e:
        raise SignInFailed(str(e)) from None
    except msgspec.DecodeError:
        raise SignInFailed(f"{name} cannot sign in: the issuer responds with status {response.status}") from None


class _TokenResponse(msgspec.Struct, frozen=True):
    access_token: str


async def _choose(issuer: str, name: str) -> dict[str, str]:
    """Choose the person as on the provider's page, and return the form that exchanges the code for a token (PKCE)."""
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    query = {
        "response_type": "code",
        "client_id": CLI,
        "redirect_uri": _REDIRECT_URI,
        "scope": "openid email",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(f"{issuer}/authorize", params=query, data={"person": name}, allow_redirects=False) as response,
        ):
            found = parse_qs(urlsplit(response.headers.get("Location", "")).query)
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        raise SignInFailed(f"no response from the issuer: {e or type(e).__name__}") from None
    if found.get("state") != [state] or "code" not in found:
        raise SignInFailed(f"{name} cannot sign in: {found.get('error', ['the issuer sent no code'])[0]}")
    return {
        "grant_type": "authorization_code",
        "code": found["code"][0],
        "redirect_uri": _REDIRECT_URI,
        "code_verifier": verifier,
    }
