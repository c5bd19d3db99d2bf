"""A fake products service that the tests control."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer
from tests.support.ports import free_port
from tests.support.waiting import until


class FakeCatalogue:
    """Serves `GET /api/product?ids=`.

    `products`: by id, as JSON. `requests`: the ids of each request. `authorizations`: the header
    Authorization of each, or None. `in_flight`, `peak_in_flight`: concurrent requests,
    now and at most since `reset`.

    A test may set `unavailable` (respond with 503), `await_in_flight` (do not respond before that many requests have
    been in flight together) and `delay_seconds` (respond that much later).
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.products: dict[str, dict[str, Any]] = {}
        self.requests: list[list[str]] = []
        self.authorizations: list[str | None] = []
        self.in_flight = 0
        self.reset()
        self._server = HttpServer(
            edge.application({"GET /api/product": self._list}, Http(port=self.port)), "127.0.0.1", self.port
        )

    def reset(self) -> None:
        """Respond at once, also to the requests in flight."""
        self.unavailable, self.delay_seconds, self.await_in_flight, self.peak_in_flight = False, 0.0, 0, 0

    def add(self, price: str = "2.50", *, name: str = "Lamp", currency: str = "GBP") -> str:
        """Add a product and return its id."""
        product_id = str(uuid4())
        self.products[product_id] = {
            "id": product_id,
            "name": name,
            "price": price,
            "currency": currency,
            "description": "",
            "available": None,
        }
        return product_id

    async def _list(self, request: Request) -> Response:
        assert request.query_params["availability"] == "false"
        if self.unavailable:
            return Response("unavailable", 503)
        product_ids = request.query_params["ids"].split(",")
        self.requests.append(product_ids)
        self.authorizations.append(request.headers.get("authorization"))
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            await until(lambda: self.peak_in_flight >= self.await_in_flight, 60, "requests in flight together")
            started = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < started + self.delay_seconds:
                await asyncio.sleep(0.01)
        finally:
            self.in_flight -= 1
        found = [self.products[product_id] for product_id in product_ids if product_id in self.products]
        return json_response({"items": found, "total": len(found), "limit": 100, "offset": 0})

    async def __aenter__(self) -> FakeCatalogue:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(1)
