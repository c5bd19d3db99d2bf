#!/usr/bin/env bash
# Polars: shift() fills a column of decimals with a hundredth of the `fill_value` (with two decimal places), and without its fraction.
#
# Expected: `fill_value` is put where a shifted column has no value any more; a first price of 5.50 stays 5.50, as shift() followed
# by fill_null() has it.
# Seen: in a column with two decimal places there is 0.05 for 5.50, and 1.00 for 100: the value loses its fraction, and the digits that
# remain are taken for the smallest unit of the column. This is so in DataFrame.select and with_columns, in Series.shift and in groups
# (`over`), whether the value is a Decimal or an int. There is no error, the type is the right one, and 0 comes out right. A lazy
# query without groups gives the right value, since its plan casts the constant beforehand: so the same expression means
# one amount with `frame.select(...)` and another one with `frame.lazy().select(...).collect()`.
#
# Versions: polars 2.1.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     fill value Decimal('0'): select 0.00, Series 0.00, over 0.00, lazy 0.00, fill_null 0.00
#     fill value Decimal('5.50'): select 0.05, Series 0.05, over 0.05, lazy 5.50, fill_null 5.50
#     fill value Decimal('100'): select 1.00, Series 1.00, over 1.00, lazy 100.00, fill_null 100.00
#     fill value 100: select 1.00, Series 1.00, over 1.00, lazy 100.00, fill_null 100.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from decimal import Decimal

import polars as pl

frame = pl.DataFrame({"sku": ["A", "A"], "price": [Decimal("19.99"), Decimal("7.25")]})
price = pl.col("price")
wrong = set()
for value in (Decimal("0"), Decimal("5.50"), Decimal("100"), 100):
    shifted = price.shift(1, fill_value=value)
    seen = {
        "select": frame.select(shifted).item(0, 0),
        "Series": frame["price"].shift(1, fill_value=value)[0],
        "over": frame.select(shifted.over("sku")).item(0, 0),
        "lazy": frame.lazy().select(shifted).collect().item(0, 0),
        "fill_null": frame.select(price.shift(1).fill_null(value)).item(0, 0),
    }
    print(f"fill value {value!r}:", ", ".join(f"{how} {first}" for how, first in seen.items()))
    if seen["fill_null"] == value and seen["select"] != value:
        wrong.add(seen["select"])
sys.exit(0 if wrong == {Decimal("0.05"), Decimal("1.00")} else 1)
PYTHON
