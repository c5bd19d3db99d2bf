"""Validation errors name field, rule and value in words: no regular expression, no Python type."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta, Struct

from market.kit.validation import explain, explain_all


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(Struct, forbid_unknown_fields=True):
    quantity: Annotated[int, Meta(ge=1, le=5)]
    code: Annotated[str, Meta(pattern="^a$", extra={"rule": "must be the letter a"})] = "a"
    product_id: Annotated[str, Meta(pattern="^b$", extra_json_schema={"format": "uuid"})] = "b"
    other: Annotated[str, Meta(pattern="^c$")] = "c"


class Body(Struct, forbid_unknown_fields=True):
    items: Annotated[list[Line], Meta(min_length=1, max_length=2)] = []
    name: Annotated[str, Meta(min_length=1, max_length=3)] | None = None
    note: Annotated[str, Meta(min_length=1)] = "-"
    tags: Annotated[list[str], Meta(max_length=1)] = []
    order: Literal["up", "down"] = "up"
    colour: Colour = Colour.RED
    counts: dict[str, int] = {}
    id: UUID | None = None
    ratio: Annotated[float, Meta(gt=0, lt=2)] = 1
    least: Annotated[int, Meta(ge=2)] = 2
    step: Annotated[int, Meta(multiple_of=5)] = 5
    flag: bool = False

    def __post_init__(self) -> None:
        if self.note == "bad":
            raise ValueError("note must not be bad")


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        ({"items": [{"quantity": 0}]}, "items[0].quantity", "must be between 1 and 5, got 0"),
        ({"items": [{"quantity": 10**50}]}, "items[0].quantity", "must be between 1 and 5"),
        ({"items": [{"quantity": "1"}]}, "items[0].quantity", "must be a whole number, got a string"),
        ({"items": [{"quantity": None}]}, "items[0].quantity", "must be a whole number, got null"),
        ({"items": [{"quantity": True}]}, "items[0].quantity", "must be a whole number, got a boolean"),
        ({"items": [{"quantity": 1}, {}]}, "items[1].quantity", "is missing"),
        ({"items": [{"quantity": 1, "x\ny": 1}]}, "items[0].x\ny", "is unknown"),
        ({"odd": 1}, "odd", "is unknown"),
        ({"items": []}, "items", "must have 1 to 2 items, got 0"),
        ({"tags": ["a", "b"]}, "tags", "must have at most 1 item, got 2"),
        ({"note": ""}, "note", "must have at least 1 character, got 0"),
        ({"name": "abcd"}, "name", "must have 1 to 3 characters, got 4"),
        ({"name": 5}, "name", "must be a string or null, got a whole number"),
        ({"items": [{"quantity": 1, "code": "b"}]}, "items[0].code", "must be the letter a"),
        ({"items": [{"quantity": 1, "product_id": "x"}]}, "items[0].product_id", "must be a UUID"),
        ({"items": [{"quantity": 1, "other": "x"}]}, "items[0].other", "has the wrong format"),
        ({"order": "left"}, "order", "must be one of down, up, got 'left'"),
        ({"colour": "green"}, "colour", "must be one of red, blue, got 'green'"),
        ({"counts": {"a": "x"}}, "counts[...]", "must be a whole number, got a string"),
        ({"id": "x"}, "id", "must be a UUID"),
        ({"ratio": 0.0}, "ratio", "must be more than 0 and less than 2, got 0.0"),
        ({"least": 1}, "least", "must be at least 2, got 1"),
        ({"step": 3}, "step", "must be a multiple of 5, got 3"),
        ({"flag": 1}, "flag", "must be true or false, got a whole number"),
        ({"note": "bad"}, "", "note must not be bad"),
        ([], "", "must be an object, got a list"),
    ],
)
def test_field_and_reason_are_words(data: Any, field: str, reason: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(data), type=Body)
    assert explain(caught.value, Body, data) == (field, reason)
    # As configuration is read, from values instead of JSON.
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(data, Body)
    assert explain(caught.value, Body, data) == (field, reason)


def test_all_wrong_fields_are_explained_and_those_of_lists_with_their_index() -> None:
    data = {
        "items": [{"quantity": 0, "code": "b"}, {"quantity": 1}, {"code": 5, "size": 1}],
        "name": "toolong",
        "order": "sideways",
        "counts": {"a": "b"},
        "colour": None,
        "more": 1,
    }
    assert explain_all(Body, data) == [
        ("items[0].quantity", "must be between 1 and 5, got 0"),
        ("items[0].code", "must be the letter a"),
        ("items[2].code", "must be a string, got a whole number"),
        ("items[2].size", "is unknown"),
        ("items[2].quantity", "is missing"),
        ("name", "must have 1 to 3 characters, got 7"),
        ("order", "must be one of down, up, got 'sideways'"),
        ("counts[...]", "must be a whole number, got a string"),
        ("colour", "must be a string, got null"),
        ("more", "is unknown"),
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], [("", "must be an object, got a list")]),
        ({"items": {}}, [("items", "must be a list, got an object")]),
        ({"items": []}, [("items", "must have 1 to 2 items, got 0")]),
        ({"items": 3 * [{"quantity": 1}]}, [("items", "must have 1 to 2 items, got 3")]),
        ({"items": [None, {}]}, [("items[0]", "must be an object, got null"), ("items[1].quantity", "is missing")]),
    ],
)
def test_a_value_that_is_wrong_as_a_whole_is_explained_once(data: Any, expected: list[tuple[str, str]]) -> None:
    assert explain_all(Body, data) == expected


class Sizes(Struct):
    max_bytes: Annotated[int, Meta(ge=1_048_576)] = 1_048_576
    seconds: Annotated[float, Meta(gt=0, le=31_536_000)] = 1.0
    share: Annotated[float, Meta(gt=0.25)] = 1.0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"max_bytes": 1}, "must be at least 1048576, got 1"),
        ({"seconds": 0.0}, "must be more than 0 and at most 31536000, got 0.0"),
        ({"share": 0.1}, "must be more than 0.25, got 0.1"),
    ],
)
def test_a_large_limit_is_shown_with_all_its_digits(data: dict[str, float], reason: str) -> None:
    assert explain_all(Sizes, data) == [(next(iter(data)), reason)]


def test_a_long_list_of_errors_ends_at_the_limit() -> None:
    assert len(explain_all(Body, {"items": 1000 * [{"quantity": 0}]})) == 20
