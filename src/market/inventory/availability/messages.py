"""Fast reading and writing of CheckAvaliable: all products of a call at a time. One by one, they would take half of its
time.

The bytes are those of the generated code: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from market.contracts import inventory_pb2 as pb

# What is before each id in a request with the ids of products: the number of the field, and the length of the id, 36.
_BEFORE_ID = b"\n$"
_ITEM_LENGTH = len(_BEFORE_ID) + 36
_HEX_DIGITS = b"0123456789abcdef"
# By their positions in an item, the characters that are no hexadecimal digits.
_PUNCTUATION = {0: b"\n", 1: b"$", 10: b"-", 15: b"-", 20: b"-", 25: b"-"}
_PLACEHOLDER = "0" * 36


def read_ids(request: bytes) -> list[str] | None:
    """Return the ids of a message whose only field is `repeated string product_ids = 1`.

    None if it has anything but UUIDs in lower case: then it must be parsed by the generated code.
    """
    count = len(request) // _ITEM_LENGTH
    punctuation = b"".join(_PUNCTUATION.values())
    # Nothing is missing, nothing is added, and everything is at its place.
    if len(request) != _ITEM_LENGTH * count or request.translate(None, _HEX_DIGITS) != punctuation * count:
        return None
    if any(request[position::_ITEM_LENGTH] != character * count for position, character in _PUNCTUATION.items()):
        return None
    return request.decode("ascii").split(_BEFORE_ID.decode("ascii"))[1:]


def encode_response(product_ids: Sequence[str], quantities: Sequence[int | None]) -> bytes:
    """Return a CheckAvaliableResponse, encoded. product_ids: canonical; quantities: None for an unknown product."""
    # Concatenated messages are one message with the items of all.
    template = "".join(map(_template, quantities))
    return (template % tuple(product_ids)).encode("latin-1")


@lru_cache(maxsize=4096)
def _template(quantity: int | None) -> str:
    """Return an encoded response with one item, one character per byte, and `%s` in place of the id.

    All ids have the same length, so the other bytes are the same for all.
    """
    item = pb.Availability(product_id=_PLACEHOLDER, available=bool(quantity), quantity=quantity or 0)
    encoded = pb.CheckAvaliableResponse(items=[item]).SerializeToString().decode("latin-1")
    return encoded.replace("%", "%%").replace(_PLACEHOLDER, "%s")
