"""Files in the Online Retail format, for `market import` and `market replay`."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from market.storefront.importing import online_retail


def write_catalogue(path: Path, prefix: str, products: int) -> None:
    """Write a file that sells each of so many products once."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(online_retail.COLUMNS)
        for n in range(products):
            name = f"WHITE HANGING HEART T-LIGHT HOLDER {prefix}{n}"
            out.writerow(
                [prefix + str(n // 50), f"{prefix}{n}", name, 6, "2010-12-01T08:26:00", "2.55", 17850, "United Kingdom"]
            )


def write_invoices(source: Path | None, path: Path, prefix: str, times: int, limit: int | None = None) -> None:
    """Write the lines of `source` `times` over, each time with other invoice numbers.

    Without a source they are generated: invoices of twenty lines over four thousand products, some of which occur
    much more often.
    """
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(online_retail.COLUMNS)
        for turn in range(times):
            for row in _rows(source, limit):
                # A C at the beginning marks a cancellation.
                letter = row[0][:1] if row[0][:1] in "Cc" else ""
                out.writerow([f"{letter}{prefix}{turn}.{row[0][len(letter) :]}", *row[1:]])


def _rows(source: Path | None, limit: int | None) -> list[list[str]]:
    if source is not None:
        with source.open(newline="") as file:
            return list(csv.reader(file))[1:][:limit]
    rng = random.Random(3)
    rows = []
    for invoice in range((limit or 10_000) // 20):
        for _ in range(20):
            product = min(3999, int(rng.paretovariate(0.6)))
            quantity = str(rng.choice([1, 2, 6, 12]))
            name, date = f"ARTICLE {product}", "2010-12-01T08:26:00"
            rows.append([str(536365 + invoice), f"A{product}", name, quantity, date, "2.55", "17850", "United Kingdom"])
    return rows
