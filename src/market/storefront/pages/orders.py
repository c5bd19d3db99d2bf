"""The order page and "my orders"."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from market.storefront import service
from market.storefront.pages.visit import Visit, redirect
from market.storefront.session.session import MAX_NAME


async def list_orders(visit: Visit) -> Response:
    """Show a page of the visitor's orders. In mode `open`, these are the orders of the name that was entered."""
    name = ""
    if visit.site.is_open:
        name = (visit.query("name").strip() or visit.session.name)[:MAX_NAME]
        if not name:
            return visit.page("orders.html", orders=(), name="", next_path=None)
    page = await service.list_orders(visit.deps, user=name or None, after=visit.query("after") or None)
    next_path = None
    if page.next is not None:
        parameters = {"name": name, "after": page.next}
        next_path = "/orders?" + urlencode({key: value for key, value in parameters.items() if value})
    return visit.page("orders.html", orders=page.items, name=name, next_path=next_path)


async def get_order(visit: Visit) -> Response:
    """Show an order."""
    order = await service.get_order(visit.deps, order_id=visit.parameter("id"))
    return visit.page("order.html", order=order, was_placed=bool(visit.query("placed")))


async def cancel_order(visit: Visit) -> Response:
    """Cancel an order, and show it as it is afterwards."""
    order = await service.cancel_order(visit.deps, order_id=visit.parameter("id"))
    return redirect(f"/orders/{order.id}")
