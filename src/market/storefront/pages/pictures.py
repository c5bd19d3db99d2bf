"""The pictures of the demo catalogue, fetched from the gateway, which serves them under the same path."""

from __future__ import annotations

import re

from starlette.responses import Response

from market.kit.errors import NotFound
from market.storefront.pages.visit import Visit

_NAME = re.compile(r"[a-z0-9-]{1,100}\.(svg|png|jpg|webp)")
_HEADERS = {
    "cache-control": "public, max-age=3600",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


async def get_picture(visit: Visit) -> Response:
    """Return a picture. Raises NotFound."""
    name = visit.parameter("name")
    found = await visit.deps.gateway.get_picture(f"/images/{name}") if _NAME.fullmatch(name) else None
    if found is None:
        raise NotFound("such picture")
    body, media_type = found
    return Response(body, headers={**_HEADERS, "content-type": media_type})
