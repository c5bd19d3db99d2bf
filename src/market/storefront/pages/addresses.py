"""Building addresses of pages with parameters, and parsing days in them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from urllib.parse import urlencode

from market.kit.errors import BadInput
from market.kit.times import parse_day


def address(path: str, parameters: Mapping[str, str]) -> str:
    """Return the path with the parameters that are not empty."""
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"{path}?{query}" if query else path


def read_day(text: str) -> date | None:
    """Return a day such as 2026-01-31; None if the text is not a day."""
    try:
        return parse_day("day", text)
    except BadInput:
        return None
