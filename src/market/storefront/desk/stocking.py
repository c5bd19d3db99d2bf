"""The stock of a product: a stock take sets it to the number that was counted, a delivery adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from starlette.responses import Response

from market.kit.text import parse_uuid
from market.storefront.desk import changes
from market.storefront.desk.changes import ProductChanged
from market.storefront.desk.editing import MAX_STOCK, parse_units, path_of, product_id_of, read_version
from market.storefront.desk.notices import redirect_with_notice
from market.storefront.desk.unknown import outcome_unknown
from market.storefront.domain import DeskProduct, OutcomeUnknown, RequestRefused
from market.storefront.pages.visit import Page, Visit
from market.storefront.texts.languages import N_


@dataclass(frozen=True)
class Stock:
    """The page with both forms.

    delivery_id: of the form for a delivery, a new one for each page
    counted, quantity: as they were typed
    mistakes: by field, the message of the shop, or "" if the text is not a whole number
    was_changed: a stock take was not saved, because the product or its stock has changed since
    seen: if so, the stock that the merchant saw
    """

    product: DeskProduct
    delivery_id: str
    counted: str = ""
    quantity: str = ""
    mistakes: Mapping[str, str] | None = None
    was_changed: bool = False
    seen: int | None = None


async def get_stock(visit: Visit) -> Response:
    """Show the stock with both forms."""
    product = await changes.get_product(visit.deps, product_id=visit.parameter("id"))
    return _show(visit, Stock(product, str(uuid4())))


async def take_stock(visit: Visit) -> Response:
    """Set the stock to the number that was counted, unless it has changed since the merchant saw it."""
    product_id, version = product_id_of(visit), read_version(visit)
    seen, counted = parse_units(visit.value("seen_stock")), parse_units(visit.value("counted"))
    if counted is None:
        return await _correct(visit, product_id, counted=visit.value("counted"), mistakes={"counted": ""})
    try:
        before = await changes.take_stock(
            visit.deps, product_id=product_id, counted=counted, version=version, seen=seen
        )
    except RequestRefused as e:
        return await _correct(visit, product_id, counted=visit.value("counted"), mistakes={"counted": str(e)})
    except ProductChanged as e:
        stock = Stock(e.current, str(uuid4()), counted=str(counted), was_changed=True, seen=seen)
        return _show(visit, stock, status=409)
    except OutcomeUnknown:
        return outcome_unknown(visit, look_path=f"{path_of(product_id)}/stock")
    return redirect_with_notice(
        visit,
        f"{path_of(product_id)}/stock",
        N_("The stock of %(name)s is %(now)s."),
        name=before.name,
        now=visit.language.number(counted),
    )


async def book_delivery(visit: Visit) -> Response:
    """Add the units of a delivery, once however often the form is sent."""
    product_id, delivery_id = product_id_of(visit), visit.value("delivery_id")
    parse_uuid("delivery_id", delivery_id)
    quantity = parse_units(visit.value("quantity"))
    if not quantity:
        return await _correct(
            visit, product_id, delivery_id, quantity=visit.value("quantity"), mistakes={"quantity": ""}
        )
    try:
        product = await changes.book_delivery(
            visit.deps, product_id=product_id, delivery_id=delivery_id, quantity=quantity
        )
    except RequestRefused as e:
        return await _correct(visit, product_id, quantity=visit.value("quantity"), mistakes={"quantity": str(e)})
    except (OutcomeUnknown, ProductChanged):
        return outcome_unknown(visit, look_path=f"{path_of(product_id)}/stock")
    return redirect_with_notice(
        visit,
        f"{path_of(product_id)}/stock",
        N_("A delivery of %(quantity)s was added to the stock of %(name)s."),
        name=product.name,
        quantity=visit.language.number(quantity),
    )


async def _correct(
    visit: Visit,
    product_id: str,
    delivery_id: str = "",
    *,
    counted: str = "",
    quantity: str = "",
    mistakes: Mapping[str, str],
) -> Response:
    """Show the page again, with what was typed and what must be corrected."""
    product = await changes.get_product(visit.deps, product_id=product_id)
    return _show(visit, Stock(product, delivery_id or str(uuid4()), counted, quantity, mistakes), status=400)


def _show(visit: Visit, stock: Stock, *, status: int = 200) -> Response:
    return visit.page("desk/stock.html", status=status, stock=stock, max_stock=MAX_STOCK)


ROUTES: Mapping[str, Page] = {
    "GET /desk/products/{id}/stock": get_stock,
    "POST /desk/products/{id}/stock-take": take_stock,
    "POST /desk/products/{id}/deliveries": book_delivery,
}
