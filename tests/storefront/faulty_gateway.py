"""A gateway in front of the shop's own, at which parts of the shop can be switched off without stopping a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from market.kit.http.server import HttpServer
from tests.support.ports import free_port


class FaultyGateway:
    """Passes requests on, without their tokens, to a shop in which nobody signs in.

    off: the parts that are switched off: "inventory", "orders", "products"
    user: whose orders are meant in requests that name nobody, as those of people who have signed in
    """

    def __init__(self, url: str, http: httpx.AsyncClient, *, user: str) -> None:
        self.off: set[str] = set()
        self.user = user
        self.url = ""
        self._upstream = url
        self._http = http

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FaultyGateway]:
        routes = [
            Route("/graphql", self._execute, methods=["POST"]),
            Route("/images/{name}", self._get_picture, methods=["GET"]),
        ]
        server = HttpServer(Starlette(routes=routes), "127.0.0.1", port := free_port())
        await server.start()
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            await server.stop(0)

    async def _execute(self, request: Request) -> Response:
        body = await request.json()
        names = {"products"} if "roduct" in body["query"].partition("{")[0] else {"orders"}
        if names & self.off:
            error = {"message": f"{names} is unavailable", "extensions": {"code": "UNAVAILABLE"}}
            return JSONResponse({"data": None, "errors": [error]})
        if "$user" in body["query"]:
            body["variables"].setdefault("user", self.user)
        if "CreateOrderInput" in body["query"]:
            given = {name: value for name, value in body["variables"]["input"].items() if value is not None}
            body["variables"]["input"] = {"user": self.user, "email": "ann@example.com", **given}
        headers = {"accept": request.headers["accept"]}
        response = await self._http.post(f"{self._upstream}/graphql", json=body, headers=headers)
        result = response.json()
        if "inventory" in self.off:
            _forget_availability(result)
        return JSONResponse(result, response.status_code)

    async def _get_picture(self, request: Request) -> Response:
        response = await self._http.get(f"{self._upstream}{request.url.path}")
        return Response(response.content, response.status_code, {"content-type": response.headers["content-type"]})


def _forget_availability(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("available", "stock"):
                value[name] = None
            else:
                _forget_availability(inner)
    elif isinstance(value, list):
        for inner in value:
            _forget_availability(inner)
