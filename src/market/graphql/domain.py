"""What products and orders answer, as the gateway reads it, and the names on both sides."""

from __future__ import annotations

import re
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


class ProductPage(Struct, frozen=True, gc=False):
    items: list[Product]
    total: int
    limit: int
    offset: int


class OrderItem(Struct, frozen=True, gc=False):
    product_id: str
    name: str
    quantity: int
    unit_price: str


class Order(Struct, frozen=True, gc=False):
    id: str
    user: str
    email: str | None
    items: list[OrderItem]
    total: str
    currency: str
    status: str
    created_at: str


class OrderPage(Struct, frozen=True, gc=False):
    items: list[Order]
    total: int
    limit: int
    offset: int


# By the schema's names of types.
TYPES: dict[str, type[Struct]] = {t.__name__: t for t in (Product, ProductPage, OrderItem, Order, OrderPage)}

_UPPER = re.compile(r"(?<=[a-z0-9])([A-Z])")
_UNDERSCORE = re.compile(r"_([a-z])")


def snake(name: str) -> str:
    """imageUrl -> image_url"""
    return _UPPER.sub(lambda m: "_" + m[1].lower(), name)


def camel(name: str) -> str:
    """image_url -> imageUrl; items[0].product_id -> items[0].productId"""
    return _UNDERSCORE.sub(lambda m: m[1].upper(), name)


def snake_keys(value: Any) -> Any:
    """The input object as REST writes it."""
    if isinstance(value, dict):
        return {snake(k): snake_keys(v) for k, v in value.items()}
    return [snake_keys(v) for v in value] if isinstance(value, list) else value


def camel_keys(value: Any) -> Any:
    """A problem's facts as GraphQL writes them."""
    if isinstance(value, dict):
        return {camel(k): camel_keys(v) for k, v in value.items()}
    return [camel_keys(v) for v in value] if isinstance(value, list) else value
