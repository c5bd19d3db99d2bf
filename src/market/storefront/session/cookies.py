"""Signed cookies. A cookie that is unsigned, modified or too old is treated as absent."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from itsdangerous import BadData, TimestampSigner
from itsdangerous.encoding import base64_decode, base64_encode
from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")

# The size of a cookie that all browsers store, with its name and attributes (RFC 6265, section 6.1).
MAX_COOKIE_BYTES = 4096
_ATTRIBUTE_BYTES = 128
# The maximum length of the value of a cookie.
MAX_TEXT_BYTES = MAX_COOKIE_BYTES - _ATTRIBUTE_BYTES
# Values are compressed, so that a basket of 50 lines fits. A value is decompressed up to this size.
_MAX_VALUE_BYTES = 16_384


@dataclass(frozen=True)
class CookieJar:
    """Writes and reads the cookies of visitors.

    secrets: the first one signs; signatures of all of them are accepted
    secure: whether browsers reach the shop by https. Then they send the cookies over TLS only, and to this host only
    """

    secrets: tuple[str, ...]
    secure: bool = False

    def name(self, purpose: str) -> str:
        """Return a cookie's name. Browsers reject a name with `__Host-` from other hosts or over http."""
        return f"__Host-market_{purpose}" if self.secure else f"market_{purpose}"

    def read(self, request: Request, purpose: str, value_type: type[T], *, max_age: int) -> T | None:
        """Return the value of a cookie; None if it is absent, invalid, or older than `max_age` seconds."""
        text = request.cookies.get(self.name(purpose), "")
        if not text or len(text) > MAX_COOKIE_BYTES:
            return None
        try:
            packed = base64_decode(self._signer(purpose).unsign(text, max_age))
            value = zlib.decompressobj().decompress(packed, _MAX_VALUE_BYTES)
            return msgspec.json.decode(value, type=value_type)
        except (BadData, msgspec.DecodeError, zlib.error, UnicodeError):
            return None

    def write(self, response: Response, purpose: str, value: object, *, max_age: int) -> None:
        """Set a cookie to a value, signed. Raises ValueError if it is too large for browsers."""
        text = self._signer(purpose).sign(base64_encode(zlib.compress(msgspec.json.encode(value), 9))).decode("ascii")
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError(f"the cookie {purpose} has {len(text)} bytes")
        self.set(response, purpose, text, max_age=max_age)

    def set(self, response: Response, purpose: str, text: str, *, max_age: int) -> None:
        """Set a cookie to a text that is signed or encrypted already."""
        response.set_cookie(
            self.name(purpose), text, max_age=max_age, path="/", secure=self.secure, httponly=True, samesite="lax"
        )

    def remove(self, response: Response, purpose: str) -> None:
        """Remove a cookie from the browser."""
        response.delete_cookie(self.name(purpose), path="/", secure=self.secure, httponly=True, samesite="lax")

    def digests(self, purpose: str, text: str) -> tuple[str, ...]:
        """Return the message authentication code (HMAC) of the text with each secret, the current secret first."""
        return tuple(_digest(secret, purpose, text) for secret in self.secrets)

    def sign(self, purpose: str, value: bytes) -> str:
        """Return the value, which must be ASCII, with time and signature, for a form. It is not encrypted."""
        return self._signer(purpose).sign(value).decode("ascii")

    def unsign(self, purpose: str, text: str, *, max_age: int) -> bytes | None:
        """Return the value that was signed; None if the signature is invalid or older than `max_age` seconds."""
        try:
            return self._signer(purpose).unsign(text, max_age)
        except BadData:
            return None

    def _signer(self, purpose: str) -> TimestampSigner:
        # The library expects the oldest secret first, and signs with the last. The salt makes a cookie
        # invalid for other purposes.
        return TimestampSigner(list(reversed(self.secrets)), salt=f"market.{purpose}", digest_method=hashlib.sha256)


def _digest(secret: str, purpose: str, text: str) -> str:
    key = hashlib.sha256(f"{purpose}:{secret}".encode()).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]
