"""The examples in graphql/examples.txt, and whether a response is the one in the file."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

_FILE = Path(__file__).parents[2] / "graphql/examples.txt"
# Between the examples for a shop that anybody may use, and those for one that asks for sign-in.
_DIVIDER = "\n##### "
_NAME = re.compile(r"\$\{(\w+)\}")
_NOBODY = "nobody"


@dataclass(frozen=True)
class Example:
    """One example. `person`: who sends it to a shop that asks for sign-in; None without a token."""

    title: str
    person: str | None
    document: str
    variables: dict[str, Any]
    response: dict[str, Any]


def open_examples() -> list[Example]:
    """Return the examples for a shop that anybody may use, in the order of the file."""
    return [_example(section) for section in _sections(0)]


def signed_in_examples() -> list[Example]:
    """Return the examples for a shop that asks for sign-in, in the order of the file."""
    return [_example(section, has_person=True) for section in _sections(1)]


def _sections(part: int) -> list[str]:
    return _FILE.read_text().split(_DIVIDER)[part].split("\n=== ")[1:]


def _example(section: str, *, has_person: bool = False) -> Example:
    title, _, rest = section.partition("\n")
    person = title.partition(":")[0] if has_person else _NOBODY
    document, variables, response = re.split(r"\n--- (?:variables|response)\n", rest)
    return Example(
        title,
        None if person == _NOBODY else person,
        document.strip(),
        json.loads(variables),
        json.loads(response),
    )


async def run_example(
    example: Example, known: dict[str, Any], http: httpx.AsyncClient, url: str, token: str | None = None
) -> None:
    """Send the example, and assert that the response is the one in the file.

    `known` has the values of the names in earlier examples, and gets those of this one. A query is sent again if its
    response differs: on a busy machine, an upstream may not respond in time, or the availability may be unknown.
    """
    body = {"query": example.document, "variables": _filled(example.variables, known)}
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    attempts = 1 if example.document.startswith("mutation") else 20
    for attempt in range(1, attempts + 1):
        response = await http.post(f"{url}/graphql", json=body, headers=headers)
        found = dict(known)
        try:
            assert response.status_code == 200, (example.title, response.text)
            _assert_matches(example.response, response.json(), found, example.title)
        except AssertionError:
            if attempt == attempts:
                raise
            await asyncio.sleep(0.5)
        else:
            known.update(found)
            return


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """Replace each ${NAME} by its known value, or by a new unique value if the name is not known yet."""
    if isinstance(value, dict):
        return {k: _filled(v, known) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, known) for v in value]
    if isinstance(value, str) and (name := _NAME.fullmatch(value)):
        return known.setdefault(name[1], f"{name[1]}-{uuid4()}")
    return value


def _assert_matches(expected: Any, response: Any, known: dict[str, Any], path: str) -> None:
    """Assert that the response is the expected one. ${NAME} matches any value first, and the same value after that."""
    if isinstance(expected, dict):
        assert isinstance(response, dict), path
        assert list(expected) == list(response), path
        for k in expected:
            _assert_matches(expected[k], response[k], known, f"{path}.{k}")
    elif isinstance(expected, list):
        assert isinstance(response, list), path
        assert len(expected) == len(response), path
        for i, (e, a) in enumerate(zip(expected, response, strict=True)):
            _assert_matches(e, a, known, f"{path}[{i}]")
    elif isinstance(expected, str) and (name := _NAME.fullmatch(expected)):
        assert known.setdefault(name[1], response) == response, path
    else:
        assert expected == response, path
