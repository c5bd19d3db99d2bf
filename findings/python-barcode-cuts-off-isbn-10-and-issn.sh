#!/usr/bin/env bash
# python-barcode: the bar codes for ISBN-10 and ISSN have 10 and 8 digits instead of 13, so they are no EAN-13 and miss part of the number.
#
# Expected: a book's ISBN-10 is printed as EAN-13 with 978 before it, an ISSN with 977 before and 00 behind it, and a new check digit. The
# module's docstring has that example: 0132354187 gives 9780132354189, which is also what the class for ISBN-13 makes of that number.
# Seen: the classes set `digits` to the length of their own number, 9 or 7, and the class for EAN-13 below them cuts what it is given to
# that length after 978 or 977 has been put in front. The last three digits are lost, the check digit is computed for what is left, and
# the bars are fewer than the 95 modules of an EAN-13. So all books whose numbers begin alike get the same code, which no scanner
# takes for one of a book. str() and the attribute isbn10 are right, and there is no error. ISBN-13 works. The project has accepted
# a correction in July, but the newest release does not have it.
#
# Versions: python-barcode 0.16.1 (0.15.1 does the same), Python 3.11. Date: 2026-11-29.
# Output seen:
#     isbn10 0132354187: 9780132352, 74 modules
#     isbn10 0132354004: 9780132352, 74 modules
#     issn 03178471: 97703174, 60 modules
#     isbn13 9780132354189: 9780132354189, 95 modules
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check python-barcode==0.16.1; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import barcode

seen = []
for kind, number in (("isbn10", "0132354187"), ("isbn10", "0132354004"), ("issn", "03178471"), ("isbn13", "9780132354189")):
    code = barcode.get(kind, number)
    assert str(code) == number, str(code)
    seen.append(code.get_fullcode())
    print(f"{kind} {number}: {seen[-1]}, {len(code.build()[0])} modules")
sys.exit(0 if seen[0] == seen[1] and [len(code) for code in seen] == [10, 10, 8, 13] else 1)
PYTHON
