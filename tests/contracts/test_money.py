from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.contracts import money


@pytest.mark.parametrize(
    ("given", "code", "written"),
    [
        ("0", "GBP", "0.00"),
        ("2.5", "GBP", "2.50"),
        ("2.500", "GBP", "2.50"),
        ("99999999.99", "GBP", "99999999.99"),
        ("007", "GBP", "7.00"),
        ("100", "JPY", "100.00"),
        ("1.25", "KWD", "1.250"),
        ("99999999.999", "KWD", "99999999.999"),
        ("2", "HRK", "2.00"),
        # Never rounded, not even if the currency does not have the amount.
        ("2.505", "GBP", "2.505"),
    ],
)
def test_a_price_is_written_with_the_decimals_of_its_currency_but_at_least_two(
    given: str, code: str, written: str
) -> None:
    assert money.write(money.parse_price(given), code) == written


@pytest.mark.parametrize(("text", "kept"), [("1.25", "1.25"), ("1.250", "1.25"), ("1.255", "1.255"), ("1", "1.00")])
def test_a_price_is_kept_with_two_decimals_and_a_third_one_only_if_it_is_not_zero(text: str, kept: str) -> None:
    """Fingerprints that earlier versions have stored depend on it."""
    assert str(money.parse_price(text)) == kept


@pytest.mark.parametrize(
    ("text", "normalized"),
    [("1.250", "1.25"), ("1.25", "1.25"), ("1.200", "1.20"), ("1.255", "1.255"), ("1000", "1000"), ("a", "a")],
)
def test_zeros_after_the_second_decimal_of_a_text_are_removed(text: str, normalized: str) -> None:
    assert money.normalize_text(text) == normalized


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "-1",
        "+1",
        "1.",
        ".5",
        "1.0005",
        "1e3",
        "NaN",
        "Infinity",
        "1_000",
        "1,5",
        " 1",
        "1 ",
        "123456789",
        "٣",
        "0x1",
        "1\n",
    ],
)
def test_an_invalid_price_is_rejected(bad: str) -> None:
    with pytest.raises(ValueError, match="1 to 8 digits"):
        money.parse_price(bad)


@given(st.decimals(min_value=0, max_value=Decimal("99999999.999"), places=3), st.sampled_from(["JPY", "GBP", "KWD"]))
def test_a_price_survives_writing_and_parsing(amount: Decimal, code: str) -> None:
    assert money.parse_price(money.write(amount, code)) == amount


def test_a_total_may_have_seventeen_digits() -> None:
    assert money.write(money.parse_total("99999999999999999.999"), "KWD") == "99999999999999999.999"
    with pytest.raises(ValueError, match="1 to 17 digits"):
        money.parse_total("100000000000000000")
