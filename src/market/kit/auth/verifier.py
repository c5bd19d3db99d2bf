"""Verifies a token: a signed JWT of the configured issuer (RFC 7519, RFC 9068).

joserfc checks the signature and the claims (docs/decisions/0018). Import this module only if callers sign in, because
it loads joserfc and its cryptography library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64decode

from market.kit import context
from market.kit.auth.claims import check_claims, identify
from market.kit.auth.config import Auth
from market.kit.auth.identity import Identity
from market.kit.auth.issuer import SigningKey
from market.kit.auth.keys import Keys
from market.kit.auth.rejection import TokenRejected

# A token is cached for at most this long, even if it expires later.
_MAX_CACHED_SECONDS = 86_400.0
# Longer key ids are rejected without a lookup, because `Keys` would keep them in memory.
_MAX_KEY_ID_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Verified:
    """The identity that a valid token proves, and the thumbprint of the key that has signed it.

    expires_at: when the token must be removed from the cache, in seconds since 1970
    """

    identity: Identity
    expires_at: float
    thumbprint: str


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: msgspec.Raw = msgspec.Raw()
    b64: msgspec.Raw = msgspec.Raw()


class _Registry(jws.JWSRegistry):
    """The configured algorithms. Unlike the base class, it does not warn that the name EdDSA is deprecated."""

    def __init__(self, algorithms: Collection[str], max_token_bytes: int) -> None:
        # Unknown header parameters must be ignored (RFC 7515 section 4).
        super().__init__(algorithms=algorithms, strict_check_header=False)
        # As large as the token may be: the header may contain a certificate chain (x5c).
        self.max_header_length = self.max_payload_length = max_token_bytes

    def get_alg(self, name: str) -> Any:
        if self.allowed is None or name not in self.allowed:
            raise JoseError
        return self.algorithms[name]


class Verifier:
    """Verifies tokens with the issuer's keys.

    callers: maps the subject of each known service's token to the service's name.
    """

    def __init__(self, config: Auth, keys: Keys, callers: Mapping[str, str]) -> None:
        self._config = config
        self._keys = keys
        self._callers = callers
        self._registry = _Registry(config.algorithms, config.max_token_bytes)
        self._types = {"at+jwt", "application/at+jwt"}
        if not config.require_access_token_type:
            self._types |= {"jwt", "application/jwt", ""}

    async def verify(self, token: str, now: float) -> Verified:
        """Return what the token proves. Raises TokenRejected, or Unavailable if its key cannot be looked up now.

        now: the time in seconds since 1970.
        """
        claims, key = await self.read_claims(token, now)
        expires_at = min(claims["exp"] + self._config.leeway_seconds, now + _MAX_CACHED_SECONDS)
        return Verified(identify(claims, self._config, self._callers), expires_at, key.thumbprint)

    async def read_claims(self, token: str, now: float) -> tuple[dict[str, Any], SigningKey]:
        """Return the claims of a valid token, and the key that has signed it. Raises the same errors as `verify`."""
        if len(token) > self._config.max_token_bytes:
            raise TokenRejected("size", f"is longer than {self._config.max_token_bytes} bytes")
        header = self._header(token)
        payload, key = self._check_signature(token, await self._find_keys(header.kid))
        try:
            claims = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise _not_a_jwt() from None
        check_claims(claims, self._config, now)
        return claims, key

    def _header(self, token: str) -> _Header:
        """Return the header, which is not verified yet. Raises TokenRejected if it breaks a rule."""
        try:
            header = msgspec.json.decode(urlsafe_b64decode(token.partition(".")[0].encode("ascii")), type=_Header)
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError, RecursionError):
            raise _not_a_jwt() from None
        if header.alg not in self._config.algorithms:
            raise TokenRejected("algorithm", "has an algorithm that is not accepted")
        if bytes(header.crit) or bytes(header.b64):
            raise TokenRejected("critical", "has header parameters that are not supported")
        if len(header.kid or "") > _MAX_KEY_ID_CHARACTERS:
            raise TokenRejected("key", "was signed with an unknown key")
        if (header.typ or "").lower() not in self._types:
            raise TokenRejected("type", "has a type that is not accepted")
        return header

    async def _find_keys(self, kid: str | None) -> list[SigningKey]:
        if keys := self._keys.find(kid):
            return keys
        # Wait for at most half of the remaining time. The other half is for the request itself.
        seconds = context.remaining(2 * self._config.timeout_seconds) / 2
        if keys := await self._keys.find_or_fetch(kid, seconds):
            return keys
        raise TokenRejected("key", "was signed with an unknown key")

    def _check_signature(self, token: str, keys: list[SigningKey]) -> tuple[bytes, SigningKey]:
        for key in keys:
            with suppress(Exception):
                # joserfc raises exceptions of many types: for a wrong or malformed signature, or a key of another type.
                return jws.deserialize_compact(token, key.key, registry=self._registry).payload, key
        raise TokenRejected("signature", "has an invalid signature")


def _not_a_jwt() -> TokenRejected:
    return TokenRejected("format", "is not a signed JWT")
