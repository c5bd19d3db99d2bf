"""The invoices of a file in the Online Retail format, for `market replay`.

A file is read twice: the first time for its survey.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from market.storefront.importing import online_retail
from market.storefront.importing.online_retail import Survey


@dataclass(frozen=True, slots=True)
class Invoice:
    """What one invoice sells: units by stock code, in the order of the file; lines of the same code are added up."""

    number: str
    user: str
    at: datetime
    units: dict[str, int]


def invoices(path: Path, survey: Survey) -> Iterator[Invoice]:
    """Yield the invoices that sell something, each when it is complete; only incomplete ones are kept in memory."""
    open_: dict[str, Invoice] = {}
    for line in online_retail.lines(path):
        if line.skip_reason() is None:
            invoice = open_.get(line.invoice)
            if invoice is None:
                user = line.customer or f"guest-{line.invoice}"
                invoice = open_[line.invoice] = Invoice(line.invoice, user, line.at, {})
            invoice.units[line.code] = invoice.units.get(line.code, 0) + line.quantity
        if survey.last_lines[line.invoice] == line.number and line.invoice in open_:
            yield open_.pop(line.invoice)
