"""Cursors: opaque, versioned, and bound to their list."""

from __future__ import annotations

import base64
import json
from typing import Annotated
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from market.kit.errors import BadInput
from market.kit.paging import MAX_CURSOR_LENGTH, read_cursor, write_cursor


class Position(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    value: Annotated[int, Meta(ge=0, le=10**12)]
    id: UUID


HERE = Position(42, UUID("01a20437-cc42-7771-829f-651427c23a88"))
CURSOR = write_cursor(HERE, "shelves", "-height", None)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_a_cursor_of_the_same_list_gives_its_position_back() -> None:
    assert read_cursor(CURSOR, Position, "shelves", "-height", None) == HERE
    assert CURSOR.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "definition",
    [
        ("shelves", "height", None),
        ("shelves", "-height", ""),
        ("shelves", "-height", "red"),
        ("boxes", "-height", None),
    ],
)
def test_a_cursor_of_another_list_is_rejected(definition: tuple[str | None, ...]) -> None:
    with pytest.raises(BadInput) as error:
        read_cursor(CURSOR, Position, *definition)
    assert error.value.field == "after"
    assert (
        error.value.reason
        == "belongs to a list with another filter or sort order; only `limit` may change between pages"
    )


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "é",
        "=",
        " " + CURSOR,
        CURSOR + "=",
        CURSOR[:-1],
        CURSOR.swapcase(),
        "A" * MAX_CURSOR_LENGTH,
        "W" * MAX_CURSOR_LENGTH,
        encoded(None),
        encoded([]),
        encoded([1, "x", [42, str(HERE.id)], "more"]),
        encoded([2, *json.loads(base64.urlsafe_b64decode(CURSOR + "=="))[1:]]),
        encoded([*json.loads(base64.urlsafe_b64decode(CURSOR + "=="))[:2], [-1, str(HERE.id)]]),
        encoded([*json.loads(base64.urlsafe_b64decode(CURSOR + "=="))[:2], ["42", str(HERE.id)]]),
        encoded([*json.loads(base64.urlsafe_b64decode(CURSOR + "=="))[:2], [42]]),
    ],
)
def test_other_text_is_rejected(text: str) -> None:
    with pytest.raises(BadInput) as error:
        read_cursor(text, Position, "shelves", "-height", None)
    assert (error.value.field, error.value.reason) == (
        "after",
        "is not a cursor: it must be the `next` of a page, unchanged",
    )


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_no_text_raises_another_error(text: str) -> None:
    with pytest.raises(BadInput):
        read_cursor(text, Position, "shelves", "-height", None)
