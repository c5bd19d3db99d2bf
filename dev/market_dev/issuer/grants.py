"""The grants of the provider: Authlib's, with the parts that it leaves to applications: clients, people and storage."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import ClientMixin, InvalidRequestError, OAuth2Request, scope_to_list
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from authlib.oidc.core.grants import OpenIDCode
from joserfc.jwk import KeySet

from market_dev.issuer.keys import ALGORITHM
from market_dev.issuer.memory import AuthorizationCode, Expiring, RefreshToken
from market_dev.issuer.settings import Client, Person, Settings

SCOPES = ("openid", "email", "roles")
GRANT_TYPES = ("authorization_code", "refresh_token", "client_credentials")
_CODE_SECONDS = 60.0
_SECRET_METHODS = ("client_secret_basic", "client_secret_post")


@dataclass(frozen=True)
class KnownClient(ClientMixin):
    """A client as Authlib expects it."""

    settings: Client

    @property
    def id(self) -> str:
        return self.settings.id

    @property
    def is_public(self) -> bool:
        return self.settings.secret is None

    def get_client_id(self) -> str:
        return self.id

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(name for name in scope_to_list(scope) or () if name in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        allowed = self.settings.redirect_uris
        return redirect_uri in allowed or _without_port(redirect_uri) in allowed

    def check_client_secret(self, client_secret: str) -> bool:
        secret = self.settings.secret
        return secret is not None and hmac.compare_digest(secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method == "none") == self.is_public

    def check_response_type(self, response_type: str) -> bool:
        return self.settings.is_for_people and response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        if grant_type == "client_credentials":
            return not (self.is_public or self.settings.is_for_people)
        return self.settings.is_for_people


def _without_port(uri: str) -> str:
    """Return the URI without its port if it is of a loopback address (RFC 8252, section 7.3), otherwise nothing."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return ""
    return parts._replace(netloc=host).geturl() if parts.scheme == "http" and host == "127.0.0.1" else ""


@dataclass(frozen=True)
class User:
    """A person as Authlib expects it."""

    person: Person

    def get_user_id(self) -> str:
        return self.person.name


class Registry:
    """The people and clients in the settings, and what was granted since the provider started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.users: Mapping[str, User] = {person.name: User(person) for person in settings.people}
        self.clients: Mapping[str, KnownClient] = {client.id: KnownClient(client) for client in settings.clients}
        self.codes: Expiring[AuthorizationCode] = Expiring(_CODE_SECONDS)
        self.refresh_tokens: Expiring[RefreshToken] = Expiring(settings.refresh_seconds)


def claims_of(user: User) -> dict[str, Any]:
    """Return the claims of a person beside those of the protocol."""
    person = user.person
    claims: dict[str, Any] = {"name": person.name, "roles": list(person.roles)}
    if person.email is not None:
        claims |= {"email": person.email, "email_verified": person.email_verified}
    return claims


def authorization_code_grant(registry: Registry) -> type[AuthorizationCodeGrant]:
    """Return the grant in which a person signs in (RFC 6749, section 4.1)."""

    class Grant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("none", *_SECRET_METHODS)

        def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
            data = request.payload.data
            granted = AuthorizationCode(
                client_id=request.client.id,
                person=request.user.get_user_id(),
                redirect_uri=request.payload.redirect_uri,
                scope=request.scope or "",
                nonce=data.get("nonce"),
                challenge=data["code_challenge"],
            )
            registry.codes.put(code, granted)

        def query_authorization_code(self, code: str, client: KnownClient) -> AuthorizationCode | None:
            found = registry.codes.get(code)
            # Removed here, not after the token was issued: a code is valid for one attempt.
            registry.codes.remove(code)
            return found if found is not None and found.client_id == client.id else None

        def delete_authorization_code(self, authorization_code: AuthorizationCode) -> None:
            """Do nothing: the code was removed when it was read."""

        def authenticate_user(self, authorization_code: AuthorizationCode) -> User | None:
            return registry.users.get(authorization_code.person)

    return Grant


def refresh_token_grant(registry: Registry) -> type[RefreshTokenGrant]:
    """Return the grant that renews a person's tokens (RFC 6749, section 6). Each refresh token is used once."""

    class Grant(RefreshTokenGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("none", *_SECRET_METHODS)
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, refresh_token: str) -> RefreshToken | None:
            return registry.refresh_tokens.get(refresh_token)

        def authenticate_user(self, refresh_token: RefreshToken) -> User | None:
            return registry.users.get(refresh_token.person)

        def revoke_old_credential(self, refresh_token: RefreshToken) -> None:
            registry.refresh_tokens.remove(refresh_token.value)

    return Grant


class ClientCredentials(ClientCredentialsGrant):
    """The grant in which a program signs in as itself (RFC 6749, section 4.4)."""

    TOKEN_ENDPOINT_AUTH_METHODS = _SECRET_METHODS


class RequiredCodeChallenge(CodeChallenge):
    """PKCE that a client cannot leave out, with S256 alone (RFC 9700, section 2.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("'code_challenge' with 'code_challenge_method' S256 is required.")
        super().validate_code_challenge(grant, redirect_uri)


class IdTokens(OpenIDCode):
    """Adds an ID token where the scope contains `openid`."""

    def __init__(self, issuer: str, keys: KeySet) -> None:
        super().__init__(require_nonce=False)
        self._issuer = issuer
        self._keys = keys

    def resolve_client_private_key(self, client: KnownClient) -> KeySet:
        return self._keys

    def get_client_algorithm(self, client: KnownClient) -> str:
        return ALGORITHM

    def get_client_claims(self, client: KnownClient) -> dict[str, Any]:
        return {"iss": self._issuer, "aud": [client.id]}

    def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:
        # The nonce protects the client, which compares it with the one that it has sent. Nothing to check here.
        return False

    def generate_user_info(self, user: User, scope: str) -> dict[str, Any]:
        return {"sub": user.get_user_id(), **claims_of(user)}


class AccessTokens(JWTBearerTokenGenerator):
    """Access tokens as signed JWTs (RFC 9068), with the claims that the shop reads."""

    def __init__(self, issuer: str, keys: KeySet, seconds: int, refresh_tokens: Any) -> None:
        super().__init__(issuer, ALGORITHM, refresh_tokens, expires_generator=seconds)
        self._keys = keys

    def get_jwks(self) -> KeySet:
        return self._keys

    def get_audiences(self, client: KnownClient, user: User | None, scope: str) -> str:
        return client.settings.audience

    def get_extra_claims(self, client: KnownClient, grant_type: str, user: User | None, scope: str) -> dict[str, Any]:
        return {"roles": list(client.settings.roles)} if user is None else claims_of(user)
