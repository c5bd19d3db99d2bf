"""The products of the desk: the table of all products."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from market.contracts.access import CHANGE_PRODUCTS
from market.storefront.desk import editing, stocking
from market.storefront.desk.sections import Section
from market.storefront.documents import desk_products as documents
from market.storefront.domain import MAX_SEARCH, PAGE_SIZE, DeskProductPage
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

SORTS = ("-created_at", "created_at", "name", "-name", "price", "-price")


async def list_products(visit: Visit) -> Response:
    """Show a page of the products, or of those that a search finds, with their stock."""
    q = visit.query("q").strip()[:MAX_SEARCH]
    sort = visit.query("sort")
    sort = sort if sort in SORTS else ""
    after = visit.query("after")
    variables = {"limit": PAGE_SIZE, "q": q or None, "sort": sort or None, "after": after or None}
    page = await visit.deps.gateway.execute(documents.LIST_PRODUCTS, variables, DeskProductPage)
    return visit.page(
        "desk/products.html",
        q=q,
        sort=sort,
        page=page,
        next_path=None if page.next is None else _path(q=q, sort=sort, after=page.next),
        first_path=_path(q=q, sort=sort) if after else None,
    )


def _path(**parameters: str) -> str:
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"/desk/products?{query}" if query else "/desk/products"


SECTIONS = (
    Section(
        path="/desk/products",
        title=N_("Products"),
        explanation=N_("What the shop sells: names, prices, pictures and stock."),
        access=CHANGE_PRODUCTS,
        routes={"GET /desk/products": list_products, **editing.ROUTES, **stocking.ROUTES},
    ),
)
