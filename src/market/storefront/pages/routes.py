"""The addresses of the buyer's pages."""

from __future__ import annotations

from collections.abc import Mapping

from market.storefront.pages import catalogue, language, pictures, robots
from market.storefront.pages.visit import Page

ROUTES: Mapping[str, Page] = {
    "GET /": catalogue.get_catalogue,
    "GET /products/{id}": catalogue.get_product,
    "GET /suggestions": catalogue.get_suggestions,
    "POST /language": language.choose_language,
    "GET /images/{name}": pictures.get_picture,
    "GET /robots.txt": robots.get_robots,
    "GET /sitemap.xml": robots.get_sitemap,
}
