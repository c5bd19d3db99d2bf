"""Paging: the parameters of a page, and cursors.

A cursor is the position at which a page ends. The client sends it, as opaque text, to get the next page:

    write_cursor(Position(...), "products", sort, q)        # "WzEsIlVHZ..."
    read_cursor(text, Position, "products", sort, q)        # Position(...)

A cursor is neither secret nor signed. If a client modifies it, it becomes invalid, or another position in the same
list.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from market.kit.errors import BadInput

T = TypeVar("T", bound=Struct)

# Offsets are limited, because the database has to read all rows that it skips.
MAX_OFFSET = 10_000
# The `total` of a list is at most this number, because counting takes time.
MAX_COUNT = 10_000
MAX_CURSOR_LENGTH = 2000

# The types of the query parameters.
Offset = Annotated[int, Meta(ge=0, le=MAX_OFFSET, extra={"advice": "to skip more, use the parameter `after`"})]
Cursor = Annotated[str, Meta(min_length=1, max_length=MAX_CURSOR_LENGTH)]

# The version of cursors. Increase it when the meaning of positions changes.
_VERSION = 1
_LIST_ID_BYTES = 6


class _Cursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    # A hash of the list's definition.
    list_id: str
    position: msgspec.Raw


_decoder = msgspec.json.Decoder(_Cursor)


def write_cursor(position: Struct, *list_definition: str | None) -> str:
    """Return the cursor of a position.

    list_definition: what determines the items and their order: the list's name, its filters and its sort order.
    """
    cursor = _Cursor(_VERSION, _list_id(list_definition), msgspec.Raw(msgspec.json.encode(position)))
    return _to_text(msgspec.json.encode(cursor))


def read_cursor(text: str, position_type: type[T], *list_definition: str | None) -> T:
    """Return the position of a cursor.

    Raises BadInput if the text is not a cursor, or is the cursor of a list with another definition.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = _decoder.decode(data)
    except (binascii.Error, ValueError, RecursionError):
        raise _not_a_cursor() from None
    if cursor.version != _VERSION or _to_text(data) != text:
        raise _not_a_cursor()
    if cursor.list_id != _list_id(list_definition):
        raise BadInput(
            "after", "belongs to a list with another filter or sort order; only `limit` may change between pages"
        )
    try:
        return msgspec.json.decode(cursor.position, type=position_type)
    except (ValueError, RecursionError):
        raise _not_a_cursor() from None


def _not_a_cursor() -> BadInput:
    return BadInput("after", "is not a cursor: it must be the `next` of a page, unchanged")


def _list_id(list_definition: tuple[str | None, ...]) -> str:
    return _to_text(hashlib.sha256(msgspec.json.encode(list_definition)).digest()[:_LIST_ID_BYTES])


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
