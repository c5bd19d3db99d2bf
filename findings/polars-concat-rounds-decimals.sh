#!/usr/bin/env bash
# Polars: concat() of frames whose decimals have different numbers of places rounds those of the later frames, without an error.
#
# Expected: decimals of different scale are different types. `how="vertical"` wants the same types in all frames and raises SchemaError
# otherwise, as it does for integers and floats (`vertical_relaxed` is what finds a common type). If it accepts them, all values are kept.
# Seen: the scale of the first frame counts. Below a price list with 12.5 and 3.0, one with 1.255 becomes 1.3, and below one with whole
# numbers 1.49 becomes 1. As the scale of a column that is made from Decimals is that of its values, the result depends on which prices a
# file has that day, and on the order of the files. DataFrame.vstack and extend, Series.append and extend, and `how="diagonal"` do the
# same. `vertical_relaxed` keeps the values.
#
# Versions: polars 2.1.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     vertical, first 12.5, then 1.255: 12.5, 1.3
#     vertical, first 1.255, then 12.5: 1.255, 12.500
#     vertical, first 12, then 1.49: 12, 1
#     diagonal, first 12.5, then 1.255: 12.5, 1.3
#     vertical_relaxed, first 12.5, then 1.255: 12.500, 1.255
#     vstack, first 12.5, then 1.255: 12.5, 1.3
#     vertical, first the integer 12, then the float 1.255: SchemaError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from decimal import Decimal

import polars as pl


def combine(how, first, then):
    frames = [pl.DataFrame({"price": [value]}) for value in (first, then)]
    try:
        result = frames[0].vstack(frames[1]) if how == "vstack" else pl.concat(frames, how=how)
    except pl.exceptions.SchemaError as e:
        return type(e).__name__
    return ", ".join(str(value) for value in result["price"])


seen = {}
for how, first, then in (
    ("vertical", "12.5", "1.255"),
    ("vertical", "1.255", "12.5"),
    ("vertical", "12", "1.49"),
    ("diagonal", "12.5", "1.255"),
    ("vertical_relaxed", "12.5", "1.255"),
    ("vstack", "12.5", "1.255"),
):
    seen[how, first] = combine(how, Decimal(first), Decimal(then))
    print(f"{how}, first {first}, then {then}: {seen[how, first]}")
numbers = combine("vertical", 12, 1.255)
print(f"vertical, first the integer 12, then the float 1.255: {numbers}")
rounded = seen["vertical", "12.5"] == "12.5, 1.3" and seen["vertical", "12"] == "12, 1"
sys.exit(0 if rounded and seen["vertical_relaxed", "12.5"] == "12.500, 1.255" and numbers == "SchemaError" else 1)
PYTHON
