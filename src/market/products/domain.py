"""Products: plain data, validation, and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from market.contracts import currency, money
from market.kit import text
from market.kit.errors import BadInput, Conflict, PreconditionFailed, Unavailable
from market.kit.text import pluralize

# The failure points of this service (kit/faults.py).
FAILURE_POINTS = (
    "products.before-set-stock",
    "products.after-set-stock",
    "products.before-add-delivery",
    "products.after-add-delivery",
)

# Ids in one request of the list.
MAX_IDS = 100
MAX_STOCK = 2_147_483_647
# The version of a new product; each change increases it.
FIRST_VERSION = 1
MAX_NAME_LENGTH = 200
MAX_DESCRIPTION_LENGTH = 10_000
MAX_URL_LENGTH = 2000

# In responses: text with the decimals of the currency, but at least two.
Price = Annotated[
    Decimal,
    Meta(
        description="with as many decimals as the currency has, but at least two: 2.50 GBP, 1.250 KWD, 100.00 JPY",
        extra_json_schema={"pattern": r"^[0-9]{1,8}\.[0-9]{2,3}$", "examples": ["2.50"]},
    ),
]
Time = Annotated[datetime, Meta(tz=True)]
Version = Annotated[
    int, Meta(ge=1, description="each change of the product increases it; the entity tag begins with it")
]
FreeUnits = Annotated[int, Meta(ge=0, le=MAX_STOCK, description="units that are free to sell")]
Sort = Literal["created_at", "-created_at", "price", "-price", "name", "-name"]
DEFAULT_SORT: Sort = "-created_at"


class Product(Struct, frozen=True, gc=False):
    """A product as in responses. `available` is null if it is unknown.

    `stock`, the units that are free to sell, is absent unless it was requested, and null if it is unknown.
    """

    id: UUID
    name: str
    description: str
    price: Price
    currency: str
    image_url: str | None
    available: bool | None
    version: Version
    created_at: Time
    updated_at: Time
    stock: FreeUnits | UnsetType | None = UNSET


class Summary(Struct, frozen=True, gc=False):
    """The fields of a product in the audit log. The others are long, and do not affect what customers pay."""

    name: str
    price: Decimal
    currency: str
    version: int

    @classmethod
    def of(cls, product: Product) -> Self:
        """Return the summary of a product."""
        return cls(product.name, product.price, product.currency, product.version)


class Draft(Struct, frozen=True, gc=False, omit_defaults=True):
    """The writable fields of a product, validated. `stock` None leaves the stock as it is.

    A field that is added later needs a default: `fingerprint` omits a field at its default, so that requests without
    the new field keep the fingerprints that are stored already.
    """

    name: str
    description: str
    price: Decimal
    currency: str
    image_url: str | None
    stock: int | None

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the request's content.

        It is the same for 2.5 and 2.50, and whether a field is omitted or has its default.
        """
        return hashlib.sha256(msgspec.json.encode(self)).digest()


class Delivery(Struct, frozen=True, forbid_unknown_fields=True):
    """Units that have arrived and are added to the stock: a part of the body of PUT."""

    id: Annotated[
        UUID, Meta(description="made by the client: the units of an id are added once, however often it is sent")
    ]
    quantity: Annotated[int, Meta(ge=1, le=MAX_STOCK)]


