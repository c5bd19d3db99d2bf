"""Money in every contract of the shop: a JSON string, next to a currency of ISO 4217, calculated as Decimal.

An amount is written with the decimals of its currency, but at least two: 2.50 GBP, 1.250 KWD, 100.00 JPY. Elsewhere it
is kept with two decimals, and with a third one only if that is not zero: fingerprints and stored orders are the same
for 1.25 and 1.250 KWD, as in versions that had two decimals only.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

from market.contracts import currency

PRICE_RULE = "must be a string of 1 to 8 digits, with at most three decimals after a point"
TOTAL_RULE = "must be a string of 1 to 17 digits, with at most three decimals after a point"

# No currency has more than three decimals. How many that of an amount has is validated separately.
PRICE_PATTERN = r"^[0-9]{1,8}(\.[0-9]{1,3})?$"
MAX_PRICE_LENGTH = 12
_TOTAL_PATTERN = r"^[0-9]{1,17}(\.[0-9]{1,3})?$"

# In JSON. `parse_price` and `parse_total` validate the texts: their errors show the value.
PriceText = Annotated[
    str,
    Meta(
        description="with at most as many decimals as the currency has: 2.50 GBP, 1.250 KWD, 100 JPY",
        extra_json_schema={"maxLength": MAX_PRICE_LENGTH, "pattern": PRICE_PATTERN},
    ),
]
TotalText = Annotated[str, Meta(extra_json_schema={"maxLength": 21, "pattern": _TOTAL_PATTERN})]

_PRICE = re.compile(PRICE_PATTERN)
_TOTAL = re.compile(_TOTAL_PATTERN)
_ZEROS_AFTER_HUNDREDTHS = re.compile(r"(?<=\.[0-9]{2})0+$", re.ASCII)
_MAX_SHOWN = 40
_CENT = Decimal("0.01")
_MILLE = Decimal("0.001")
_UNIT_BY_DECIMALS = {2: _CENT, 3: _MILLE}


def parse_price(text: str) -> Decimal:
    """Return a price, from 0 to 99,999,999.999, as `normalize` does. Raises ValueError with the rule."""
    if not _PRICE.fullmatch(text):
        raise ValueError(_with_value(PRICE_RULE, text))
    return normalize(Decimal(text))


def parse_total(text: str) -> Decimal:
    """Return a total, of up to 17 digits before the point, as `normalize` does. Raises ValueError with the rule."""
    if not _TOTAL.fullmatch(text):
        raise ValueError(_with_value(TOTAL_RULE, text))
    return normalize(Decimal(text))


def _with_value(rule: str, text: str) -> str:
    return f'{rule}, got "{text}"' if len(text) <= _MAX_SHOWN and text.isprintable() else rule


def normalize(amount: Decimal) -> Decimal:
    """Return the amount with two decimals, or rounded to three if it has more than two."""
    in_cents = amount.quantize(_CENT)
    return in_cents if in_cents == amount else amount.quantize(_MILLE)


def normalize_text(text: str) -> str:
    """Return an amount as text without the zeros after its second decimal: 1.25 for 1.250."""
    return _ZEROS_AFTER_HUNDREDTHS.sub("", text)


def in_currency(amount: Decimal, code: str) -> Decimal:
    """Return the amount with the decimals with which it is written in the currency: at least two.

    An amount that the currency does not have keeps its third decimal.
    """
    written = amount.quantize(_UNIT_BY_DECIMALS[currency.written_decimals(code)])
    return written if written == amount else normalize(amount)


def write(amount: Decimal, code: str) -> str:
    """Return the amount as text with the decimals of the currency, at least two: 2.50 GBP, 1.250 KWD, 100.00 JPY."""
    return str(in_currency(amount, code))
