"""Validation of text and ids from outside, beyond what msgspec checks; and plurals in messages."""

from __future__ import annotations

import re
import unicodedata
from uuid import UUID

from market.kit.errors import BadInput, NotFound

# C0 and C1 controls, line and paragraph separators, and surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_NEWLINE_AND_TAB = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Embeddings, overrides and isolates (Unicode Standard Annex #9). The marks LRM, RLM and ALM are allowed, because they
# do not reorder other text.
_DIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Blank characters whose Unicode category is letter or symbol: Hangul fillers and the empty Braille pattern.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Unicode general categories.
_UNASSIGNED, _PRIVATE_USE = "Cn", "Co"
# The first letters of the categories of visible characters: letters, numbers, punctuation and symbols.
_VISIBLE = "LNPS"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


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


def validate_display_text(field: str, value: str, *, min_length: int, max_length: int, multiline: bool = False) -> str:
    """Return the text unchanged, after stricter checks than `validate_text`: for text that others will see.

    Also raises BadInput for a directional control, because it could reorder the text around it, and for non-empty text
    without a visible character.
    """
    validate_text(field, value, min_length=min_length, max_length=max_length, multiline=multiline)
    if found := _DIRECTIONAL.search(value):
        raise BadInput(field, f"must not contain directional controls, got U+{ord(found[0]):04X}")
    # Looking up the categories of characters is slow, so it is skipped for ASCII.
    if (value and not value.isascii() and not any(map(_is_visible, value))) or value.isspace():
        raise BadInput(field, "must contain a visible character")
    return value


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    if category in (_UNASSIGNED, _PRIVATE_USE):
        # It may be an emoji of a newer Unicode version than Python's. Only tags and noncharacters are known to be
        # invisible.
        return not 0xE0000 <= ord(character) <= 0xE0FFF and ord(character) & 0xFFFE != 0xFFFE
    return category[0] in _VISIBLE and character not in _BLANK


def parse_uuid(field: str, value: str) -> UUID:
    """Return the id. Raises BadInput unless it is a UUID of 36 characters, in upper or lower case."""
    if not _UUID.fullmatch(value):
        raise BadInput(field, "must be a UUID")
    return UUID(value)


def parse_path_id(kind: str, value: str) -> UUID:
    """Return the id in a URL's path. `kind` is a noun in the singular: "product".

    Raises NotFound if it is not a UUID, because no resource has such an id.
    """
    if not _UUID.fullmatch(value):
        raise NotFound(kind, value[:64] if value.isascii() and value.isprintable() else None)
    return UUID(value)


def pluralize(number: int, noun: str) -> str:
    """Return the number and the noun, with an s if the number is not 1: "1 order", "2 orders"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
