#!/usr/bin/env bash
# Babel: for a locale without a territory, such as de or fr, week numbers are not those of its country: in 2027 all are one too high.
#
# Expected: CLDR has the data on weeks by territory, and says how to get one for a language alone: by its likely subtags, de -> DE, as Babel
# itself does for other purposes and as ICU does for weeks (Intl.Locale("de").getWeekInfo() in Node: minimalDays 4). So `de` and
# `de_DE` number weeks alike, by ISO 8601; and for `en` the week begins on Sunday, as for en_US.
# Seen: without a territory, Babel takes the data for the whole world: the week begins on Monday, and the week of January 1 is week 1.
# In years that begin with Friday, Saturday or Sunday, such as 2027 and 2028, every week of the year has a number that is too high
# by one in German, French, Italian, Spanish, Polish, Swedish and the like. A shop that has the language of the page but no country
# prints "week 25" for a delivery in week 24. From 2024 on nothing could be noticed; it begins on December 28, 2026.
#
# Versions: Babel 2.19.0, Python 3.11. Date: 2026-11-29.
# Output seen:
#     2026-06-16, ISO week 25: de 25, de_DE 25; fr 25, fr_FR 25; sv 25, sv_SE 25
#     2027-06-16, ISO week 24: de 25, de_DE 24; fr 25, fr_FR 24; sv 25, sv_SE 24
#     2027-06-16, de: Woche 25 des Jahres 2027, de_DE: Woche 24 des Jahres 2027
#     first day of the week (Monday is 0): en 0, en_US 6
#     likely subtags of de: de_Latn_DE
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check babel==2.19.0; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from datetime import date

from babel import Locale
from babel.core import get_global
from babel.dates import format_date, format_skeleton

PAIRS = (("de", "de_DE"), ("fr", "fr_FR"), ("sv", "sv_SE"))
wrong = {}
for day in (date(2026, 6, 16), date(2027, 6, 16)):
    iso = day.isocalendar().week
    weeks = {locale: int(format_date(day, "w", locale=locale)) for pair in PAIRS for locale in pair}
    wrong[day.year] = sorted(locale for locale, week in weeks.items() if week != iso)
    print(f"{day}, ISO week {iso}:", "; ".join(", ".join(f"{locale} {weeks[locale]}" for locale in pair) for pair in PAIRS))
print(f"{day},", ", ".join(f"{locale}: {format_skeleton('yw', day, locale=locale)}" for locale in PAIRS[0]))
first = {locale: Locale.parse(locale).first_week_day for locale in ("en", "en_US")}
print("first day of the week (Monday is 0):", ", ".join(f"{locale} {number}" for locale, number in first.items()))
print("likely subtags of de:", get_global("likely_subtags")["de"])
sys.exit(0 if wrong == {2026: [], 2027: ["de", "fr", "sv"]} and first == {"en": 0, "en_US": 6} else 1)
PYTHON
