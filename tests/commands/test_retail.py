"""Reading files in the Online Retail format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_dev.commands import retail

from market.storefront.importing import online_retail
from market.storefront.importing.online_retail import Article, InvalidFile

Write = Callable[..., Path]


def test_stock_codes_are_case_insensitive(write: Write) -> None:
    survey = online_retail.survey(write("1;85123A;HOLDER;6;2.55;17850", "1;85123a;HOLDER;2;2.55;17850"))
    assert survey.articles == [Article("85123A", "HOLDER", Decimal("2.55"), 8)]


def test_the_most_frequent_description_wins_and_the_first_of_equally_frequent_ones(write: Write) -> None:
    survey = online_retail.survey(
        write(
            "1;1;CLOCHE;1;1;",
            "1;1;BELL  JAR;1;1;",
            "1;1;BELL JAR ;1;1;",
            "1;2;FIRST;1;1;",
            "1;2;SECOND;1;1;",
            "2;2;amazon;1;0;",
            "3;2;amazon;1;0;",
        )
    )
    assert [g.name for g in survey.articles] == ["BELL JAR", "FIRST"]


def test_the_median_price_is_rounded_half_up(write: Write) -> None:
    survey = online_retail.survey(write("1;A1;X;1;1.11;", "1;A1;X;1;1.12;"))
    assert survey.articles[0].price == Decimal("1.12")


@given(st.lists(st.decimals(min_value=0, max_value=999, places=3), min_size=1, max_size=20))
def test_the_median_of_counted_prices_is_the_median_of_their_list(prices: list[Decimal]) -> None:
    middle = sorted(prices)[(len(prices) - 1) // 2] + sorted(prices)[len(prices) // 2]
    assert online_retail.median(Counter(prices)) == (middle / 2).quantize(Decimal("0.01"), "ROUND_HALF_UP")


def test_each_line_that_is_not_a_sale_is_skipped_with_a_reason(write: Write) -> None:
    survey = online_retail.survey(
        write(
            "1;10;GOOD;3;1.00;",
            "C2;10;GOOD;-1;1.00;",
            "3;10;lost;-4;0;",
            "4;POST;POSTAGE;1;18.00;5",
            "4;m;Manual;1;9;5",
            "4;BANK CHARGES;Bank Charges;1;15;5",
            "5;10;;2;0;",
            "6;10;FREE GIFT;2;0;",
            "7;20;;1;0;",
        )
    )
    assert survey.skipped == {
        online_retail.RETURNED: 2,
        online_retail.CHARGE: 3,
        online_retail.UNDESCRIBED: 2,
        online_retail.FREE: 1,
    }
    assert survey.articles == [Article("10", "GOOD", Decimal("1.00"), 3)]
    assert (survey.lines, survey.invoices, len(survey.last_lines), survey.incomplete) == (9, 1, 7, 1)


def test_an_article_that_is_only_returned_is_a_product_without_stock(write: Write) -> None:
    assert online_retail.survey(write("C1;10;DOORMAT;-1;6.75;5")).articles == [
        Article("10", "DOORMAT", Decimal("6.75"), 0)
    ]


def test_an_invoice_is_one_order_without_the_skipped_lines(write: Write) -> None:
    path = write(
        "1;10a;X;1;1;", "1;POST;POSTAGE;1;5;", "1;20;Y;2;1;", "1;10A;X;3;1;", "2;10A;X;1;1;17850", "C3;10A;X;-1;1;17850"
    )
    first, second = retail.invoices(path, online_retail.survey(path))
    assert (first.number, first.user, first.units) == ("1", "guest-1", {"10A": 4, "20": 2})
    assert (second.number, second.user, second.units) == ("2", "17850", {"10A": 1})


def test_an_invoice_with_scattered_lines_is_one_order(write: Write) -> None:
    path = write("1;10;X;1;1;", "2;10;X;5;1;", "1;20;Y;2;1;", "1;POST;POSTAGE;1;5;")
    assert [(i.number, i.units) for i in retail.invoices(path, online_retail.survey(path))] == [
        ("2", {"10": 5}),
        ("1", {"10": 1, "20": 2}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1;10;X;six;1;", "line 2, column Quantity: must be a whole number, got 'six'"),
        ("1;10;X;1.5;1;", "line 2, column Quantity"),
        ("1;10;X;99999999999;1;", "line 2, column Quantity"),
        ("1;10;X;1;free;", "line 2, column UnitPrice: must be a price such as 2.55"),
        ("1;10;X;1;NaN;", "line 2, column UnitPrice"),
        ("1;10;X;1;1e99;", "line 2, column UnitPrice"),
        (";10;X;1;1;", "line 2, column InvoiceNo"),
        ("1;;X;1;1;", "line 2, column StockCode"),
        ("1;10;X;1;1;a b", "line 2, column CustomerID"),
        ("1;10;X\x00;1;1;", "line 2, column Description"),
        (f"1;10;{'X' * 201};1;1;", "line 2, column Description: must be at most 200"),
    ],
)
def test_an_invalid_value_is_reported_with_line_and_column(write: Write, line: str, message: str) -> None:
    with pytest.raises(InvalidFile) as e:
        online_retail.survey(write(line))
    assert f"retail.csv, {message}" in str(e.value)


HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (
            HEADER.encode("utf-16"),
            ": is in UTF-16, and must be in UTF-8 \\(iconv -f UTF-16 -t UTF-8 FILE > NEW converts it\\)",
        ),
        (HEADER.encode("utf-32"), ": is in UTF-32, and must be in UTF-8 \\(iconv -f UTF-32 -t UTF-8 "),
        (HEADER.encode("utf-16-be"), ": is in UTF-16, and must be in UTF-8 \\(iconv -f UTF-16BE -t UTF-8 "),
        (HEADER.encode("utf-16-le"), ": is in UTF-16, and must be in UTF-8 \\(iconv -f UTF-16LE -t UTF-8 "),
        (b"PK\x03\x04\x14\x00", ": is an Excel workbook; save it as CSV in UTF-8"),
        (
            HEADER.replace(",", ";").encode("utf-8-sig"),
            "line 1: its fields are separated by semicolons, and must be separated by commas, with a point in decimals",
        ),
        (f"sep=;\n{HEADER}".encode(), "line 1: its fields are separated by semicolons"),
        (HEADER.replace(",", "\t").encode(), "line 1: its fields are separated by tabs"),
        (b"a,b,c\n1,2,3\n", "line 1, column InvoiceNo: is missing"),
        (
            b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n1,2\n",
            "line 2: must have 8 fields, got 2",
        ),
        (
            b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n1,2,\xa3,1,2010-12-01,1,,UK\n",
            "line 2: is not UTF-8",
        ),
        (b'InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n1,2,"X', "is not CSV"),
        (
            b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n1,2,X,1,soon,1,,UK\n",
            "line 2, column InvoiceDate",
        ),
    ],
)
def test_a_file_in_another_format_is_rejected(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "retail.csv"
    path.write_bytes(data)
    with pytest.raises(InvalidFile, match=f"retail.csv.*{message}"):
        online_retail.survey(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="cannot be read: No such file"):
        online_retail.survey(tmp_path / "none.csv")


def test_the_export_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "retail.csv"
    path.write_bytes(
        b"\xef\xbb\xbfInvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\r\n"
        b'1,10,"MUG, ""BIG""",1,12/1/2010 8:26,2.55,17850,France\r\n'
    )
    assert online_retail.survey(path).articles == [Article("10", 'MUG, "BIG"', Decimal("2.55"), 1)]
    assert next(retail.invoices(path, online_retail.survey(path))).at.isoformat() == "2010-12-01T08:26:00"
