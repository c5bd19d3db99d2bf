#!/usr/bin/env bash
# Babel: get_currency_precision() returns CLDR's customary display digits, which are not ISO 4217's minor units.
#
# Expected: the number of decimals that an amount in the currency can have, as in ISO 4217 (its table A.1, "minor unit"), so that
# it can decide whether a price such as 12.50 is an amount of money at all.
# Seen: for 15 currencies that are in use the two disagree, always in the same direction: 0 instead of 2 for AFN, ALL, COP, HUF, IDR,
# IRR, KPW, LAK, LBP, MGA, MMK, SOS, SYP and YER, and 0 instead of 3 for IQD. A shop that checks amounts with
# it refuses 4.50 COP or 99.90 HUF, and one that converts to minor units with it charges a hundredth (or a thousandth).
#
# Versions: Babel 2.19.0; iso4217 1.16.20260101 (the published table of ISO 4217); Python 3.11. Date: 2026-11-28.
# Output seen:
#     15 currencies in use differ: AFN 0/2 ALL 0/2 COP 0/2 HUF 0/2 IDR 0/2 IQD 0/3 IRR 0/2 KPW 0/2 LAK 0/2 LBP 0/2 MGA 0/2 MMK 0/2 SOS 0/2 SYP 0/2 YER 0/2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check babel==2.19.0 iso4217==1.16.20260101; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from babel.numbers import get_currency_precision
from iso4217 import Currency

differing = {
    c.code: (get_currency_precision(c.code), c.exponent)
    for c in Currency
    if c.exponent is not None and get_currency_precision(c.code) != c.exponent
}
print(f"{len(differing)} currencies in use differ:", *(f"{code} {cldr}/{iso}" for code, (cldr, iso) in sorted(differing.items())))
sys.exit(0 if differing.get("HUF") == (0, 2) and differing.get("IQD") == (0, 3) else 1)
PYTHON
