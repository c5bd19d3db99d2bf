"""The start page of the desk."""

from __future__ import annotations

from starlette.responses import Response

from market.storefront.pages.visit import Visit


async def get_start(visit: Visit) -> Response:
    """Show the sections that the visitor may use."""
    return visit.page("desk/start.html")
