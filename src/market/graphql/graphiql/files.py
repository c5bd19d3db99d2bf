"""The static files that the gateway serves from memory: GraphiQL's page and the images of the demo catalogue."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.graphql.config import Config
from market.kit.errors import NotFound
from market.kit.http.compression import Coding, accepted_codings, compress, etag_for_coding
from market.kit.http.responses import json_response

CONTENT_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
    "json": b"application/json",
}
# GraphiQL styles its editor from scripts; nothing may be loaded from, or sent to, another host but the issuer's.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: https:; "
    "font-src 'self' data:; connect-src {origins}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
IMAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MIN_COMPRESSED_BYTES = 1024


@dataclass
class _File:
    body: bytes
    etag: str
    suffix: str
    # By coding, compressed on the first request, not at start.
    compressed: dict[Coding, bytes] = field(default_factory=dict)


class StaticFiles:
    """Serves GET and HEAD for a fixed set of files. Paths of requests are looked up in memory, never opened."""

    # The routes that `get` serves.
    routes = ("GET /", "GET /graphiql/{name}", "GET /images/{name}")

    def __init__(self, contents: dict[str, bytes], issuer_origin: str | None = None) -> None:
        """Take the files' contents by URL path, and the origin that the page may call besides its own."""
        self._files = {path: _file(path, body) for path, body in contents.items()}
        self._page_policy = PAGE_POLICY.format(origins=" ".join(filter(None, ("'self'", issuer_origin))))

    @classmethod
    def load(cls, config: Config) -> StaticFiles:
        """Return the files of the package, and the page's settings.

        Each folder of `static` is a folder of the URL, and index.html is `/`.
        """
        settings, issuer_origin = _page_settings(config)
        contents = {"/graphiql/settings.json": msgspec.json.encode(settings)}
        for folder, suffixes in (("graphiql", (".html", ".js", ".css")), ("images", (".svg",))):
            directory = files("market.graphql.graphiql").joinpath("static", folder)
            for file in directory.iterdir() if directory.is_dir() else ():
                if file.name.endswith(suffixes):
                    path = "/" if file.name == "index.html" else f"/{folder}/{file.name}"
                    contents[path] = file.read_bytes()
        return cls(contents, issuer_origin)

    async def get(self, request: Request) -> Response:
        """Return the file, compressed where the client accepts it, or 304. Raises NotFound."""
        return await self._respond(request, request.scope["path"])

    async def get_page(self, request: Request) -> Response:
        """Return the GraphiQL page as a browser gets it at the GraphQL endpoint. Raises NotFound."""
        response = await self._respond(request, "/")
        # The endpoint responds differently to other clients. The address may contain an authorization code.
        response.headers["vary"] = "accept, accept-encoding"
        response.headers["cache-control"] = "no-store" if request.scope["query_string"] else "no-cache"
        return response

    async def _respond(self, request: Request, path: str) -> Response:
        file = self._files.get(path)
        if file is None:
            raise NotFound("such address")
        headers = {
            "etag": file.etag,
            "cache-control": "no-cache" if file.suffix in ("html", "json") else "public, max-age=3600",
            "content-security-policy": IMAGE_POLICY if file.suffix == "svg" else self._page_policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "vary": "accept-encoding",
        }
        codings = accepted_codings(request) if len(file.body) > _MIN_COMPRESSED_BYTES else ()
        tags = [file.etag, *(etag_for_coding(file.etag, coding) for coding in codings)]
        known = request.headers.get("if-none-match", "")
        if tag := next((tag for tag in tags if tag in known), None):
            return Response(status_code=304, headers={**headers, "etag": tag})
        if not codings:
            return json_response(file.body, 200, headers, content_type=CONTENT_TYPES[file.suffix])
        coding = codings[0]
        if coding not in file.compressed:
            file.compressed[coding] = await asyncio.to_thread(compress, file.body, coding)
        headers |= {"content-encoding": coding, "etag": etag_for_coding(file.etag, coding)}
        return json_response(file.compressed[coding], 200, headers, content_type=CONTENT_TYPES[file.suffix])


def _file(path: str, body: bytes) -> _File:
    suffix = "html" if path == "/" else path.rpartition(".")[2]
    return _File(body, f'"{hashlib.sha256(body).hexdigest()[:16]}"', suffix)


def _page_settings(config: Config) -> tuple[dict[str, Any], str | None]:
    """Return the page's settings for signing visitors in, and the issuer's origin; None if the page does not."""
    auth, graphiql = config.auth, config.graphiql
    settings: dict[str, Any] = {"mode": auth.mode}
    if auth.issuer is None or graphiql.client_id is None:
        return settings, None
    settings |= {
        "issuer": auth.issuer,
        "clientId": graphiql.client_id,
        "scope": graphiql.scope,
        "parameters": graphiql.authorization_parameters,
    }
    parts = urlsplit(auth.issuer)
    return settings, f"{parts.scheme}://{parts.netloc}"
