"""The basket page, and changes to the basket."""

from __future__ import annotations

from typing import Any, Literal

from starlette.responses import Response

from market.kit.errors import Unavailable
from market.storefront import service
from market.storefront.basket.basket import BasketFull, parse_product_id
from market.storefront.domain import MAX_LINES, MAX_QUANTITY, Totals
from market.storefront.pages.visit import Visit, redirect

Mistake = Literal["quantity", "full"]


async def get_basket(visit: Visit) -> Response:
    """Show the basket. If names and prices are unavailable, say that the basket is kept."""
    return await _show(visit)


async def change_basket(visit: Visit) -> Response:
    """Add units of a product, set its quantity, or remove it."""
    product_id = parse_product_id(visit.value("product"))
    action = visit.value("action")
    quantity = 0 if action == "remove" else parse_quantity(visit.value("quantity"), minimum=1 if action == "add" else 0)
    if quantity is None:
        return await _show(visit, "quantity", product_id)
    try:
        if action == "add":
            visit.basket = visit.basket.add(product_id, quantity)
        else:
            visit.basket = visit.basket.put(product_id, quantity)
    except BasketFull:
        return await _show(visit, "full")
    return redirect("/basket")


def parse_quantity(text: str, *, minimum: int = 1) -> int | None:
    """Return the quantity, or None if it is not a whole number from `minimum` to MAX_QUANTITY."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        return None
    quantity = int(text)
    return quantity if minimum <= quantity <= MAX_QUANTITY else None


async def _show(visit: Visit, mistake: Mistake | None = None, wrong_product: str | None = None) -> Response:
    """Show the basket, and why a change was not made. wrong_product: the product whose quantity was invalid."""
    status = 200 if mistake is None else 400
    shown: dict[str, Any] = {
        "mistake": mistake,
        "wrong_product": wrong_product,
        "max_lines": MAX_LINES,
        "max_quantity": MAX_QUANTITY,
    }
    try:
        lines = await service.price_lines(visit.deps, visit.basket.lines)
    except Unavailable as e:
        return visit.page("basket.html", status=503, problem=e, lines=None, totals=None, **shown)
    return visit.page("basket.html", status=status, lines=lines, totals=Totals.of(lines), **shown)
