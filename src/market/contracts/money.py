"""Money as every contract of the shop writes it: a JSON string with two places, reckoned in Decimal."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

# How a price is written in JSON: `[0-9]{1,8}(\\.[0-9]{1,2})?`; answered with two places.
PricePattern = r"^[0-9]{1,8}(\.[0-9]{1,2})?$"
PriceText = Annotated[str, Meta(pattern=PricePattern, max_length=11)]
# A total may have up to 17 digits before the point.
TotalPattern = r"^[0-9]{1,17}(\.[0-9]{1,2})?$"
TotalText = Annotated[str, Meta(pattern=TotalPattern, max_length=20)]

_PRICE = re.compile(r"[0-9]{1,8}(\.[0-9]{1,2})?", re.ASCII)
_TOTAL = re.compile(r"[0-9]{1,17}(\.[0-9]{1,2})?", re.ASCII)
_CENT = Decimal("0.01")


def parse_price(text: str) -> Decimal:
    """A price, 0 to 99,999,999.99. Raises ValueError with the rule."""
    if not _PRICE.fullmatch(text):
        raise ValueError("must be a string of 1 to 8 digits, with at most two decimals after a point")
    return Decimal(text).quantize(_CENT)


def parse_total(text: str) -> Decimal:
    """A total, up to 17 digits before the point. Raises ValueError with the rule."""
    if not _TOTAL.fullmatch(text):
        raise ValueError("must be a string of 1 to 17 digits, with at most two decimals after a point")
    return Decimal(text).quantize(_CENT)


def write(amount: Decimal) -> str:
    """With two places: 2.50."""
    return str(amount.quantize(_CENT))
