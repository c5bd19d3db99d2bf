"""The rows of an import as a CSV file, for a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO

from market.storefront.importing.job import Conflict, Item, Job

# The first characters of cells that spreadsheets evaluate as formulas.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_HEADER = (
    "line",
    "stock code",
    "name",
    "price",
    "currency",
    "stock",
    "plan",
    "result",
    "product id",
    "field",
    "in the shop",
    "in the file",
    "reason",
)
_CONFLICTS: dict[Conflict, str] = {
    "modified": "was changed after the dry run",
    "deleted": "was deleted after the dry run",
    "exists": "was created by somebody else after the dry run",
    "key_used": "was imported before, and its description has no stock code any more",
}


def write(job: Job) -> bytes:
    """Return the report in UTF-8, with a byte order mark, by which spreadsheets recognise the encoding.

    A row that changes several fields becomes one line per field.
    """
    text = StringIO()
    out = csv.writer(text)
    out.writerow(_HEADER)
    for item in job.items:
        for line in _lines(item):
            out.writerow([_escape(cell) for cell in line])
    return text.getvalue().encode("utf-8-sig")


def _lines(item: Item) -> Iterator[list[str]]:
    row = item.row
    result = "" if item.outcome is None else item.outcome
    stock = str(row.stock) if row.code else ""
    beginning = [str(row.number), row.code, row.name, row.price, row.currency, stock, item.plan or "", result]
    beginning.append(item.product_id or "")
    reason = _CONFLICTS[item.conflict] if item.conflict else item.reason
    if not item.before:
        yield [*beginning, item.field, "", "", reason]
    for field, before in item.before.items():
        yield [*beginning, field, before or "", getattr(row, field) or "", reason]


def _escape(cell: str) -> str:
    """Return the cell with an apostrophe before it if a spreadsheet would evaluate it."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
