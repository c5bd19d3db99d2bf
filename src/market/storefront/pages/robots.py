"""Files for crawlers: robots.txt and the sitemap (https://www.sitemaps.org/protocol.html)."""

from __future__ import annotations

from xml.sax.saxutils import escape

from starlette.responses import Response

from market.storefront.pages.visit import Visit

_HEADERS = {"cache-control": "public, max-age=3600", "x-content-type-options": "nosniff"}
# Pages of one visitor, and addresses that show the same catalogue in another order or from another page on.
_PRIVATE = ("/basket", "/checkout", "/desk", "/orders", "/sign-in", "/suggestions", "/*sort=", "/*after=")


async def get_robots(visit: Visit) -> Response:
    """Return robots.txt: the addresses that crawlers should not visit, and where the sitemap is."""
    lines = ["User-agent: *", *(f"Disallow: {path}" for path in _PRIVATE), f"Sitemap: {visit.origin}/sitemap.xml"]
    return Response("\n".join(lines) + "\n", headers=_HEADERS, media_type="text/plain")


async def get_sitemap(visit: Visit) -> Response:
    """Return the sitemap: the addresses of the catalogue and its newest products."""
    entries = [f"<url><loc>{escape(visit.origin)}/</loc></url>"]
    for product in await visit.site.listing.get():
        location = escape(f"{visit.origin}/products/{product.id}")
        entries.append(f"<url><loc>{location}</loc><lastmod>{escape(product.updated_at)}</lastmod></url>")
    xml = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    return Response(xml + "\n".join(entries) + "\n</urlset>\n", headers=_HEADERS, media_type="application/xml")
