"""A shop in memory that keeps the contract of POST /api/product and POST /api/order, and can inject failures."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

from aiohttp import web


class InMemoryShop:
    def __init__(self) -> None:
        self.url = ""
        self.products: dict[str, dict[str, Any]] = {}
        self.stock: dict[str, int] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, tuple[Any, str]] = {}
        self.requests = 0
        self.in_flight = 0
        self.max_in_flight = 0
        # Failures of the next requests, in order: a status, "drop" (close the connection without a response), or
        # "lose" (carry the request out, then close the connection without a response).
        self.failures: list[int | str] = []
        self.retry_after = "0"
        # Each order waits until so many have been in flight at once, and a little longer.
        self.together = 0
        self._met = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**20)
        app.router.add_get("/api/product", self.list_products)
        app.router.add_post("/api/product", self.create_product)
        app.router.add_post("/api/order", self.place_order)
        return app

    def _failure(self, request: web.Request) -> web.StreamResponse | None:
        if not self.failures or self.failures[0] == "lose":
            return None
        failure = self.failures.pop(0)
        if failure == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        assert isinstance(failure, int)
        return problem(failure, "unavailable", "could not be decided now", {"Retry-After": self.retry_after})

    async def list_products(self, request: web.Request) -> web.StreamResponse:
        words = request.query.get("q", "").strip('"').lower()
        items = [p for p in self.products.values() if words in p["description"].lower()]
        return web.json_response(
            {"items": items[: int(request.query["limit"])], "total": len(items), "limit": 1, "offset": 0}
        )

    async def create_product(self, request: web.Request) -> web.StreamResponse:
        return await self._once(request, self.products, self._create_product)

    async def place_order(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._meet()
            return await self._once(request, self.orders, self._create_order)
        finally:
            self.in_flight -= 1

    async def _once(self, request: web.Request, stored: dict[str, Any], create: Any) -> web.StreamResponse:
        self.requests += 1
        if response := self._failure(request):
            return response
        body, key = json.loads(await request.read()), request.headers["Idempotency-Key"]
        if known := self.keys.get(key):
            if known[0] != body:
                return problem(
                    422, "idempotency-key-reused", "Idempotency-Key: was already used with a different request"
                )
            return web.json_response(stored[known[1]], headers={"Idempotency-Replayed": "true"})
        created = create(body)
        if isinstance(created, web.Response):
            return created
        stored[created["id"]] = created
        self.keys[key] = (body, created["id"])
        if self.failures and self.failures[0] == "lose":
            self.failures.pop(0)
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(created, status=201)

    async def _meet(self) -> None:
        if self.together:
            if self.max_in_flight >= self.together:
                self._met.set()
            async with asyncio.timeout(60):
                await self._met.wait()
            await asyncio.sleep(0.1)

    def _create_product(self, body: dict[str, Any]) -> dict[str, Any]:
        product_id = str(uuid4())
        self.stock[product_id] = body.pop("stock")
        created = {"id": product_id, **body}
        body["stock"] = self.stock[product_id]
        return created

    def _create_order(self, body: dict[str, Any]) -> Any:
        if any(self.stock[i["product_id"]] < i["quantity"] for i in body["items"]):
            return problem(409, "out-of-stock", "not enough")
        for item in body["items"]:
            self.stock[item["product_id"]] -= item["quantity"]
        return {"id": str(uuid4()), **body}


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    document = {"type": f"urn:market:problem:{kind}", "title": kind, "status": status, "detail": detail}
    return web.json_response(document, status=status, headers=headers, content_type="application/problem+json")
