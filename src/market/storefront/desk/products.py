"""The products of the desk: the table of all products."""

from __future__ import annotations

from starlette.responses import Response

from market.contracts.access import CHANGE_PRODUCTS
from market.storefront.desk import editing, stocking
from market.storefront.desk.sections import Section
from market.storefront.documents import desk_products as documents
from market.storefront.domain import MAX_SEARCH, PAGE_SIZE, DeskProductPage
from market.storefront.pages.addresses import address
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

_PATH = "/desk/products"
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
        next_path=None if page.next is None else address(_PATH, {"q": q, "sort": sort, "after": page.next}),
        first_path=address(_PATH, {"q": q, "sort": sort}) if after else None,
    )


SECTIONS = (
    Section(
        path=_PATH,
        title=N_("Products"),
        explanation=N_("What the shop sells: names, prices, pictures and stock."),
        access=CHANGE_PRODUCTS,
        routes={f"GET {_PATH}": list_products, **editing.ROUTES, **stocking.ROUTES},
    ),
)
