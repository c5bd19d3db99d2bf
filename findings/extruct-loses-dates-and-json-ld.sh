#!/usr/bin/env bash
# extruct: the text of a <time> element is not read as its value, and JSON-LD is ignored if its type has a parameter or capital letters.
#
# Expected: by the HTML standard, the value of <time itemprop="priceValidUntil">2026-12-31</time> in microdata is its text, as it has no
# datetime attribute. JSON-LD 1.1 permits a profile parameter in the type of the script element, and media types are compared without
# regard to case and may have parameters such as charset; so all four scripts below are data of the page.
# Seen: the value of the <time> element is an empty text: a price that is valid until a date seems to be valid for ever, or fails where a
# date is parsed. The same element in RDFa has its text. Of the scripts only the one whose type is literally application/ld+json is found;
# the product in the other three is missing, and nothing tells so: to a program that compares shops, they sell nothing.
#
# Versions: extruct 0.18.0, lxml 6.1.3, Python 3.11. Date: 2026-11-29.
# Output seen:
#     microdata: <time> with a text '', <time> with datetime '2026-12-31', <span> with a text '2026-12-31'
#     RDFa: <time> with a text '2026-12-31'
#     JSON-LD, application/ld+json: 1 products
#     JSON-LD, application/ld+json; charset=utf-8: 0 products
#     JSON-LD, application/ld+json;profile="http://www.w3.org/ns/json-ld#compacted": 0 products
#     JSON-LD, Application/LD+JSON: 0 products
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check extruct==0.18.0 \
  lxml==6.1.3; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from extruct import extract

DATE = "2026-12-31"


def read(page, syntax):
    return extract(f"<!DOCTYPE html><html><body>{page}</body></html>", syntaxes=[syntax])[syntax]


def microdata(element):
    return read(f'<div itemscope itemtype="https://schema.org/Offer">{element}</div>', "microdata")[0]["properties"]["priceValidUntil"]


dates = {
    "<time> with a text": microdata(f'<time itemprop="priceValidUntil">{DATE}</time>'),
    "<time> with datetime": microdata(f'<time itemprop="priceValidUntil" datetime="{DATE}">New Year</time>'),
    "<span> with a text": microdata(f'<span itemprop="priceValidUntil">{DATE}</span>'),
}
print("microdata:", ", ".join(f"{element} {value!r}" for element, value in dates.items()))
offer = f'<div vocab="https://schema.org/" typeof="Offer"><time property="priceValidUntil">{DATE}</time></div>'
rdfa = [value["@value"] for item in read(offer, "rdfa") for value in item.get("https://schema.org/priceValidUntil", [])]
print(f"RDFa: <time> with a text {rdfa[0]!r}")
found = {}
for media_type in (
    "application/ld+json",
    "application/ld+json; charset=utf-8",
    'application/ld+json;profile="http://www.w3.org/ns/json-ld#compacted"',
    "Application/LD+JSON",
):
    script = f"<script type='{media_type}'>" + '{"@context": "https://schema.org", "@type": "Product", "sku": "A"}</script>'
    found[media_type] = len(read(script, "json-ld"))
    print(f"JSON-LD, {media_type}: {found[media_type]} products")
sys.exit(0 if list(dates.values()) == ["", DATE, DATE] and rdfa == [DATE] and list(found.values()) == [1, 0, 0, 0] else 1)
PYTHON
