"""The style sheet, the script and the icon, served from memory under names that change with their content."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from market.kit.errors import NotFound

_MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_HEADERS = {
    # A changed file has another name.
    "cache-control": "public, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
}


class Assets:
    """The files of `static/`. Paths of requests are looked up in memory, never opened."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._files: dict[str, tuple[bytes, str]] = {}
        for file in files("market.storefront.rendering").joinpath("static").iterdir():
            stem, _, suffix = file.name.rpartition(".")
            if suffix in _MEDIA_TYPES:
                body = file.read_bytes()
                path = f"/static/{stem}.{hashlib.sha256(body).hexdigest()[:12]}.{suffix}"
                self._paths[file.name] = path
                self._files[path] = (body, _MEDIA_TYPES[suffix])

    def path(self, name: str) -> str:
        """Return the URL path of a file: "/static/shop.0123456789ab.css" for "shop.css"."""
        return self._paths[name]

    async def get(self, request: Request) -> Response:
        """Return the file. Raises NotFound."""
        found = self._files.get(request.scope["path"])
        if found is None:
            raise NotFound("such file")
        body, media_type = found
        return Response(body, headers={**_HEADERS, "content-type": media_type})
