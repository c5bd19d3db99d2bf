"""The languages of the shop: their texts, from gettext catalogues, and the formats of money and dates.

English is the language of the sources, so it has no catalogue. The others are `locales/LANGUAGE/LC_MESSAGES/*.po`:
messages.po has the buyer's pages, desk_*.po the desk. They are read at start, so no compiled file can be out of date.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.resources import files
from io import BytesIO

from babel import Locale
from babel.dates import format_date, format_time
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_currency, format_decimal
from babel.support import Translations

from market.kit.http.requests import parse_quality

# The longest Accept-Language that is read, in characters. Browsers send fewer than 100.
_MAX_HEADER = 500


@dataclass(frozen=True)
class Language:
    """A language with its texts. `code`: the attribute `lang` of pages. `name`: in the language itself."""

    code: str
    name: str
    locale: Locale
    translations: gettext.NullTranslations

    def money(self, amount: str | Decimal, currency: str) -> str:
        """Return an amount of money in the language's format: "£2.50", "2,50 £"."""
        return _money(str(amount), currency, self.locale)

    def number(self, number: float) -> str:
        """Return a number with the language's separators."""
        return str(format_decimal(number, locale=self.locale))

    def currency_name(self, code: str) -> str:
        """Return the name of a currency: "British Pound". Its code if the language has no name for it."""
        return str(self.locale.currencies.get(code, code))

    def day(self, day: date) -> str:
        """Return a date."""
        return str(format_date(day, "long", self.locale))

    def time(self, moment: datetime) -> str:
        """Return a date with the time of day, in UTC."""
        utc = moment.astimezone(UTC)
        day, time = format_date(utc, "long", self.locale), format_time(utc, "short", locale=self.locale)
        # The space is non-breaking, so that no line begins with "UTC".
        return f"{day}, {time}\N{NO-BREAK SPACE}UTC"


@lru_cache(maxsize=4096)
def _money(amount: str, currency: str, locale: Locale) -> str:
    return str(format_currency(Decimal(amount), currency, locale=locale))


def N_(text: str) -> str:
    """Return the text unchanged. Marks it for extraction where the language is not known yet, as usual with gettext."""
    return text


def _read(code: str) -> gettext.NullTranslations:
    """Return the texts of a language, from all its catalogues."""
    texts = Catalog(locale=code)
    for file in files("market.storefront.texts").joinpath("locales", code, "LC_MESSAGES").iterdir():
        if file.name.endswith(".po"):
            for message in read_po(BytesIO(file.read_bytes()), locale=code):
                if message.id:
                    texts.add(message.id, message.string)
    compiled = BytesIO()
    write_mo(compiled, texts)
    compiled.seek(0)
    return Translations(compiled)


def load() -> dict[str, Language]:
    """Return the languages by their codes. The first one is the default."""
    return {
        "en": Language("en", "English", Locale.parse("en_GB"), gettext.NullTranslations()),
        "ru": Language("ru", "Русский", Locale.parse("ru"), _read("ru")),
    }


def choose(languages: Mapping[str, Language], chosen: str, accepted: str) -> Language:
    """Return the language that the visitor has chosen; else the one that the browser prefers; else the default.

    accepted: the header Accept-Language (RFC 9110, section 12.5.4).
    """
    if chosen in languages:
        return languages[chosen]
    default = next(iter(languages.values()))
    best, best_quality = default, 0.0
    for part in accepted[:_MAX_HEADER].lower().split(","):
        tag, *parameters = (p.strip() for p in part.split(";"))
        quality = parse_quality(parameters)
        if (found := languages.get(tag.partition("-")[0])) is not None and quality > best_quality:
            best, best_quality = found, quality
    return best
