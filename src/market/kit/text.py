"""Validation of text, ids and e-mail addresses from outside, beyond what msgspec checks; and plurals in messages."""

from __future__ import annotations

import re
from uuid import UUID

from market.kit.errors import BadInput, NotFound

# C0 and C1 controls, line and paragraph separators, and surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_NEWLINE_AND_TAB = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+")


def validate_text(field: str, value: str, *, min_length: int, max_length: int, multiline: bool = False) -> str:
    """Return the text unchanged. Lengths are in characters; `multiline` allows newline and tab.

    Raises BadInput for a length out of bounds or a control character.
    """
    if not min_length <= len(value) <= max_length:
        raise BadInput(field, f"must have {min_length} to {max_length} characters, got {len(value)}")
    if (_CONTROL_BUT_NEWLINE_AND_TAB if multiline else _CONTROL).search(value):
        allowed = " other than newline and tab" if multiline else ""
        raise BadInput(field, f"must not contain control characters{allowed}")
    return value


def parse_uuid(field: str, value: str) -> UUID:
    """Return the id. Raises BadInput unless it is a UUID in its canonical form of 36 characters, in either case."""
    if not _UUID.fullmatch(value):
        raise BadInput(field, "must be a UUID")
    return UUID(value)


def parse_path_id(kind: str, value: str) -> UUID:
    """Return the id in a URL's path. `kind` is a noun in the singular: "product".

    Raises NotFound for anything but a UUID, since no resource has such an id.
    """
    if not _UUID.fullmatch(value):
        raise NotFound(kind, value[:64] if value.isascii() and value.isprintable() else None)
    return UUID(value)


def is_email_address(value: str) -> bool:
    """Return whether the text is an e-mail address (RFC 5321) of at most 254 characters.

    The local part must be a dot-atom, and the domain must have at least two labels.
    """
    local_part = value.partition("@")[0]
    return (
        len(value) <= 254
        and _EMAIL.fullmatch(value) is not None
        and ".." not in local_part
        and not local_part.startswith(".")
        and not local_part.endswith(".")
        # Looks like an encoded word (RFC 2047): mail software would decode it and send the mail to someone else.
        and "=?" not in value
    )


def pluralize(number: int, noun: str) -> str:
    """Return the number and the noun, in the singular or with an s: "1 order", "2 orders"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
