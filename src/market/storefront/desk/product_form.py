"""The form of a product: the typed values, the values that the editor saw, and how they differ from the current."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from msgspec import Struct

from market.contracts import currency
from market.storefront.domain import DeskProduct, RequestRefused
from market.storefront.pages.visit import Visit

# The fields of the form, in the order of the page.
FIELDS = ("name", "description", "price", "currency", "image_url")
_FIELD_BY_INPUT = {
    "input.name": "name",
    "input.description": "description",
    "input.price": "price",
    "input.currency": "currency",
    "input.imageUrl": "image_url",
    "input.stock": "stock",
}
# Prefixes of the names of inputs: the value that the editor saw, both values of a conflict, and which was chosen.
SEEN, MINE, THEIRS, CHOICE = "seen_", "mine_", "theirs_", "choice_"


class Values(Struct, frozen=True, kw_only=True):
    """The values of a product's form, as text."""

    name: str = ""
    description: str = ""
    price: str = ""
    currency: str = ""
    image_url: str = ""

    @classmethod
    def of(cls, product: DeskProduct) -> Values:
        """Return the values of a product."""
        return cls(
            name=product.name,
            description=product.description,
            price=_price_in(product.currency, product.price),
            currency=product.currency,
            image_url=product.image_url or "",
        )

    @classmethod
    def read(cls, visit: Visit, prefix: str = "") -> Values:
        """Return the values in the form. `prefix`: of the names of their inputs."""
        return cls(**{field: _read(visit, field, f"{prefix}{field}") for field in FIELDS})

    def is_same(self, field: str, other: Values) -> bool:
        """Return whether a field has the same value in both. Prices are compared as amounts."""
        mine, theirs = getattr(self, field), getattr(other, field)
        return mine == theirs or (field == "price" and _amount(mine) is not None and _amount(mine) == _amount(theirs))

    def differing(self, other: Values) -> tuple[str, ...]:
        """Return the names of the fields that differ."""
        return tuple(field for field in FIELDS if not self.is_same(field, other))

    def as_input(self) -> dict[str, Any]:
        """Return the values as the input of a mutation."""
        return {
            "name": self.name,
            "description": self.description,
            "price": self.price,
            "currency": self.currency,
            "imageUrl": self.image_url or None,
        }


class Mistakes(Struct, frozen=True):
    """What has to be corrected. fields: in the order of the page. others: messages of the shop about other fields."""

    fields: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, refusal: RequestRefused) -> Mistakes:
        """Return the mistakes that the shop has reported."""
        wrong = {_FIELD_BY_INPUT.get(name, "") for name, _ in refusal.fields}
        fields = tuple(field for field in (*FIELDS, "stock") if field in wrong)
        unknown = not refusal.fields or "" in wrong
        return cls(fields, (str(refusal),) if unknown else ())

    def __bool__(self) -> bool:
        return bool(self.fields or self.others)


class Difference(Struct, frozen=True):
    """A field that differs between two editors. chosen: "mine", "theirs", or "" if nothing was chosen yet."""

    field: str
    mine: str
    theirs: str
    chosen: str = ""


def differences(mine: Values, theirs: Values, seen: Values, choices: dict[str, str]) -> tuple[Difference, ...]:
    """Return the fields that differ. For fields that this editor has not changed, the default choice is "theirs"."""
    return tuple(
        Difference(
            field,
            getattr(mine, field),
            getattr(theirs, field),
            choices.get(field) or ("theirs" if mine.is_same(field, seen) else ""),
        )
        for field in mine.differing(theirs)
    )


def read_choices(visit: Visit) -> dict[str, str]:
    """Return the choice for each field of a conflict: "mine", "theirs", or "" for none."""
    chosen = {field: visit.value(f"{CHOICE}{field}") for field in FIELDS if f"{MINE}{field}" in visit.form}
    return {field: choice if choice in ("mine", "theirs") else "" for field, choice in chosen.items()}


def read_merged(visit: Visit, choices: dict[str, str]) -> Values:
    """Return the values of the page with the differences, each field as chosen; "mine" if nothing was chosen."""
    prefixes = {"mine": MINE, "theirs": THEIRS, "": MINE}
    return Values(
        **{
            field: _read(visit, field, f"{prefixes[choices[field]]}{field}" if field in choices else field)
            for field in FIELDS
        }
    )


def undecided(choices: dict[str, str]) -> Iterable[str]:
    """Return the fields for which no value was chosen."""
    return [field for field, choice in choices.items() if not choice]


def _read(visit: Visit, field: str, name: str) -> str:
    if field == "description":
        # Browsers send line breaks as CR LF.
        return next(iter(visit.form.get(name, ())), "").replace("\r\n", "\n").replace("\r", "\n")
    text = visit.value(name)
    if field == "currency":
        return text.upper()
    if field == "price" and "." not in text:
        # Many languages have a decimal comma.
        return text.replace(",", ".")
    return text


def _amount(text: str) -> Decimal | None:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    # NaN and infinity are not amounts; comparing a signaling NaN raises.
    return amount if amount.is_finite() else None


def _price_in(code: str, price: str) -> str:
    """Return the price with the decimals of its currency: "100" for "100.00" JPY."""
    if not currency.is_known(code):
        return price
    amount = Decimal(price)
    rounded = round(amount, currency.minor_units(code))
    return f"{rounded:f}" if rounded == amount else price
