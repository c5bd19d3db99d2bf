"""The catalogue: the list with search, sorting and paging, the product page, and search suggestions."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from market.kit.http.responses import json_response
from market.storefront import service
from market.storefront.domain import MAX_SEARCH, Product
from market.storefront.pages.addresses import address
from market.storefront.pages.visit import Visit

SORTS = ("-created_at", "price", "-price", "name")


async def get_catalogue(visit: Visit) -> Response:
    """Show a page of the catalogue, or of the products that a search finds."""
    q = visit.query("q").strip()[:MAX_SEARCH]
    sort = visit.query("sort")
    sort = sort if sort in SORTS else ""
    page = await service.list_products(visit.deps, q=q or None, sort=sort or None, after=visit.query("after") or None)
    next_path = None
    if page.next is not None:
        next_path = address("/", {"q": q, "sort": sort, "after": page.next})
    return visit.page(
        "catalogue.html",
        q=q,
        sort=sort,
        page=page,
        next_path=next_path,
        first_path=address("/", {"q": q, "sort": sort}) if visit.query("after") else None,
    )


async def get_product(visit: Visit) -> Response:
    """Show a product."""
    product = await service.get_product(visit.deps, product_id=visit.parameter("id"))
    return visit.page("product.html", product=product, structured_data=_structured_data(visit, product))


async def get_suggestions(visit: Visit) -> Response:
    """Return the names of suggested products as JSON, for the search field."""
    q = visit.query("q").strip()[:MAX_SEARCH]
    found = await service.suggest_products(visit.deps, q=q) if q else ()
    return json_response(
        {"names": [product.name for product in found]},
        headers={"cache-control": "private, max-age=60", "x-content-type-options": "nosniff"},
    )


def _structured_data(visit: Visit, product: Product) -> dict[str, Any]:
    """Return the product as schema.org structured data, for search engines."""
    url = f"{visit.origin}/products/{product.id}"
    offer: dict[str, Any] = {
        "@type": "Offer",
        "url": url,
        "price": product.price,
        "priceCurrency": product.currency,
    }
    if product.available is not None:
        offer["availability"] = f"https://schema.org/{'InStock' if product.available else 'OutOfStock'}"
    data: dict[str, Any] = {
        "@context": "https://schema.org",
        "@type": "Product",
        "@id": url,
        "name": product.name,
        "description": product.description,
        "offers": offer,
    }
    if product.image_url:
        data["image"] = product.image_url if "://" in product.image_url else visit.origin + product.image_url
    return data
