"""Rules for texts, ids and e-mail addresses."""

from __future__ import annotations

import pytest

from market.kit import text
from market.kit.errors import BadInput, NotFound


@pytest.mark.parametrize("bad", ["a\x00b", "a\nb", "a\tb", "a\x7fb", "a\x85b", "a\u2028b", "a\ud800b"])
def test_text_with_a_control_character_is_rejected(bad: str) -> None:
    with pytest.raises(BadInput, match="name: must not contain control characters"):
        text.validate_text("name", bad, min_length=1, max_length=10)


def test_multiline_text_may_contain_newlines_and_tabs_only() -> None:
    assert text.validate_text("description", "a\n\tb", min_length=0, max_length=10, multiline=True) == "a\n\tb"
    with pytest.raises(BadInput, match="other than newline and tab"):
        text.validate_text("description", "a\rb", min_length=0, max_length=10, multiline=True)


def test_length_is_counted_in_characters() -> None:
    assert text.validate_text("name", "ё" * 200, min_length=1, max_length=200) == "ё" * 200
    with pytest.raises(BadInput, match="name: must have 1 to 200 characters"):
        text.validate_text("name", "ё" * 201, min_length=1, max_length=200)
    with pytest.raises(BadInput, match="name: must have 1 to 200 characters"):
        text.validate_text("name", "", min_length=1, max_length=200)


@pytest.mark.parametrize(
    "bad",
    ["", "1", "0" * 32, "{00000000-0000-0000-0000-000000000000}", "00000000-0000-0000-0000-00000000000g", "٠" * 36],
)
def test_only_a_canonical_uuid_is_accepted(bad: str) -> None:
    with pytest.raises(BadInput, match="product_id: must be a UUID"):
        text.parse_uuid("product_id", bad)
    with pytest.raises(NotFound):
        text.parse_path_id("product", bad)


@pytest.mark.parametrize(
    "blank",
    [
        " ",
        "\u00a0\u3000",
        "\u200b",
        "\u200d\ufeff",
        "\u2060 \u00ad",
        "\u3164",
        "\u2800",
        "\u0301",
        "\U000e0041",
        "\ufe0f",
    ],
    ids=ascii,
)
def test_display_text_must_have_a_visible_character(blank: str) -> None:
    with pytest.raises(BadInput, match="name: must contain a visible character"):
        text.validate_display_text("name", blank, min_length=1, max_length=10)
    assert text.validate_display_text("name", f"{blank}x", min_length=1, max_length=10) == f"{blank}x"


@pytest.mark.parametrize("control", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", ids=ascii)
def test_display_text_has_no_directional_controls(control: str) -> None:
    with pytest.raises(BadInput, match=f"user: must not contain directional controls, got U\\+{ord(control):04X}"):
        text.validate_display_text("user", f"a{control}b", min_length=1, max_length=10)


@pytest.mark.parametrize(
    "good", ["ä", "чай", "שלום\u200f!", "👩\u200d🍳", "\U0001fae8", "\U0001faff", "-", "e\u0301", "0"], ids=ascii
)
def test_display_text_may_be_in_any_script(good: str) -> None:
    assert text.validate_display_text("name", good, min_length=1, max_length=10) == good


def test_display_text_may_be_empty_where_its_length_may_be_zero() -> None:
    assert text.validate_display_text("description", "", min_length=0, max_length=10) == ""
