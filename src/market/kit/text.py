"""Rules for text and numbers that come from outside, where a decoder alone takes too much."""

from __future__ import annotations

import re
from uuid import UUID

from market.kit.errors import BadInput, NotFound

# C0 and C1 controls, and the line and paragraph separators.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_NEWLINE_AND_TAB = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+"
)
_KEY = re.compile(r"[!-~]{1,255}")


def validate_text(field: str, value: str, *, min_length: int, max_length: int, multiline: bool = False) -> str:
    """The text as it came, or BadInput: `min_length..max_length` characters, no control characters."""
    if not min_length <= len(value) <= max_length:
        raise BadInput(field, f"must have {min_length} to {max_length} characters")
    if (_CONTROL_BUT_NEWLINE_AND_TAB if multiline else _CONTROL).search(value):
        allowed = " other than newline and tab" if multiline else ""
        raise BadInput(field, f"must not contain control characters{allowed}")
    return value


def parse_uuid(field: str, value: str) -> UUID:
    """The id, or BadInput. Takes the canonical form of 36 characters alone."""
    if not _UUID.fullmatch(value):
        raise BadInput(field, "must be a UUID")
    return UUID(value)


def parse_path_id(what: str, value: str) -> UUID:
    """The id in a path, or NotFound: what is no UUID names nothing."""
    if not _UUID.fullmatch(value):
        raise NotFound(what, value[:64] if value.isascii() and value.isprintable() else None)
    return UUID(value)


def is_email_address(value: str) -> bool:
    """An address as RFC 5321 has it, dot-atoms only, with a domain of two labels or more; 254 characters at most."""
    return (
        len(value) <= 254
        and _EMAIL.fullmatch(value) is not None
        and ".." not in value.partition("@")[0]
        and value[0] != "."
        and "@" in value
        and not value.partition("@")[0].endswith(".")
        # Looks like an encoded word (RFC 2047): mail software decodes it, and writes to someone else.
        and "=?" not in value
    )


def idempotency_key(value: str | None) -> str | None:
    """The header's value, or BadInput: 1..255 visible ASCII characters."""
    if value is not None and not _KEY.fullmatch(value):
        raise BadInput("Idempotency-Key", "must have 1 to 255 visible ASCII characters")
    return value
