"""Pricing: gives the lines of a request the catalogue's names and prices, and adds up the total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec import Struct

from market.contracts import money
from market.kit.errors import BadInput, Conflict
from market.orders.domain import MAX_QUANTITY, NewOrder, OrderLine, Product, RequestedLine


class PricedLines(Struct, frozen=True):
    """An order's lines with names and prices, and their total in one currency."""

    lines: tuple[OrderLine, ...]
    total: Decimal
    currency: str


def merge_lines(lines: Sequence[RequestedLine]) -> tuple[RequestedLine, ...]:
    """Return one line per product, in the sequence in which the products first occur, with ids in lower case.

    Raises BadInput if a product's merged quantity exceeds MAX_QUANTITY.
    """
    quantities: dict[str, int] = {}
    for i, line in enumerate(lines):
        product_id = line.product_id.lower()
        quantity = quantities.get(product_id, 0) + line.quantity
        if quantity > MAX_QUANTITY:
            raise BadInput(
                f"items[{i}].quantity",
                f"must be at most {MAX_QUANTITY} per product in total, got {quantity} after merging lines",
            )
        quantities[product_id] = quantity
    return tuple(RequestedLine(product_id, quantity) for product_id, quantity in quantities.items())


def price_lines(new: NewOrder, products: Mapping[str, Product]) -> PricedLines:
    """Return the request's lines with the catalogue's names and prices. `products` maps ids to products.

    Raises UnknownProducts if a product does not exist, and PriceChanged if the total or the currency is not the
    expected one. If the products have different currencies, raises CurrenciesDiffer if the request has an expected
    currency, and BadInput if it has none.
    """
    unknown = [line.product_id for line in new.lines if line.product_id not in products]
    if unknown:
        raise UnknownProducts(unknown)
    lines = []
    total = Decimal(0)
    currencies: dict[str, None] = {}
    for line in new.lines:
        product = products[line.product_id]
        currencies[product.currency] = None
        total += product.price * line.quantity
        lines.append(OrderLine(line.product_id, product.name, line.quantity, product.price))
    if len(currencies) > 1:
        if new.expected_currency is not None:
            # The customer has seen a single currency, so a product's currency has changed since then.
            raise CurrenciesDiffer(sorted(currencies))
        raise BadInput("items", f"must all have the same currency, got {', '.join(sorted(currencies))}")
    priced = PricedLines(tuple(lines), money.normalize(total), next(iter(currencies)))
    if new.expected_total not in (None, total) or new.expected_currency not in (None, priced.currency):
        raise PriceChanged(priced)
    return priced


class UnknownProducts(BadInput):
    """Products that are not in the catalogue."""

    def __init__(self, product_ids: list[str]) -> None:
        shown = ", ".join(product_ids[:10]) + (f" and {len(product_ids) - 10} more" if len(product_ids) > 10 else "")
        super().__init__("items.product_id", f"unknown {'product' if len(product_ids) == 1 else 'products'} {shown}")
        self.product_ids = product_ids

    def extension_members(self) -> dict[str, Any]:
        return {
            "errors": [
                {"field": "items.product_id", "reason": f"unknown product {product_id}"}
                for product_id in self.product_ids
            ]
        }


class PriceChanged(Conflict):
    """The order's total or currency is not the `expected_total` or `expected_currency` of the request."""

    type = "price-changed"
    title = "Price changed"

    def __init__(self, priced: PricedLines) -> None:
        super().__init__(f"the total is now {money.write(priced.total, priced.currency)} {priced.currency}")
        self.total = priced.total
        self.currency = priced.currency

    def extension_members(self) -> dict[str, Any]:
        return {"total": money.write(self.total, self.currency), "currency": self.currency}


class CurrenciesDiffer(Conflict):
    """The products had the same currency and now have different ones. Without a common currency there is no total.

    The error has the same type as PriceChanged, because clients handle both in the same way.
    """

    type = "price-changed"
    title = "Price changed"

    def __init__(self, currencies: Sequence[str]) -> None:
        super().__init__(f"the products now have different currencies: {' and '.join(currencies)}")
