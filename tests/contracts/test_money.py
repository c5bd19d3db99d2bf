from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.contracts import money


@pytest.mark.parametrize(
    ("given", "kept"), [("0", "0.00"), ("2.5", "2.50"), ("99999999.99", "99999999.99"), ("007", "7.00")]
)
def test_a_price_is_written_with_two_decimals(given: str, kept: str) -> None:
    assert money.write(money.parse_price(given)) == kept


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "-1",
        "+1",
        "1.",
        ".5",
        "1.005",
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


@given(st.decimals(min_value=0, max_value=Decimal("99999999.99"), places=2))
def test_a_price_survives_writing_and_parsing(amount: Decimal) -> None:
    assert money.parse_price(money.write(amount)) == amount


def test_a_total_may_have_seventeen_digits() -> None:
    assert money.write(money.parse_total("99999999999999999.99")) == "99999999999999999.99"
    with pytest.raises(ValueError, match="1 to 17 digits"):
        money.parse_total("100000000000000000")
