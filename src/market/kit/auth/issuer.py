"""The issuer of the tokens: its discovery document and its keys (OpenID Connect Discovery 1.0, RFC 8414, RFC 7517)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key

from market.kit.auth.config import Auth, check_issuer_url
from market.kit.auth.fetch import FetchError, fetch, tls_context_source

T = TypeVar("T")

_WELL_KNOWN = "/.well-known/openid-configuration"
# The media types of the discovery document and of the keys. Kubernetes' API server serves the keys only in the second
# type, and responds with 406 to a client that does not accept it.
_MEDIA_TYPES = "application/json, application/jwk-set+json"
_MAX_KEYS = 100
# The sizes of RSA keys that are accepted. A smaller key is too weak (RFC 7518 section 3.3). With a larger one,
# verifying a token would take milliseconds.
_RSA_BITS = range(2048, 8193)


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str | None = None
    token_endpoint: str | None = None
    authorization_endpoint: str | None = None
    end_session_endpoint: str | None = None


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The URLs that a web application needs for sign-in. `end_session`: None if the issuer offers no sign-out."""

    authorization: str
    token: str
    end_session: str | None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key that verifies the signatures of tokens.

    `thumbprint` (RFC 7638) identifies the key, even if the issuer uses its `kid` again for another key.
    """

    kid: str | None
    thumbprint: str
    key: Key


class Issuer:
    """The issuer that `auth.issuer` names. Every call fetches the documents; nothing is cached."""

    def __init__(self, config: Auth) -> None:
        if config.issuer is None:
            raise ValueError("auth.issuer is missing")
        self._config = config
        self.url = config.issuer
        self.tls = tls_context_source(config.issuer_ca_file)

    async def fetch_keys(self) -> list[SigningKey]:
        """Return the keys that can verify tokens; at least one. Raises FetchError."""
        url = self._config.keys_url
        if url is None:
            url = self._check_url("jwks_uri", (await self._discover()).jwks_uri)
        found = await self._fetch(url, _KeySet)
        if len(found.keys) > _MAX_KEYS:
            raise FetchError(f"the issuer has more than {_MAX_KEYS} keys")
        keys = [key for key in map(_import_key, found.keys) if key is not None]
        if not keys:
            raise FetchError("the issuer has no key that can verify tokens")
        return keys

    async def token_endpoint(self) -> str:
        """Return the URL at which tokens are requested. Raises FetchError."""
        return self._check_url("token_endpoint", (await self._discover()).token_endpoint)

    async def endpoints(self) -> Endpoints:
        """Return the URLs at which people sign in and out, and tokens are requested. Raises FetchError."""
        found = await self._discover()
        end_session = found.end_session_endpoint
        return Endpoints(
            authorization=self._check_url("authorization_endpoint", found.authorization_endpoint),
            token=self._check_url("token_endpoint", found.token_endpoint),
            end_session=None if end_session is None else self._check_url("end_session_endpoint", end_session),
        )

    async def _discover(self) -> _Discovery:
        found = await self._fetch(self.url.rstrip("/") + _WELL_KNOWN, _Discovery)
        if found.issuer != self.url:
            raise FetchError("the discovery document belongs to another issuer")
        return found

    def _check_url(self, name: str, url: str | None) -> str:
        if url is None:
            raise FetchError(f"the discovery document has no {name}")
        try:
            check_issuer_url(name, url, insecure=self._config.insecure_issuer)
        except ValueError as e:
            raise FetchError(f"the discovery document: {e}") from None
        return url

    async def _fetch(self, url: str, document_type: type[T]) -> T:
        headers = {"accept": _MEDIA_TYPES}
        if self._config.issuer_token_file is not None and self._may_see_token(url):
            headers["authorization"] = f"Bearer {_read_token(self._config.issuer_token_file)}"
        response = await fetch(
            url,
            tls=self.tls,
            seconds=self._config.timeout_seconds,
            max_bytes=self._config.max_document_bytes,
            headers=headers,
        )
        host = urlsplit(url).hostname
        if response.status != 200:
            raise FetchError(f"{host}: status {response.status}")
        try:
            return msgspec.json.decode(response.body, type=document_type)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise FetchError(f"{host}: the document does not follow the specification") from None

    def _may_see_token(self, url: str) -> bool:
        """Return whether the token may be sent to the URL.

        It is sent only to the issuer's host and to `keys_url`, both of which the operator has configured. Other URLs
        come from the discovery document, which could name any host.
        """
        return _origin(url) == _origin(self.url) or url == self._config.keys_url


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, ValueError) as e:
        raise FetchError(f"issuer_token_file cannot be read: {type(e).__name__}") from None


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _import_key(data: dict[str, Any]) -> SigningKey | None:
    """Return the key, or None if it cannot verify tokens (RFC 7517 section 5).

    It cannot if it is symmetric, for encryption, malformed, of an unknown type, or an RSA key of an unsuitable size.
    """
    if data.get("kty") not in ("RSA", "EC", "OKP") or data.get("use", "sig") != "sig":
        return None
    try:
        # Import only the public members, in case the issuer publishes a private key by mistake.
        key = import_key({name: value for name, value in data.items() if name not in _PRIVATE})
        if isinstance(key, RSAKey) and key.raw_value.key_size not in _RSA_BITS:
            return None
        if not isinstance(key, RSAKey | ECKey | OKPKey) or not isinstance(data.get("kid", ""), str):
            return None
        return SigningKey(data.get("kid"), key.thumbprint(), key)
    except Exception:
        # The library raises exceptions of many types for malformed keys.
        return None


_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
