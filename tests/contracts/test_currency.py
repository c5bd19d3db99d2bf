"""The currencies that a price can be in."""

from __future__ import annotations

import pytest

from market.contracts import currency


@pytest.mark.parametrize(("code", "digits"), [("EUR", 2), ("JPY", 0), ("KWD", 3), ("HUF", 2), ("XOF", 0), ("XCG", 2)])
def test_a_currency_in_use_is_known_with_its_minor_units(code: str, digits: int) -> None:
    assert currency.is_known(code)
    assert code in currency.CODES
    assert currency.minor_units(code) == digits


@pytest.mark.parametrize(
    "code", ["XXX", "XTS", "XAU", "XDR", "CHE", "CLF", "UYW", "XAD", "DEM", "HRK", "ZZZ", "eur", "EU", "EURO", ""]
)
def test_a_code_that_is_not_money_is_unknown(code: str) -> None:
    assert not currency.is_known(code)
    with pytest.raises(KeyError):
        currency.minor_units(code)


def test_the_codes_are_sorted_and_distinct() -> None:
    assert list(currency.CODES) == sorted(set(currency.CODES))
    assert len(currency.CODES) > 150


def test_amounts_are_written_with_two_or_three_decimals() -> None:
    """The patterns of prices and totals allow no more."""
    assert {currency.written_decimals(code) for code in currency.CODES} == {2, 3}
    with_three = {code for code in currency.CODES if currency.written_decimals(code) == 3}
    assert with_three == {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}
    assert currency.written_decimals("HRK") == 2
