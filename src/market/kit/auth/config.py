"""The configuration of sign-in: whose tokens a service accepts, and which token it sends to other services."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from market.kit.auth.identity import Role
from market.kit.config import NonEmptyStr, Seconds, Section, ServiceConfig
from market.kit.host_and_port import check_url

# Asymmetric algorithms only: a service that verifies tokens must not be able to issue them. EdDSA is the older name of
# Ed25519 and Ed448 (RFC 9864).
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"
]


class Auth(Section, frozen=True, kw_only=True):
    """Whose tokens are accepted (docs/operations.md, "Sign-in")."""

    # open: nobody signs in, and everybody may do everything. required: the table of permissions is enforced.
    mode: Literal["open", "required"] = "open"
    # Allows the mode `open` on an address that other machines can reach.
    open_on_purpose: bool = False
    # The tokens' `iss`, and the URL under which the issuer publishes its discovery document.
    issuer: NonEmptyStr | None = None
    # A value that the tokens' `aud` must contain. Do not use the id of a client: the `aud` of its ID tokens is that id,
    # so they would be accepted as well.
    audience: NonEmptyStr = "market"
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = (
        "RS256",
        "PS256",
        "ES256",
        "EdDSA",
        "Ed25519",
    )
    # How far the issuer's clock may differ from ours.
    leeway_seconds: Annotated[int, Meta(ge=0, le=120)] = 30
    # Accept only tokens of the type `at+jwt` (RFC 9068). If false, tokens of the type `JWT` and tokens without a type
    # are accepted as well.
    require_access_token_type: bool = False
    # The claim that contains the roles, or a path to it, such as realm_access.roles.
    roles_claim: NonEmptyStr = "roles"
    # The shop's roles, by the names that the issuer has for them. Other names in tokens are ignored.
    roles: dict[str, Role] = msgspec.field(default_factory=lambda: {role.value: role for role in Role})
    # CA certificates to trust (PEM) when the keys are fetched; the system's trust store by default.
    issuer_ca_file: NonEmptyStr | None = None
    # A file with a bearer token for the discovery document and the keys, as a Kubernetes API server requires.
    issuer_token_file: NonEmptyStr | None = None
    # The URL of the keys, in place of the one in the discovery document.
    keys_url: NonEmptyStr | None = None
    # Allows http URLs to other machines. An attacker on the network could then replace the keys.
    insecure_issuer: bool = False
    # How long fetching one document may take, and how large it may be.
    timeout_seconds: Annotated[float, Meta(gt=0, le=60)] = 5.0
    max_document_bytes: Annotated[int, Meta(ge=1024, le=16_777_216)] = 262_144
    # How often the keys are fetched. They are also fetched when an unknown key has signed a token. Between two such
    # fetches, there is a pause of at least `min_refetch_seconds`.
    refresh_seconds: Annotated[float, Meta(ge=10, le=86_400)] = 300.0
    min_refetch_seconds: Annotated[float, Meta(ge=0.1, le=300)] = 2.0
    max_token_bytes: Annotated[int, Meta(ge=512, le=65_536)] = 8192
    # The maximum number of verified tokens in the cache, and the maximum memory that they take. A token is cached until
    # it expires, but for at most 24 hours. If the cache is full, the least recently used tokens are dropped.
    max_cached_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000
    max_cached_token_bytes: Annotated[int, Meta(ge=0)] = 8_388_608

    def __post_init__(self) -> None:
        if self.mode == "required" and self.issuer is None:
            raise ValueError("issuer must be set if mode is required")
        for name in ("issuer", "keys_url"):
            if (url := getattr(self, name)) is not None:
                check_issuer_url(name, url, insecure=self.insecure_issuer)

    @property
    def is_required(self) -> bool:
        return self.mode == "required"


class ServiceIdentity(Section, frozen=True, kw_only=True):
    """The token that a service sends to others. It is read from a file, or requested with client credentials."""

    # For example, the file of a projected service account token. It is read again at most once a second, and when an
    # upstream has rejected the token.
    token_file: NonEmptyStr | None = None
    # The client credentials (RFC 6749 section 4.4). Write the secret as a reference to an environment variable:
    # ${NAME}.
    client_id: NonEmptyStr | None = None
    client_secret: NonEmptyStr | None = None
    # The URL of the token endpoint, in place of the one in the discovery document of `auth.issuer`.
    token_url: NonEmptyStr | None = None
    # Parameters of the token request, which some issuers require.
    scope: NonEmptyStr | None = None
    audience: NonEmptyStr | None = None
    # How long fetching a token may take.
    timeout_seconds: Seconds = 5.0

    def __post_init__(self) -> None:
        if (self.client_id is None) != (self.client_secret is None):
            raise ValueError("client_id and client_secret must be set together")
        if (self.token_file is None) == (self.client_id is None):
            raise ValueError("must have either token_file, or client_id and client_secret")

    def __repr__(self) -> str:
        return f"ServiceIdentity(token_file={self.token_file!r}, client_id={self.client_id!r})"


class SignInConfig(ServiceConfig, frozen=True, kw_only=True):
    """Base class of the configuration of services that listen for requests, with the section `auth`."""

    auth: Auth = Auth()

    def __post_init__(self) -> None:
        own = getattr(self, "service_identity", None)
        if isinstance(own, ServiceIdentity) and own.client_id is not None:
            if own.token_url is not None:
                check_issuer_url("service_identity.token_url", own.token_url, insecure=self.auth.insecure_issuer)
            elif self.auth.issuer is None:
                raise ValueError("service_identity: client_id needs token_url, or auth.issuer")
        if self.auth.is_required or self.auth.open_on_purpose:
            return
        for name in ("http", "grpc"):
            listener: Any = getattr(self, name, None)
            if listener is not None and not is_loopback(listener.host):
                raise ValueError(
                    f"{name}.host is {listener.host}, which other machines can reach, and without sign-in anybody "
                    "could change everything: set auth.mode to required, or auth.open_on_purpose to true"
                )


def check_issuer_url(name: str, url: str, *, insecure: bool) -> None:
    """Raise ValueError unless the URL is https, or http on this machine. If `insecure`, http is always allowed."""
    try:
        check_url(url, "https", "http")
    except ValueError:
        raise ValueError(f"{name} must be a URL such as https://host:port") from None
    parts = urlsplit(url)
    if parts.username is not None or parts.fragment or any(c.isspace() for c in url):
        raise ValueError(f"{name} must be a URL without user, fragment and spaces")
    if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname or ""):
        raise ValueError(f"{name} must be an https URL; http is only allowed on this machine, or with insecure_issuer")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
