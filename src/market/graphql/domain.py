"""The resources of products and orders, the error of a field, and converting names between snake_case and camelCase."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from msgspec import Struct


class Product(Struct, frozen=True, gc=False):
    id: str
    name: str
    description: str
    price: str
    currency: str
    image_url: str | None
    available: bool | None
    created_at: str
    updated_at: str
    # The previous version of products does not send it. No product has version 0, so an update that expects it fails.
    version: int = 0
    # Absent unless it was requested.
    stock: int | None = None


class ProductPage(Struct, frozen=True, gc=False):
    items: list[Product]
    total: int
    limit: int
    offset: int
    # The previous version of the services does not send them.
    total_exact: bool = True
    next: str | None = None
    suggested: bool = False


class OrderItem(Struct, frozen=True, gc=False):
    product_id: str
    name: str
    quantity: int
    unit_price: str


class Shortage(Struct, frozen=True, gc=False):
    product_id: str
    wanted: int
    left: int


class Order(Struct, frozen=True, gc=False):
    id: str
    user: str
    email: str | None
    items: list[OrderItem]
    total: str
    currency: str
    status: str
    created_at: str
    # Absent if it has not happened. The previous version of the services does not have them.
    confirmed_at: str | None = None
    cancelled_at: str | None = None
    rejected_at: str | None = None
    rejection_reason: str | None = None
    shortages: list[Shortage] = []


class OrderPage(Struct, frozen=True, gc=False):
    items: list[Order]
    total: int
    limit: int
    offset: int
    # The previous version of the services does not send them.
    total_exact: bool = True
    next: str | None = None


# The REST resources by the name of their GraphQL type.
RESOURCES: dict[str, type[Struct]] = {
    t.__name__: t for t in (Product, ProductPage, OrderItem, Shortage, Order, OrderPage)
}


class FieldError(Exception):
    """A GraphQL error without its path: `str()` is the message, `extensions` has the code and further members."""

    def __init__(self, message: str, code: str, extensions: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.extensions: dict[str, Any] = {"code": code, **(extensions or {})}


_UPPER = re.compile(r"(?<=[a-z0-9])([A-Z])")
_UNDERSCORE = re.compile(r"_([a-z])")


# Only called with names of the schema, which bounds the cache.
@lru_cache(maxsize=256)
def snake_case(name: str) -> str:
    """Return the REST name of a GraphQL name: imageUrl -> image_url."""
    return _UPPER.sub(lambda m: "_" + m[1].lower(), name)


def camel_case(name: str) -> str:
    """Return the GraphQL name or path of a REST one: items[0].product_id -> items[0].productId."""
    return _UNDERSCORE.sub(lambda m: m[1].upper(), name)


def snake_case_keys(value: Any) -> Any:
    """Return an input object with the names of REST, at every level."""
    if isinstance(value, dict):
        return {snake_case(k): snake_case_keys(v) for k, v in value.items()}
    return [snake_case_keys(v) for v in value] if isinstance(value, list) else value


def camel_case_keys(value: Any) -> Any:
    """Return extension members of a problem with the names of GraphQL, at every level."""
    if isinstance(value, dict):
        return {camel_case(k): camel_case_keys(v) for k, v in value.items()}
    return [camel_case_keys(v) for v in value] if isinstance(value, list) else value
