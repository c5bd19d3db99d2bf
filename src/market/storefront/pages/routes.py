"""The addresses of the buyer's pages."""

from __future__ import annotations

from collections.abc import Mapping

from market.storefront.pages import basket, catalogue, checkout, language, orders, pictures, robots, sign_in
from market.storefront.pages.visit import Page

ROUTES: Mapping[str, Page] = {
    "GET /": catalogue.get_catalogue,
    "GET /products/{id}": catalogue.get_product,
    "GET /suggestions": catalogue.get_suggestions,
    "GET /basket": basket.get_basket,
    "POST /basket": basket.change_basket,
    "GET /checkout": checkout.get_checkout,
    "POST /checkout": checkout.place_order,
    "GET /checkout/pending": checkout.get_pending,
    "POST /checkout/pending": checkout.forget_pending,
    "GET /orders": orders.list_orders,
    "GET /orders/{id}": orders.get_order,
    "POST /orders/{id}/cancellation": orders.cancel_order,
    "GET /sign-in": sign_in.begin,
    "GET /sign-in/callback": sign_in.finish,
    "POST /sign-out": sign_in.sign_out,
    "POST /language": language.choose_language,
    "GET /images/{name}": pictures.get_picture,
    "GET /robots.txt": robots.get_robots,
    "GET /sitemap.xml": robots.get_sitemap,
}

# Routes whose responses are the same for all visitors.
SHARED = frozenset({"GET /images/{name}", "GET /robots.txt", "GET /sitemap.xml"})

# The paths that require sign-in if auth.mode is `required`, with all paths below them. The catalogue is public.
_NEEDS_SIGN_IN = ("/checkout", "/orders", "/desk")


def needs_sign_in(route: str) -> bool:
    """Return whether a route, such as "GET /orders/{id}", requires sign-in."""
    path = route.partition(" ")[2]
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in _NEEDS_SIGN_IN)
