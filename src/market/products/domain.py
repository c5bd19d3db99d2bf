"""What a product is, and the rules that need nothing but the data."""

from __future__ import annotations

import hashlib
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from market.contracts import money
from market.kit import text
from market.kit.errors import BadInput, PreconditionFailed

# The failure points of this service, see kit/faults.py.
POINTS = ("products.before-set-stock", "products.after-set-stock")

MAX_IDS = 100
MAX_STOCK = 2_147_483_647
MAX_URL = 2000

# Answered as text with two places: 2.50.
Price = Annotated[Decimal, Meta(extra_json_schema={"pattern": r"^[0-9]{1,8}\.[0-9]{2}$", "examples": ["2.50"]})]
Sort = Literal["created_at", "-created_at", "price", "-price", "name", "-name"]

# ISO 4217: the currencies in use in 2026, without metals, bond units, funds and the codes for tests.
CURRENCIES = frozenset(
    {
        "AED",
        "AFN",
        "ALL",
        "AMD",
        "AOA",
        "ARS",
        "AUD",
        "AWG",
        "AZN",
        "BAM",
        "BBD",
        "BDT",
        "BHD",
        "BIF",
        "BMD",
        "BND",
        "BOB",
        "BRL",
        "BSD",
        "BTN",
        "BWP",
        "BYN",
        "BZD",
        "CAD",
        "CDF",
        "CHF",
        "CLP",
        "CNY",
        "COP",
        "CRC",
        "CUP",
        "CVE",
        "CZK",
        "DJF",
        "DKK",
        "DOP",
        "DZD",
        "EGP",
        "ERN",
        "ETB",
        "EUR",
        "FJD",
        "FKP",
        "GBP",
        "GEL",
        "GHS",
        "GIP",
        "GMD",
        "GNF",
        "GTQ",
        "GYD",
        "HKD",
        "HNL",
        "HTG",
        "HUF",
        "IDR",
        "ILS",
        "INR",
        "IQD",
        "IRR",
        "ISK",
        "JMD",
        "JOD",
        "JPY",
        "KES",
        "KGS",
        "KHR",
        "KMF",
        "KPW",
        "KRW",
        "KWD",
        "KYD",
        "KZT",
        "LAK",
        "LBP",
        "LKR",
        "LRD",
        "LSL",
        "LYD",
        "MAD",
        "MDL",
        "MGA",
        "MKD",
        "MMK",
        "MNT",
        "MOP",
        "MRU",
        "MUR",
        "MVR",
        "MWK",
        "MXN",
        "MYR",
        "MZN",
        "NAD",
        "NGN",
        "NIO",
        "NOK",
        "NPR",
        "NZD",
        "OMR",
        "PAB",
        "PEN",
        "PGK",
        "PHP",
        "PKR",
        "PLN",
        "PYG",
        "QAR",
        "RON",
        "RSD",
        "RUB",
        "RWF",
        "SAR",
        "SBD",
        "SCR",
        "SDG",
        "SEK",
        "SGD",
        "SHP",
        "SLE",
        "SOS",
        "SRD",
        "SSP",
        "STN",
        "SVC",
        "SYP",
        "SZL",
        "THB",
        "TJS",
        "TMT",
        "TND",
        "TOP",
        "TRY",
        "TTD",
        "TWD",
        "TZS",
        "UAH",
        "UGX",
        "USD",
        "UYU",
        "UZS",
        "VED",
        "VES",
        "VND",
        "VUV",
        "WST",
        "XAF",
        "XCD",
        "XCG",
        "XOF",
        "XPF",
        "YER",
        "ZAR",
        "ZMW",
        "ZWG",
    }
)


class Product(Struct, frozen=True, gc=False):
    """A product as it is answered. `available` is None where nobody could say."""

    id: UUID
    name: str
    description: str
    price: Price
    currency: str
    image_url: str | None
    available: bool | None
    created_at: datetime
    updated_at: datetime


class Stored(Struct, frozen=True, gc=False):
    """A product with what is not answered: each change makes the next version."""

    product: Product
    version: int


class Draft(Struct, frozen=True, gc=False):
    """The writable part of a product, checked. `stock` None: left alone."""

    name: str
    description: str
    price: Decimal
    currency: str
    image_url: str | None
    stock: int | None

    def fingerprint(self) -> bytes:
        """SHA-256 of what was asked for: the same for 2.5 and 2.50, and for a field given or left to its default."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


def draft(*, name: str, description: str, price: str, currency: str, image_url: str | None, stock: int | None) -> Draft:
    """The writable part, checked by every rule. Raises BadInput."""
    try:
        amount = money.parse_price(price)
    except ValueError as e:
        raise BadInput("price", str(e)) from None
    if currency not in CURRENCIES:
        raise BadInput("currency", "must be a code of ISO 4217 in upper case, such as EUR")
    if stock is not None and not 0 <= stock <= MAX_STOCK:
        raise BadInput("stock", f"must be 0 to {MAX_STOCK}")
    return Draft(
        name=text.validate_text("name", name, min_length=1, max_length=200),
        description=text.validate_text("description", description, min_length=0, max_length=10_000, multiline=True),
        price=amount,
        currency=currency,
        image_url=None if image_url is None else _image_url(image_url),
        stock=stock,
    )


def _image_url(url: str) -> str:
    """The URL as it came, or BadInput. What a browser would take for another host's address is none of ours."""
    text.validate_text("image_url", url, min_length=1, max_length=MAX_URL)
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


def parse_ids(given: str) -> list[UUID]:
    """The ids of `ids=`, in the order given, each once. Raises BadInput."""
    parts = given.split(",")
    if not given or len(parts) > MAX_IDS:
        raise BadInput("ids", f"must be 1 to {MAX_IDS} UUIDs, separated by commas")
    return list(dict.fromkeys(text.parse_uuid("ids", part) for part in parts))


def parse_query(given: str) -> str:
    """The words searched for. Raises BadInput."""
    return text.validate_text("q", given, min_length=1, max_length=200)


class Changed(PreconditionFailed):
    """Someone was faster: the product is not any more what `If-Match` names."""

    def __init__(self, id: UUID) -> None:
        super().__init__(f"product {id} was changed in the meantime: read it again")
