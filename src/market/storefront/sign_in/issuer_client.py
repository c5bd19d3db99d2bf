"""The storefront as a client of the issuer: OpenID Connect with the authorization code and PKCE (RFC 6749, RFC 7636).

Signatures and claims are verified by the kit, which also limits the duration and size of responses.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from market.kit.auth.claims import identify
from market.kit.auth.config import Auth
from market.kit.auth.fetch import FetchError, fetch
from market.kit.auth.issuer import Endpoints, Issuer
from market.kit.auth.keys import Keys
from market.kit.auth.rejection import TokenRejected
from market.kit.auth.verifier import Verifier
from market.kit.errors import BadInput, Unavailable
from market.kit.process import logs
from market.kit.process.tasks import periodic_tasks
from market.kit.text import validate_display_text
from market.storefront.config import SignIn as Settings
from market.storefront.sign_in.records import Attempt, Grant, Person

log = logs.get_logger("sign-in")

_MAX_RESPONSE_BYTES = 65_536
# A token is renewed once this fraction of its lifetime has passed.
_RENEW_AFTER = 0.7
# The pause after a failure to fetch the discovery document, while an earlier one is known.
_RETRY_SECONDS = 15.0
_MAX_NAME_CHARACTERS = 200


class Refused(Exception):
    """The issuer has refused a request, or its response is invalid. The text contains no token."""


class _TokenResponse(msgspec.Struct, frozen=True):
    access_token: str
    refresh_token: str = ""
    id_token: str = ""


class _ErrorResponse(msgspec.Struct, frozen=True):
    error: str = ""


class IssuerClient:
    """Signs people in at an issuer.

    issuer, keys: of the issuer that `auth` names. clock: returns the time in seconds since 1970.
    """

    def __init__(
        self, auth: Auth, settings: Settings, issuer: Issuer, keys: Keys, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._auth = auth
        self._settings = settings
        self._issuer = issuer
        self._clock = clock
        self._access_tokens = Verifier(auth, keys, {})
        # ID tokens are issued for the client, and have another type than access tokens.
        own = msgspec.structs.replace(auth, audience=settings.client_id, require_access_token_type=False)
        self._id_tokens = Verifier(own, keys, {})
        self._endpoints: Endpoints | None = None
        self._discover_at = -float("inf")

    async def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return the address at which a person signs in. Raises Unavailable."""
        endpoint = (await self._find_endpoints()).authorization
        challenge = urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
        return _with_query(
            endpoint,
            {
                **self._settings.authorization_parameters,
                "response_type": "code",
                "client_id": self._settings.client_id,
                "redirect_uri": redirect_uri,
                "scope": self._settings.scope,
                "state": attempt.state,
                "nonce": attempt.nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            },
        )

    async def sign_out_url(self, id_token: str, return_uri: str) -> str | None:
        """Return the address at which a person signs out (OpenID Connect RP-Initiated Logout 1.0).

        None if the issuer has none. Raises Unavailable.
        """
        endpoint = (await self._find_endpoints()).end_session
        if endpoint is None:
            return None
        parameters = {"client_id": self._settings.client_id, "post_logout_redirect_uri": return_uri}
        return _with_query(endpoint, parameters | ({"id_token_hint": id_token} if id_token else {}))

    async def exchange(self, code: str, attempt: Attempt, redirect_uri: str) -> Grant:
        """Exchange an authorization code for tokens. Raises Refused and Unavailable."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        response = await self._request_tokens(form)
        try:
            claims, _ = await self._id_tokens.read_claims(response.id_token, self._clock())
        except TokenRejected as e:
            raise Refused(f"the ID token {e.reason}") from None
        if claims.get("nonce") != attempt.nonce:
            raise Refused("the ID token has another nonce")
        if claims.get("azp", self._settings.client_id) != self._settings.client_id:
            raise Refused("the ID token was issued for another client")
        return await self._grant(response, _display_name(claims))

    async def renew(self, refresh_token: str, person: Person) -> Grant:
        """Return a new grant for the person. Raises Refused and Unavailable."""
        response = await self._request_tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})
        grant = await self._grant(response, person.name)
        if grant.person.subject != person.subject:
            raise Refused("the access token is that of another person")
        # If the issuer sends no new refresh token, the old one stays valid (RFC 6749, section 6).
        return grant if grant.refresh_token else msgspec.structs.replace(grant, refresh_token=refresh_token)

    def check_issuer(self, name: str) -> None:
        """Raise Refused if the parameter `iss` of an authorization response names another issuer (RFC 9207)."""
        if name and name != self._issuer.url:
            raise Refused("the authorization response is of another issuer")

    async def _grant(self, response: _TokenResponse, name: str) -> Grant:
        """Return the grant in a response. Raises Refused if the shop would not accept the access token."""
        now = self._clock()
        try:
            claims, _ = await self._access_tokens.read_claims(response.access_token, now)
            identity = identify(claims, self._auth, {})
        except TokenRejected as e:
            raise Refused(f"the access token {e.reason}") from None
        expires_at = float(claims["exp"])
        return Grant(
            # With some issuers, ID token and access token differ in `sub`. The services use that of the access token.
            person=Person(
                identity.subject, name or identity.subject, tuple(sorted(role.value for role in identity.roles))
            ),
            token=response.access_token,
            expires_at=expires_at,
            renew_at=now + (expires_at - now) * _RENEW_AFTER,
            refresh_token=response.refresh_token,
            id_token=response.id_token,
        )

    async def _find_endpoints(self) -> Endpoints:
        now = self._clock()
        if self._endpoints is not None:
            if now < self._discover_at:
                return self._endpoints
            # Other requests use the earlier endpoints while this one fetches them again.
            self._discover_at = now + _RETRY_SECONDS
        try:
            self._endpoints = await self._issuer.endpoints()
            self._discover_at = self._clock() + self._auth.refresh_seconds
        except FetchError as e:
            if self._endpoints is None:
                raise Unavailable(f"the issuer is unavailable: {e}", retry_after=5) from None
        return self._endpoints

    async def _request_tokens(self, form: Mapping[str, str]) -> _TokenResponse:
        settings = self._settings
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if settings.client_secret is None:
            form = {**form, "client_id": settings.client_id}
        else:
            # RFC 6749, section 2.3.1: id and secret are form-encoded first.
            pair = f"{quote(settings.client_id, safe='')}:{quote(settings.client_secret, safe='')}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        endpoint = (await self._find_endpoints()).token
        try:
            response = await fetch(
                endpoint,
                method="POST",
                headers=headers,
                body=urlencode(form).encode(),
                tls=self._issuer.tls,
                seconds=self._auth.timeout_seconds,
                max_bytes=_MAX_RESPONSE_BYTES,
            )
        except FetchError as e:
            raise Unavailable(f"the issuer is unavailable: {e}", retry_after=5) from None
        if response.status != 200:
            error = _error_of(response.body)
            if error == "invalid_grant":
                raise Refused("the issuer has refused the grant")
            # For example because the client is configured wrongly. Signing in again would not help.
            log.error("token request refused", status=response.status, error=error[:64])
            raise Unavailable(f"the token endpoint returned status {response.status}", retry_after=5)
        try:
            return msgspec.json.decode(response.body, type=_TokenResponse)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Unavailable("the token endpoint returned an unreadable response") from None


@asynccontextmanager
async def issuer_client(
    auth: Auth, settings: Settings, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[IssuerClient]:
    """Yield a client that keeps the issuer's keys up to date."""
    issuer = Issuer(auth)
    keys = Keys(
        issuer.fetch_keys,
        on_removed=lambda _: None,
        refresh_seconds=auth.refresh_seconds,
        min_refetch_seconds=auth.min_refetch_seconds,
    )
    try:
        async with periodic_tasks({"issuer-keys": keys.refresh}):
            yield IssuerClient(auth, settings, issuer, keys, clock=clock)
    finally:
        await keys.close()


def _with_query(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}"


def _error_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_ErrorResponse).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def _display_name(claims: Mapping[str, Any]) -> str:
    """Return a person's display name: the first usable claim of name, account and address; "" if there is none."""
    for claim in ("name", "preferred_username", "email"):
        name = claims.get(claim)
        if isinstance(name, str):
            with suppress(BadInput):
                return validate_display_text(claim, name, min_length=1, max_length=_MAX_NAME_CHARACTERS)
    return ""
