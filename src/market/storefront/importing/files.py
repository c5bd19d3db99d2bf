"""Reading a file: its products, and its invalid rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from market.storefront.importing import online_retail, rows
from market.storefront.importing.online_retail import InvalidFile, InvalidRow
from market.storefront.importing.rows import Row


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    lines: the number of lines, without the header
    skipped: the number of lines, or of stock codes, that are not products, by reason
    """

    lines: int
    rows: list[Row]
    invalid: list[InvalidRow]
    skipped: Mapping[str, int]


def read(data: bytes, name: str, *, stock: int | None = None, max_rows: int) -> Contents:
    """Return the contents of a file. Raises InvalidFile.

    stock: the stock of each product; default: the units that the file sells
    max_rows: the maximum number of products and invalid rows
    """
    invalid: list[InvalidRow] = []

    def add_invalid(row: InvalidRow) -> None:
        invalid.append(row)
        if len(invalid) > max_rows:
            raise InvalidFile(name, None, None, f"has more than {max_rows:,} invalid rows")

    lines = online_retail.read_lines(BytesIO(data), name, on_invalid=add_invalid)
    survey = online_retail.summarize(lines, name)
    found = [rows.of_article(article, stock) for article in survey.articles]
    count = len(found) + len(invalid)
    if count > max_rows:
        raise InvalidFile(name, None, None, f"has {count:,} products, and must have at most {max_rows:,}")
    skipped = Counter(survey.skipped)
    if survey.incomplete:
        skipped[online_retail.INCOMPLETE] = survey.incomplete
    return Contents(survey.lines + len(invalid), found, invalid, skipped)
