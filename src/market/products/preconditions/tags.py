"""Entity tags of products, and the preconditions If-Match and If-None-Match (RFC 9110, sections 8.8.3 and 13.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import UNSET

from market.kit.errors import BadInput
from market.kit.http import compression
from market.products.domain import Product, entity_tag

# A tag is the version, as in domain.entity_tag, followed by the states of availability and stock that the body shows.
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_TAG_LIST = re.compile(rf"\s*(?:{_TAG.pattern})?(?:\s*,\s*(?:{_TAG.pattern})?)*\s*")
_VERSION_TAG = re.compile(r'"([1-9][0-9]{0,17})(?:\.[a-z]+)?(?:\.[a-z0-9]+)?"')
_AVAILABILITY = {True: ".available", False: ".unavailable", None: ".unknown"}


def representation_tag(product: Product, *, availability: bool) -> str:
    """Return the entity tag of a body: the version, with `available` and `stock` if the body has them.

    So a 304 never confirms a body with an outdated availability.
    """
    extension = _AVAILABILITY[product.available] if availability or product.stock is not UNSET else ""
    if product.stock is not UNSET:
        extension += ".unknown" if product.stock is None else f".{product.stock}"
    return f'{entity_tag(product.version)[:-1]}{extension}"'


def parse_if_match(header: bytes | None) -> list[int] | None:
    """Return the versions that `If-Match` allows; None: any. A weak or foreign tag allows none. Raises BadInput.

    Sales do not modify a product, so the availability in a tag is ignored.
    """
    if header is None or header.strip() == b"*":
        return None
    value = header.decode("latin-1")
    if not _TAG_LIST.fullmatch(value) or not value.strip(" \t,"):
        raise BadInput("If-Match", "must be * or entity tags in quotes")
    return [
        int(match[1])
        for tag in _TAG.findall(value)
        if (match := _VERSION_TAG.fullmatch(compression.etag_without_coding(tag)))
    ]


def find_if_none_match(header: bytes, current: Sequence[str]) -> str | None:
    """Return the first current tag in `If-None-Match`, by weak comparison; for `*`, the first current tag.

    current: the tags that the body may have now. Invalid tags match nothing.
    """
    value = header.decode("latin-1")
    if value.strip() == "*":
        return current[0]
    known = {tag.removeprefix("W/") for tag in _TAG.findall(value)}
    return next((tag for tag in current if tag in known), None)
