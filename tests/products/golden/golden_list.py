"""The golden list: searches, and what they must and must not find in a small catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_DIRECTORY = Path(__file__).parent
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")


@dataclass(frozen=True)
class Expectation:
    """What one search must find: products by their keys.

    first: listed before all others; only: no others are found; suggested: nothing is found, and these are suggested
    """

    search: str
    found: list[str] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)
    first: str | None = None
    only: bool = False
    suggested: bool = False

    def differences(self, keys: list[str], *, suggested: bool) -> list[str]:
        """Return in which ways the keys of the found products, in their order, are not as expected."""
        found = [] if suggested and not self.suggested else keys
        differences = [f"does not find {key}" for key in self.found if key not in found]
        differences += [f"finds {key}" for key in self.not_found if key in found]
        if self.first is not None and found[:1] != [self.first]:
            differences.append(f"lists {found[:1]} first, not {self.first}")
        if self.only and set(found) - set(self.found):
            differences.append(f"finds also {sorted(set(found) - set(self.found))}")
        if self.suggested and not suggested:
            differences.append("suggests nothing")
        return differences


def read_catalogue() -> dict[str, tuple[str, str]]:
    """Return name and description of each product by its key, in the order of the file."""
    rows = [line.split(" | ") for line in _lines("catalogue.txt")]
    return {key: (name, description) for key, name, description in rows}


def read_expectations() -> list[Expectation]:
    """Return the expectations in the order of the file."""
    return [_parse(line) for line in _lines("searches.txt")]


def _lines(name: str) -> list[str]:
    lines = (_DIRECTORY / name).read_text("utf-8").splitlines()
    return [_ESCAPE.sub(lambda m: chr(int(m[1], 16)), line) for line in lines if line and not line.startswith("#")]


def _parse(line: str) -> Expectation:
    search, arrow, expected = re.split(r" (=>|~>) ", line)
    words = expected.split(" ")
    keys = [word.lstrip("^") for word in words if word[0] != "!" and word not in ("only", "none")]
    return Expectation(
        search,
        found=keys,
        not_found=[word[1:] for word in words if word[0] == "!"],
        first=next((word[1:] for word in words if word[0] == "^"), None),
        only=words[0] in ("only", "none"),
        suggested=arrow == "~>",
    )
