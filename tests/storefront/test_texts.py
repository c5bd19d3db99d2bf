"""The texts of the pages in every language, and the language's forms of money, numbers and dates."""

from __future__ import annotations

import string
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from market.storefront.texts import languages

STOREFRONT = Path(languages.__file__).parents[1]
TRANSLATED = sorted(path.name for path in STOREFRONT.glob("texts/locales/*"))
Text = str | tuple[str, ...]


def used() -> set[Text]:
    """Return every text of the templates and the code."""
    options = {"**.html": {"trim_blocks": "true", "lstrip_blocks": "true", "newstyle_gettext": "true"}}
    found = extract_from_dir(STOREFRONT, [("**.html", "jinja2"), ("**.py", "python")], options)
    return {message for _, _, message, _, _ in found}


def catalogue(code: str) -> dict[Text, tuple[str, ...]]:
    """Return the translations by text, several of them for a text with a plural. A text has one, in all catalogues."""
    found: dict[Text, tuple[str, ...]] = {}
    for file in sorted(STOREFRONT.glob(f"texts/locales/{code}/LC_MESSAGES/*.po")):
        for message in read_po(BytesIO(file.read_bytes()), locale=code):
            if message.id:
                translations = message.string if isinstance(message.string, tuple) else (message.string,)
                assert found.setdefault(message.id, translations) == translations, f"{file.name}: {message.id}"
    return found


def fields(text: str) -> Iterator[str]:
    """Yield the names of a text's placeholders."""
    return (name for _, name, _, _ in string.Formatter().parse(text.replace("%(", "{").replace(")s", "}")) if name)


@pytest.mark.parametrize("code", TRANSLATED)
def test_every_text_is_translated(code: str) -> None:
    translations = catalogue(code)
    assert {text for text in used() if not all(translations.get(text, ("",)))} == set()


@pytest.mark.parametrize("code", TRANSLATED)
def test_translations_have_the_placeholders_of_their_texts(code: str) -> None:
    for text, translations in catalogue(code).items():
        expected = set(fields(text if isinstance(text, str) else text[-1]))
        for translation in translations:
            assert set(fields(translation)) == expected, translation


def test_money_numbers_and_dates_have_the_form_of_the_language() -> None:
    english, russian = languages.load().values()
    moment = datetime(2026, 11, 28, 19, 5, tzinfo=UTC)
    assert [english.money("1234.50", "GBP"), english.number(40_000), english.time(moment)] == [
        "£1,234.50",
        "40,000",
        "28 November 2026, 19:05\N{NO-BREAK SPACE}UTC",
    ]
    assert [russian.money("1234.50", "GBP"), russian.number(40_000), russian.time(moment)] == [
        "1\xa0234,50\xa0£",
        "40\xa0000",
        "28 ноября 2026\u202fг., 19:05\N{NO-BREAK SPACE}UTC",
    ]
    # As many decimals as the currency has.
    assert english.money("1.250", "KWD").endswith("1.250")
    assert english.money("100.00", "JPY") == "JP¥100"


@pytest.mark.parametrize(
    ("chosen", "accepted", "code"),
    [
        ("", "", "en"),
        ("", "ru", "ru"),
        ("", "ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("", "de, en;q=0.5, ru;q=0.4", "en"),
        ("", "ru;q=0", "en"),
        ("", "*", "en"),
        ("en", "ru", "en"),
        ("ru", "en", "ru"),
        ("xx", "ru", "ru"),
    ],
)
def test_the_language_is_the_chosen_one_or_the_one_that_the_browser_prefers(
    chosen: str, accepted: str, code: str
) -> None:
    assert languages.choose(languages.load(), chosen, accepted).code == code


def test_russian_counts_have_three_forms() -> None:
    russian = languages.load()["ru"].translations
    counted = [russian.ngettext("%(count)s product", "%(count)s products", n) % {"count": n} for n in (1, 2, 5, 11, 21)]
    assert counted == ["1 товар", "2 товара", "5 товаров", "11 товаров", "21 товар"]
