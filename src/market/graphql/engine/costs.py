"""Estimates how much memory an upstream's response will need, before it is read.

The factors are upper bounds that follow from the selection and from the minimum size of a resource's JSON in REST.
tests/graphql/test_memory.py compares them with what is really allocated.
"""

from __future__ import annotations

from collections import Counter

from market.graphql.engine.selections import SelectedField

# The response as it arrives, in pieces, and as a whole.
_TRANSPORT_FACTOR = 2.0
# Decoded: a character may take four bytes; objects of short texts take less than three times their JSON.
_DECODED_FACTOR = 4.0
# Bytes of the shortest JSON of a resource. A page is one object, and not counted.
_MIN_BYTES = {"Product": 230, "Order": 180, "OrderItem": 95, "Shortage": 70}
_OBJECT_BYTES, _FIELD_BYTES, _LIST_BYTES = 24, 8, 72
# Quotes, colon and comma of a key, or of `__typename`'s value.
_PUNCTUATION_BYTES = 4


def response_factor(selected: SelectedField) -> float:
    """Return the bytes of memory per byte of the response that is read for this field."""
    if selected.fields is None:
        return _TRANSPORT_FACTOR
    copies, objects = _written(selected.type_name, selected.fields)
    return _TRANSPORT_FACTOR + _DECODED_FACTOR + copies + objects


def _written(type_name: str, fields: list[SelectedField]) -> tuple[float, float]:
    """Return how often a byte that was read is written, and the bytes of objects and keys per byte that was read.

    A byte belongs to one level of the response, so of two levels the more expensive one counts.
    """
    leaves = Counter(f.name for f in fields if f.fields is None or f.is_join)
    lists = [_written(f.type_name, f.fields) for f in fields if f.fields is not None and not f.is_join]
    size = _OBJECT_BYTES
    for f in fields:
        size += _FIELD_BYTES + len(f.key.encode()) + _PUNCTUATION_BYTES
        if f.name == "__typename":
            size += len(type_name) + _PUNCTUATION_BYTES
        elif f.fields is not None and not f.is_join:
            size += _LIST_BYTES
    own = size / _MIN_BYTES[type_name] if type_name in _MIN_BYTES else 0.0
    copies = max(1.0, max(leaves.values(), default=0), sum(c for c, _ in lists))
    return copies, max(own, sum(o for _, o in lists))
