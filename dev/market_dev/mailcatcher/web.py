"""The HTTP side: the web page and its JSON API."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from market_dev.mailcatcher.mailbox import Mailbox
from market_dev.mailcatcher.smtp import Fault, Handler


class _Query(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    offset: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    to: str | None = None


def app(mailbox: Mailbox, handler: Handler, *, testing: bool) -> Starlette:
    """Return the application: `/` is the page, `/api/messages` the mails; `/api/faults` exists only if `testing`."""
    page = (files("market_dev.mailcatcher") / "page.html").read_bytes()

    async def index(_: Request) -> Response:
        # Mails are untrusted: none of their content may run, and nothing may be loaded for it.
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
            "img-src data:; frame-src 'self'"
        )
        return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})

    async def messages(request: Request) -> Response:
        try:
            query = msgspec.convert(dict(request.query_params), _Query, strict=False)
        except msgspec.ValidationError as e:
            return _problem(422, str(e))
        items, total = mailbox.page(query.to, query.limit, query.offset)
        return JSONResponse({"items": items, "total": total})

    async def clear(_: Request) -> Response:
        await mailbox.clear()
        return Response(status_code=204)

    async def raw(request: Request) -> Response:
        found = mailbox.raw(request.path_params["id"])
        return _problem(404, "mail not found") if found is None else Response(found, media_type="text/plain")

    async def faults(request: Request) -> Response:
        body = await request.body()
        try:
            injected: Any = msgspec.json.decode(body, type=Fault | list[Fault])
        except msgspec.DecodeError as e:
            return _problem(422, str(e))
        handler.inject(injected if isinstance(injected, list) else [injected])
        return Response(status_code=204)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    routes = [
        Route("/", index),
        Route("/healthz", healthz),
        Route("/api/messages", messages, methods=["GET"]),
        Route("/api/messages", clear, methods=["DELETE"]),
        Route("/api/messages/{id}/raw", raw, methods=["GET"]),
    ]
    if testing:
        routes.append(Route("/api/faults", faults, methods=["POST"]))
    return Starlette(routes=routes)


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")
