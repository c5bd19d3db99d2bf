"""The basket: product ids with quantities, in a signed cookie, so that it needs no other service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from market.kit.text import parse_uuid
from market.storefront.domain import MAX_LINES, MAX_QUANTITY, Line
from market.storefront.session.cookies import CookieJar

_PURPOSE = "basket"
_MAX_AGE_SECONDS = 90 * 24 * 3600


class BasketFull(Exception):
    """The basket has the maximum number of lines already."""


@dataclass(frozen=True)
class Basket:
    """Quantities by product id, in the order in which the products were added. At most 50 lines."""

    quantities: tuple[tuple[str, int], ...] = ()

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines, in the order in which the products were added."""
        return tuple(Line(product_id, quantity) for product_id, quantity in self.quantities)

    @property
    def units(self) -> int:
        """The number of units of all lines."""
        return sum(quantity for _, quantity in self.quantities)

    def quantity(self, product_id: str) -> int:
        """Return the quantity of the product; 0 if it is not in the basket."""
        return dict(self.quantities).get(product_id, 0)

    def add(self, product_id: str, quantity: int) -> Basket:
        """Return the basket with the quantity of the product increased, up to MAX_QUANTITY. Raises BasketFull."""
        return self.put(product_id, min(MAX_QUANTITY, self.quantity(product_id) + quantity))

    def put(self, product_id: str, quantity: int) -> Basket:
        """Return the basket with this quantity of the product; 0 removes it. Raises BasketFull."""
        quantities = dict(self.quantities)
        if quantity <= 0:
            quantities.pop(product_id, None)
        else:
            quantities[product_id] = quantity
        if len(quantities) > MAX_LINES:
            raise BasketFull
        return Basket(tuple(quantities.items()))

    def without(self, ordered: Mapping[str, int]) -> Basket:
        """Return the basket without the units that were ordered. `ordered`: quantities by product id."""
        rest = ((product_id, quantity - ordered.get(product_id, 0)) for product_id, quantity in self.quantities)
        return Basket(tuple((product_id, quantity) for product_id, quantity in rest if quantity > 0))


class _Stored(Struct, frozen=True, array_like=True):
    """A line in the cookie: the id without hyphens, because 50 lines have to fit."""

    product: str
    quantity: int


class Baskets:
    """Reads and writes the baskets of visitors."""

    def __init__(self, cookies: CookieJar) -> None:
        self._cookies = cookies

    def read(self, request: Request) -> Basket:
        """Return the visitor's basket, which is empty if the cookie is absent or not ours."""
        stored = self._cookies.read(request, _PURPOSE, tuple[_Stored, ...], max_age=_MAX_AGE_SECONDS) or ()
        lines = ((str(UUID(line.product)), line.quantity) for line in stored[:MAX_LINES])
        return Basket(tuple(lines))

    def write(self, response: Response, basket: Basket) -> None:
        """Store the basket in the visitor's browser."""
        if not basket.quantities:
            self._cookies.remove(response, _PURPOSE)
            return
        stored = [_Stored(UUID(product_id).hex, quantity) for product_id, quantity in basket.quantities]
        self._cookies.write(response, _PURPOSE, stored, max_age=_MAX_AGE_SECONDS)


def parse_product_id(text: str) -> str:
    """Return a product's id in lower case. Raises BadInput unless it is a UUID."""
    return str(parse_uuid("product", text))