class Position(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page ends: the last product's value in the sort, and its id. Read from cursors, so it has bounds.

    Stored in cursors that clients have: its fields are not changed.
    """

    column: ClassVar[str]
    value: int | str
    id: UUID

    @property
    def key(self) -> datetime | Decimal | str:
        """The value as a value of the column."""
        raise NotImplementedError

    @classmethod
    def of(cls, product: Product) -> Self:
        """Return the position of a product."""
        raise NotImplementedError


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class TimePosition(Position, frozen=True):
    """`value`: microseconds since 1970, up to the year 9999."""

    column = "created_at"
    value: Annotated[int, Meta(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]
    id: UUID

    @property
    def key(self) -> datetime:
        return _EPOCH + self.value * _MICROSECOND

    @classmethod
    def of(cls, product: Product) -> Self:
        return cls((product.created_at - _EPOCH) // _MICROSECOND, product.id)


class PricePosition(Position, frozen=True):
    """`value`: hundredths; the price as text if it is not a multiple of a hundredth."""

    column = "price"
    value: (
        Annotated[int, Meta(ge=0, le=9_999_999_999)]
        | Annotated[str, Meta(max_length=money.MAX_PRICE_LENGTH, pattern=money.PRICE_PATTERN)]
    )
    id: UUID

    @property
    def key(self) -> Decimal:
        return Decimal(self.value).scaleb(-2) if isinstance(self.value, int) else Decimal(self.value)

    @classmethod
    def of(cls, product: Product) -> Self:
        hundredths = product.price.scaleb(2)
        whole = int(hundredths)
        return cls(whole if whole == hundredths else str(product.price), product.id)


class NamePosition(Position, frozen=True):
    """`value`: the name."""

    column = "name"
    value: Annotated[str, Meta(max_length=MAX_NAME_LENGTH, pattern="^[^\x00]*$")]
    id: UUID

    @property
    def key(self) -> str:
        return self.value

    @classmethod
    def of(cls, product: Product) -> Self:
        return cls(product.name, product.id)


_POSITIONS: tuple[type[Position], ...] = (TimePosition, PricePosition, NamePosition)
_POSITION_BY_COLUMN = {position.column: position for position in _POSITIONS}


def position_type(sort: Sort) -> type[Position]:
    """Return the type of the positions in a list with this sort."""
    return _POSITION_BY_COLUMN[sort.removeprefix("-")]


def validate_name(name: str) -> str:
    """Return the name unchanged. Raises BadInput."""
    return text.validate_display_text("name", name, min_length=1, max_length=MAX_NAME_LENGTH)


def validate_description(description: str) -> str:
    """Return the description unchanged. Raises BadInput."""
    return text.validate_display_text(
        "description", description, min_length=0, max_length=MAX_DESCRIPTION_LENGTH, multiline=True
    )


def parse_price(price: str) -> Decimal:
    """Return the price. Raises BadInput."""
    try:
        return money.parse_price(price)
    except ValueError as e:
        raise BadInput("price", str(e)) from None


def validate_currency(code: str) -> str:
    """Return the code unchanged. Raises BadInput."""
    try:
        return currency.validate(code)
    except ValueError as e:
        raise BadInput("currency", str(e)) from None


def validate_price_in(code: str, price: Decimal) -> None:
    """Raise BadInput if the price has more decimals than the currency, such as half a yen."""
    decimals = currency.minor_units(code)
    if price != round(price, decimals):
        unit = "whole number" if decimals == 0 else f"number with at most {pluralize(decimals, 'decimal')}"
        raise BadInput("price", f"must be a {unit} in {code}, got {price}")


def validate_image_url(url: str | None) -> str | None:
    """Return the URL unchanged.

    Raises BadInput, also for a path that browsers would read as an address of another host, such as //host/a.png.
    """
    if url is None:
        return None
    text.validate_display_text("image_url", url, min_length=1, max_length=MAX_URL_LENGTH)
    if not any(c.isspace() or c in '\\"<>' for c in url):
        if url[0] == "/" and not url.startswith("//"):
            return url
        try:
            parts = urlsplit(url)
            if parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0:
                return url
        except ValueError:
            pass
    raise BadInput("image_url", "must be null, an https URL, or a path that begins with one slash")


def parse_ids(ids: Sequence[str]) -> list[UUID]:
    """Return the ids of the parameters, each a comma-separated list, in the same order, without duplicates. Raises
    BadInput."""
    parts = [part for one in ids if one for part in one.split(",")]
    if not 1 <= len(parts) <= MAX_IDS:
        raise BadInput("ids", f"must be 1 to {MAX_IDS} UUIDs, separated by commas, got {len(parts)}")
    return list(dict.fromkeys(text.parse_uuid("ids", part) for part in parts))


def validate_search(words: str) -> str:
    """Return the words of a search unchanged. Raises BadInput."""
    return text.validate_text("q", words, min_length=1, max_length=200)


class ProductModified(PreconditionFailed):
    """The product does not have a version that `If-Match` requires. `version`: its current version."""

    def __init__(self, product_id: UUID, version: int) -> None:
        super().__init__(
            f"product {product_id} was modified by another request and has version {version} now; read it again"
        )
        self.version = version

    def extension_members(self) -> dict[str, Any]:
        return {"version": self.version}


class DeliveryIdReused(BadInput):
    """The id has been used for a delivery of the same product with another quantity."""

    def __init__(self) -> None:
        super().__init__("delivery.id", "was already used for a delivery of another quantity")


class StockTooLarge(BadInput):
    """With the delivery, the stock would be larger than MAX_STOCK. `stock`: the current stock."""

    def __init__(self, delivery: Delivery, stock: int) -> None:
        super().__init__(
            "delivery.quantity",
            f"must be at most {MAX_STOCK - stock}, because the stock is {stock} and may be at most {MAX_STOCK}, "
            f"got {delivery.quantity}",
        )


class DeliveryRefused(Conflict):
    """Another request has changed the stock after the delivery was checked: the product's fields are replaced already,
    and the delivery is not added.

    version: the product's version after its fields were replaced
    """

    def __init__(self, reason: BadInput, version: int) -> None:
        super().__init__(f"{reason}; the fields of the product are replaced, its stock is unchanged")
        self._members = {"fields": "replaced", "stock": "unchanged", "etag": entity_tag(version)}

    def extension_members(self) -> dict[str, Any]:
        return self._members


class ProductExists(PreconditionFailed):
    """The product exists, although `If-None-Match: *` requires that it does not."""

    def __init__(self, product_id: UUID) -> None:
        super().__init__(f"product {product_id} exists")


Change = Literal["replaced", "unchanged", "unknown"]


def not_replaced(reason: Unavailable, *, fields: Change, stock: Change, version: int | None = None) -> Unavailable:
    """Return the error with what has happened to the fields and to the stock, as extension members and in words.

    version: the version of the product, for the member `etag`; None if it is unknown
    """
    members: dict[str, str] = {"fields": fields, "stock": stock}
    if version is not None:
        members["etag"] = entity_tag(version)
    detail = f"{reason}; the fields of the product are {_IN_WORDS[fields]}, its stock is {_IN_WORDS[stock]}"
    return type(reason)(detail, retry_after=reason.retry_after, **members)


_IN_WORDS: dict[Change, str] = {
    "replaced": "replaced",
    "unchanged": "unchanged",
    "unknown": "either unchanged or replaced",
}


def entity_tag(version: int) -> str:
    """Return the entity tag of a version of a product (RFC 9110, section 8.8.3): the version in quotes."""
    return f'"{version}"'
