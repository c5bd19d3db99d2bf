"""Encrypted cookies. A cookie that is modified, too old or encrypted with another key is treated as absent."""

from __future__ import annotations

import base64
import hashlib
import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from starlette.requests import Request
from starlette.responses import Response

from market.storefront.session.cookies import MAX_COOKIE_BYTES, MAX_TEXT_BYTES, CookieJar

T = TypeVar("T")

# A value is decompressed up to this size.
_MAX_VALUE_BYTES = 32_768


class SealedCookies:
    """Writes and reads cookies that only the storefront can read.

    jar: its first secret encrypts, and all of them decrypt
    clock: returns the time in seconds since 1970
    """

    def __init__(self, jar: CookieJar, *, clock: Callable[[], float] = time.time) -> None:
        self._jar = jar
        self._clock = clock
        # One key per purpose, so that a cookie is invalid for other purposes.
        self._keys = lru_cache(maxsize=None)(self._make_keys)

    def read(self, request: Request, purpose: str, value_type: type[T], *, max_age: int) -> T | None:
        """Return the value of a cookie; None if it is absent, invalid, or older than `max_age` seconds."""
        text = request.cookies.get(self._jar.name(purpose), "")
        if not text or len(text) > MAX_COOKIE_BYTES:
            return None
        try:
            packed = self._keys(purpose).decrypt_at_time(text, max_age, int(self._clock()))
            value = zlib.decompressobj().decompress(packed, _MAX_VALUE_BYTES)
            return msgspec.json.decode(value, type=value_type)
        except (InvalidToken, msgspec.DecodeError, zlib.error, ValueError):
            return None

    def seal(self, purpose: str, value: object) -> str | None:
        """Return the value, encrypted, as the text of a cookie; None if it is too large for browsers."""
        packed = zlib.compress(msgspec.json.encode(value), 9)
        text = self._keys(purpose).encrypt_at_time(packed, int(self._clock())).decode("ascii")
        return text if len(text) <= MAX_TEXT_BYTES else None

    def write(self, response: Response, purpose: str, text: str, *, max_age: int) -> None:
        """Set a cookie to a text that `seal` has returned."""
        self._jar.set(response, purpose, text, max_age=max_age)

    def remove(self, response: Response, purpose: str) -> None:
        """Remove a cookie from the browser."""
        self._jar.remove(response, purpose)

    def _make_keys(self, purpose: str) -> MultiFernet:
        return MultiFernet([Fernet(_key(secret, purpose)) for secret in self._jar.secrets])


def _key(secret: str, purpose: str) -> bytes:
    """Derive the key for a purpose. The secrets are random, so a plain hash is enough."""
    return base64.urlsafe_b64encode(hashlib.sha256(f"market.sealed.{purpose}:{secret}".encode()).digest())
