"""Reads files in the Online Retail format: CSV with the columns COLUMNS, one line per article of an invoice.

A file is read as a stream; memory grows with the number of articles and invoices, not of lines. The data set is
described at https://archive.ics.uci.edu/dataset/352/online+retail.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import BinaryIO

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")

# Stock codes that are not articles: postage, discounts, carriage, manual corrections, fees, samples.
CHARGES = frozenset(
    [
        "POST",
        "DOT",
        "C2",
        "C3",
        "D",
        "M",
        "S",
        "B",
        "BANK CHARGES",
        "AMAZONFEE",
        "AMAZON FEE",
        "CRUK",
        "ADJUST",
        "ADJUST2",
        "GIFT",
    ]
)

# Why a line is not a sale, in the order of the checks.
RETURNED, CHARGE, UNDESCRIBED, FREE = "returns", "charges", "lines without a description", "zero prices"
SKIPPED = (RETURNED, CHARGE, UNDESCRIBED, FREE)
# Why a stock code is not a product.
INCOMPLETE = "stock codes without a description or a price"

CURRENCY = "GBP"
MAX_QUANTITY = 2_147_483_647
_MAX_PRICE = Decimal("99999999.99")
_CENT = Decimal("0.01")
_CUSTOMER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}", re.ASCII)
# Two formats: that of the data set's files, and that of spreadsheets' exports of the original.
_DATES = ("%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M")


class InvalidFile(Exception):
    """The file cannot be used; the message names the file, the line, the column and the reason."""

    def __init__(self, name: Path | str, line: int | None, column: str | None, reason: str) -> None:
        where = "" if line is None else f", line {line}"
        super().__init__(f"{name}{where}{f', column {column}' if column else ''}: {reason}")
        self.line = line
        self.column = column
        self.reason = reason


class InvalidRow(InvalidFile):
    """One row is invalid. The others can be read."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice. `code` is in upper case, `price` is as in the file, `customer` may be empty."""

    number: int
    invoice: str
    code: str
    description: str
    quantity: int
    at: datetime
    price: Decimal
    customer: str

    def skip_reason(self) -> str | None:
        """Return why the line is not a sale, one of SKIPPED, or None if it is one."""
        if self.quantity <= 0 or self.invoice[:1] in "Cc":
            return RETURNED
        if self.code in CHARGES:
            return CHARGE
        if not self.description:
            return UNDESCRIBED
        if self.price <= 0:
            return FREE
        return None


@dataclass(frozen=True, slots=True)
class Article:
    """One stock code: its most frequent description, its median price in GBP, and the units that the file sells.

    line: the first line that has the code
    """

    code: str
    name: str
    price: Decimal
    sold: int
    line: int = field(default=0, compare=False)


@dataclass(slots=True)
class Survey:
    """Summary of a whole file.

    invoices: the number of invoices that sell something
    incomplete: the number of stock codes that no line gives both a description and a price
    skipped: the number of lines by reason, see SKIPPED
    last_lines: the last line of each invoice, after which it is complete
    """

    articles: list[Article]
    lines: int
    invoices: int
    incomplete: int
    skipped: Counter[str]
    last_lines: dict[str, int] = field(repr=False)


Progress = Callable[[int], None]


def survey(path: Path, progress: Progress | None = None) -> Survey:
    """Read the whole file once, so that errors are found before the first request. Raises InvalidFile.

    `progress` is called with the number of bytes read so far.
    """
    return summarize(lines(path, progress), path)


def summarize(lines: Iterable[Line], name: Path | str) -> Survey:
    """Return the survey of the lines. `name`: of the file, for errors. Raises InvalidFile."""
    names: defaultdict[str, Counter[str]] = defaultdict(Counter)
    prices: defaultdict[str, Counter[Decimal]] = defaultdict(Counter)
    sold: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    last_lines: dict[str, int] = {}
    first_lines: dict[str, int] = {}
    selling: set[str] = set()
    count = 0
    for line in lines:
        count += 1
        last_lines[line.invoice] = line.number
        skip_reason = line.skip_reason()
        if line.code not in CHARGES:
            sold[line.code] += 0
            first_lines.setdefault(line.code, line.number)
            # Returns show the price too; notes on write-offs are not descriptions.
            if line.description and line.price > 0:
                names[line.code][line.description] += 1
                prices[line.code][line.price] += 1
        if skip_reason is not None:
            skipped[skip_reason] += 1
            continue
        selling.add(line.invoice)
        sold[line.code] += line.quantity
        if sold[line.code] > MAX_QUANTITY:
            raise InvalidFile(
                name, line.number, "Quantity", f"the file sells more than {MAX_QUANTITY:,} units of {line.code}"
            )
    # Counter.most_common prefers the first seen of equally frequent ones, so the same file gives the same articles.
    articles = [
        Article(code, names[code].most_common(1)[0][0], median(prices[code]), units, first_lines[code])
        for code, units in sold.items()
        if code in names
    ]
    return Survey(articles, count, len(selling), len(sold) - len(articles), skipped, last_lines)


def median(prices: Counter[Decimal]) -> Decimal:
    """Return the median of the prices, rounded half up to two decimals."""
    total = prices.total()
    # The indexes of the one or two prices in the middle.
    low, high = (total - 1) // 2, total // 2
    middle: list[Decimal] = []
    seen = 0
    for price in sorted(prices):
        upto = seen + prices[price]
        middle += [price for place in (low, high) if seen <= place < upto]
        seen = upto
    return (sum(middle, Decimal(0)) / 2).quantize(_CENT, ROUND_HALF_UP)


