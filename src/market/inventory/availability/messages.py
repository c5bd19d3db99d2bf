"""Fast encoding of CheckAvaliable: all products of a call at a time. One by one, they would take half of its time.

The bytes are those that the generated code writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from market.contracts import inventory_pb2 as pb

_ID_LENGTH = 36
# The positions of the hyphens in the canonical form of a UUID.
_HYPHENS = (8, 13, 18, 23)
# A placeholder for the id of a product. All ids have the same length, so items of the same quantity have it, too.
_PLACEHOLDER = "0" * _ID_LENGTH


def canonical_ids(texts: Sequence[str]) -> list[str] | None:
    """Return the UUIDs in lower case, in the same order; None if a text is not a UUID of 36 characters."""
    count = len(texts)
    if set(map(len, texts)) - {_ID_LENGTH}:
        return None
    joined = "".join(texts)
    if any(joined[position::_ID_LENGTH] != "-" * count for position in _HYPHENS):
        return None
    try:
        # fromhex ignores white space, which makes the result too short.
        if len(bytes.fromhex(joined.replace("-", ""))) != 16 * count:
            return None
    except ValueError:
        return None
    return list(texts) if joined.islower() else [text.lower() for text in texts]


def encode_response(product_ids: Sequence[str], quantities: Sequence[int | None]) -> bytes:
    """Return a CheckAvaliableResponse, encoded. product_ids: canonical; quantities: None for an unknown product."""
    items = []
    for product_id, quantity in zip(product_ids, quantities, strict=True):
        before, after = _around_id(quantity or 0)
        items.append(f"{before}{product_id}{after}")
    # Concatenated messages are one message with the items of all: https://protobuf.dev/programming-guides/encoding
    return "".join(items).encode("latin-1")


@lru_cache(maxsize=4096)
def _around_id(quantity: int) -> tuple[str, str]:
    """Return the bytes before and after the id in an encoded response with one item, one character per byte."""
    item = pb.Availability(product_id=_PLACEHOLDER, available=quantity > 0, quantity=quantity)
    encoded = pb.CheckAvaliableResponse(items=[item]).SerializeToString().decode("latin-1")
    before, _, after = encoded.partition(_PLACEHOLDER)
    return before, after
