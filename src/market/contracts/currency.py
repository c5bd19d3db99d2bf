"""Currencies of ISO 4217 with their minor units, from the standard's published table (the package iso4217, 70 kB).

Neither Babel's nor pycountry's data fits: Babel has the decimals that are customary (none for HUF, where ISO 4217 has
two), pycountry has none, and each adds over 20 MB.
"""

from __future__ import annotations

import iso4217

# Units of account, in which nobody pays. The table marks funds, but not these two.
_UNITS_OF_ACCOUNT = frozenset({"UYW", "XAD"})


def _read_table() -> dict[str, int]:
    """Return the minor units of each currency in use.

    Metals, bond market units and test codes have none; funds are left out.
    """
    minor_units: dict[str, int] = {}
    for entry in iso4217.raw_xml.iter("CcyNtry"):
        code, digits, name = entry.findtext("Ccy"), entry.findtext("CcyMnrUnts"), entry.find("CcyNm")
        is_fund = name is not None and name.get("IsFund") == "true"
        if code and digits and digits.isdigit() and not is_fund and code not in _UNITS_OF_ACCOUNT:
            minor_units[code] = int(digits)
    return minor_units


_MINOR_UNITS = _read_table()

# The codes of all currencies in use, sorted.
CODES = tuple(sorted(_MINOR_UNITS))


def is_known(code: str) -> bool:
    """Return whether it is the code, in upper case, of a currency in use."""
    return code in _MINOR_UNITS


def validate(code: str) -> str:
    """Return the code unchanged. Raises ValueError with the rule unless `is_known`."""
    if not is_known(code):
        got = f', got "{code}"' if len(code) <= 10 and code.isprintable() else ""
        raise ValueError(f"must be the ISO 4217 code of a currency in use, such as EUR, in upper case{got}")
    return code


def minor_units(code: str) -> int:
    """Return the number of decimals of an amount in the currency: 2 for EUR, 0 for JPY, 3 for KWD. Raises KeyError."""
    return _MINOR_UNITS[code]


def written_decimals(code: str) -> int:
    """Return the number of decimals with which amounts in the currency are written: two, or more if it has more.

    Orders and events may be in a currency that is no longer in use: two.
    """
    return max(2, _MINOR_UNITS.get(code, 2))
