"""The files that the gateway serves: GraphiQL and the demo catalogue's pictures, from the package, out of memory."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from market.kit.errors import NotFound
from market.kit.http.responses import json_response

TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}
# GraphiQL styles its editor from scripts; nothing may come from, or go to, anywhere else.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: https:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SMALL = 1024
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass
class File:
    body: bytes
    etag: str
    kind: str
    # Made when somebody first asks for it: the start has better things to do.
    zipped: bytes | None = None


class Files:
    """Answers GET and HEAD for the files it was made of; their paths are looked up, never opened."""

    # What the edge hands to `get`.
    routes = ("GET /", "GET /graphiql/{name}", "GET /images/{name}")

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._files = {path: _file(path, body) for path, body in contents.items()}

    @classmethod
    def load(cls) -> Files:
        """What lies in the package: `static/graphiql` and every picture in `static/images`."""
        static = files("market.graphql.graphiql").joinpath("static")
        contents: dict[str, bytes] = {}
        for folder, suffixes in (("graphiql", (".html", ".js", ".css")), ("images", (".svg",))):
            there = static.joinpath(folder)
            for file in there.iterdir() if there.is_dir() else ():
                if file.name.endswith(suffixes):
                    path = "/" if file.name == "index.html" else f"/{folder}/{file.name}"
                    contents[path] = file.read_bytes()
        return cls(contents)

    async def get(self, request: Request) -> Response:
        """The file, or NotFound."""
        file = self._files.get(request.scope["path"])
        if file is None:
            raise NotFound("such address")
        headers = {
            "etag": file.etag,
            "cache-control": "no-cache" if file.kind == "html" else "public, max-age=3600",
            "content-security-policy": PICTURE_POLICY if file.kind == "svg" else PAGE_POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "vary": "accept-encoding",
        }
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = file.body
        if len(body) > _SMALL and "gzip" in request.headers.get("accept-encoding", ""):
            if file.zipped is None:
                file.zipped = await asyncio.to_thread(gzip.compress, body, 6, mtime=0)
            body = file.zipped
            headers["content-encoding"] = "gzip"
        return json_response(body, 200, headers, content_type=TYPES[file.kind])


def _file(path: str, body: bytes) -> File:
    kind = "html" if path == "/" else path.rpartition(".")[2]
    return File(body, f'"{hashlib.sha256(body).hexdigest()[:16]}"', kind)
