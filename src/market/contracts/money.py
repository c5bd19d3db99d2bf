"""Money in every contract of the shop: a JSON string with two decimals, calculated as Decimal."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

PRICE_RULE = "must be a string of 1 to 8 digits, with at most two decimals after a point"
TOTAL_RULE = "must be a string of 1 to 17 digits, with at most two decimals after a point"

# In JSON; responses always have two decimals.
PricePattern = r"^[0-9]{1,8}(\.[0-9]{1,2})?$"
PriceText = Annotated[str, Meta(pattern=PricePattern, max_length=11, extra={"rule": PRICE_RULE})]
TotalPattern = r"^[0-9]{1,17}(\.[0-9]{1,2})?$"
TotalText = Annotated[str, Meta(pattern=TotalPattern, max_length=20, extra={"rule": TOTAL_RULE})]

_PRICE = re.compile(r"[0-9]{1,8}(\.[0-9]{1,2})?", re.ASCII)
_TOTAL = re.compile(r"[0-9]{1,17}(\.[0-9]{1,2})?", re.ASCII)
_CENT = Decimal("0.01")


def parse_price(text: str) -> Decimal:
    """Return a price, from 0 to 99,999,999.99. Raises ValueError with the rule."""
    if not _PRICE.fullmatch(text):
        raise ValueError(PRICE_RULE)
    return Decimal(text).quantize(_CENT)


def parse_total(text: str) -> Decimal:
    """Return a total, of up to 17 digits before the point. Raises ValueError with the rule."""
    if not _TOTAL.fullmatch(text):
        raise ValueError(TOTAL_RULE)
    return Decimal(text).quantize(_CENT)


def write(amount: Decimal) -> str:
    """Return the amount as text with two decimals: 2.50."""
    return str(amount.quantize(_CENT))