def lines(path: Path, progress: Progress | None = None) -> Iterator[Line]:
    """Yield the file's lines as a stream. Raises InvalidFile."""
    try:
        with path.open("rb") as file:
            yield from read_lines(file, path, progress=progress)
    except OSError as e:
        raise InvalidFile(path, None, None, f"cannot be read: {e.strerror}") from None


def read_lines(
    file: BinaryIO,
    name: Path | str,
    *,
    progress: Progress | None = None,
    on_invalid: Callable[[InvalidRow], None] | None = None,
) -> Iterator[Line]:
    """Yield the lines of an open file. Raises InvalidFile.

    on_invalid: called for each row that is invalid, instead of raising InvalidRow
    """
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number, data in enumerate(file, 1):
            read += len(data)
            if number == 1 and (reason := _other_format(data)):
                raise InvalidFile(name, None, None, reason)
            try:
                yield data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InvalidFile(
                    name, number, None, "is not UTF-8 (iconv -f ISO-8859-1 -t UTF-8 FILE > NEW converts the original)"
                ) from None

    reader = csv.reader(texts(), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise InvalidFile(name, None, None, "is empty")
        parse = _Parser(name, [column.strip() for column in header])
        for row in reader:
            if not row:
                continue
            try:
                line = parse(reader.line_num, row)
            except InvalidRow as e:
                if on_invalid is None:
                    raise
                on_invalid(e)
                continue
            yield line
            if progress and reader.line_num % 512 == 0:
                progress(read)
    except csv.Error as e:
        raise InvalidFile(name, reader.line_num, None, f"is not CSV: {e}") from None
    if progress:
        progress(read)


def _other_format(beginning: bytes) -> str | None:
    """Return the format of a file that is not text in UTF-8, recognised by its first line; None if it may be UTF-8."""
    if beginning.startswith(b"PK\x03\x04"):
        return "is an Excel workbook; save it as CSV in UTF-8"
    # With a byte order mark iconv knows the order, and removes the mark. That of UTF-32 may begin with that of UTF-16.
    if beginning.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        name = "UTF-32"
    elif beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "UTF-16"
    elif b"\0" in beginning[:100]:
        name = "UTF-16BE" if beginning.startswith(b"\0") else "UTF-16LE"
    else:
        return None
    return f"is in {name[:6]}, and must be in UTF-8 (iconv -f {name} -t UTF-8 FILE > NEW converts it)"


def _other_separator(header: list[str]) -> str | None:
    """Return why the first line cannot be read if its fields are separated by other characters than commas."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(header) == 1 and separator in header[0]:
            return f"its fields are separated by {name}, and must be separated by commas, with a point in decimals"
    return None


class _Parser:
    """Converts a row into a Line, or raises InvalidRow with the column."""

    def __init__(self, name: Path | str, header: list[str]) -> None:
        self._name = name
        self._width = len(header)
        if reason := _other_separator(header):
            raise InvalidFile(name, 1, None, reason)
        if missing := [column for column in COLUMNS if column not in header]:
            raise InvalidFile(name, 1, missing[0], f"is missing; the first line must name {','.join(COLUMNS)}")
        self._indexes = [header.index(column) for column in COLUMNS]

    def __call__(self, number: int, row: list[str]) -> Line:
        if len(row) != self._width:
            raise InvalidRow(self._name, number, None, f"must have {self._width} fields, got {len(row)}")
        invoice, code, description, quantity, date, price, customer = (row[i].strip() for i in self._indexes[:7])
        if not _CUSTOMER.fullmatch(invoice):
            raise self._error(number, "InvoiceNo", "1 to 50 letters and digits", invoice)
        if not code or len(code) > 50 or not code.isprintable():
            raise self._error(number, "StockCode", "1 to 50 printable characters", code)
        if customer and not _CUSTOMER.fullmatch(customer):
            raise self._error(number, "CustomerID", "empty or 1 to 50 letters and digits", customer)
        description = " ".join(description.split())
        if len(description) > 200 or not description.isprintable():
            raise self._error(number, "Description", "at most 200 printable characters", description)
        try:
            units = int(quantity)
        except ValueError:
            units = MAX_QUANTITY + 1
        if abs(units) > MAX_QUANTITY:
            raise self._error(number, "Quantity", "a whole number", quantity)
        return Line(
            number,
            invoice,
            code.upper(),
            description,
            units,
            self._date(number, date),
            self._price(number, price),
            customer,
        )

    def _price(self, number: int, text: str) -> Decimal:
        try:
            price = Decimal(text)
        except InvalidOperation:
            price = Decimal("NaN")
        if not price.is_finite() or abs(price) > _MAX_PRICE:
            raise self._error(number, "UnitPrice", "a price such as 2.55, at most 99999999.99", text)
        return price

    def _date(self, number: int, text: str) -> datetime:
        try:
            return datetime.fromisoformat(text).replace(tzinfo=None)
        except ValueError:
            for form in _DATES:
                try:
                    return datetime.strptime(text, form)  # noqa: DTZ007 (local time of the shop; only differences are used)
                except ValueError:
                    continue
        raise self._error(number, "InvoiceDate", "a time such as 2010-12-01T08:26:00", text)

    def _error(self, number: int, column: str, allowed: str, value: str) -> InvalidRow:
        return InvalidRow(self._name, number, column, f"must be {allowed}, got {value[:60]!r}")
