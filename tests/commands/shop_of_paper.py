"""A shop in memory that keeps the contract of POST /api/product and POST /api/order, and can be told to fail."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiohttp import web


class PaperShop:
    def __init__(self) -> None:
        self.products: dict[str, dict[str, Any]] = {}
        self.stock: dict[str, int] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, tuple[Any, str]] = {}
        self.requests = 0
        self.under_way = 0
        self.most_under_way = 0
        # Answers to give instead of the right one, first to last: a status, "drop" (close without an answer), or
        # "lose" (do it, and close without an answer).
        self.trouble: list[int | str] = []
        self.retry_after = "0"
        # Each order waits until so many have been under way at once, and a little longer.
        self.together = 0
        self._met = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**20)
        app.router.add_get("/api/product", self.list)
        app.router.add_post("/api/product", self.make)
        app.router.add_post("/api/order", self.order)
        return app

    def amiss(self, request: web.Request) -> web.StreamResponse | None:
        if not self.trouble or self.trouble[0] == "lose":
            return None
        trouble = self.trouble.pop(0)
        if trouble == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        assert isinstance(trouble, int)
        return problem(trouble, "unavailable", "could not be decided now", {"Retry-After": self.retry_after})

    async def list(self, request: web.Request) -> web.StreamResponse:
        words = request.query.get("q", "").lower()
        items = [p for p in self.products.values() if words in p["description"].lower()]
        return web.json_response(
            {"items": items[: int(request.query["limit"])], "total": len(items), "limit": 1, "offset": 0}
        )

    async def make(self, request: web.Request) -> web.StreamResponse:
        return await self._once(request, self.products, self._make)

    async def order(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._meet()
            return await self._once(request, self.orders, self._order)
        finally:
            self.under_way -= 1

    async def _once(self, request: web.Request, kept: dict[str, Any], make: Any) -> web.StreamResponse:
        self.requests += 1
        if answer := self.amiss(request):
            return answer
        body, key = json.loads(await request.read()), request.headers["Idempotency-Key"]
        if known := self.keys.get(key):
            if known[0] != body:
                return problem(422, "idempotency-key-reused", "Idempotency-Key: was used before with another request")
            return web.json_response(kept[known[1]], headers={"Idempotency-Replayed": "true"})
        made = make(body)
        if isinstance(made, web.Response):
            return made
        kept[made["id"]] = made
        self.keys[key] = (body, made["id"])
        if self.trouble and self.trouble[0] == "lose":
            self.trouble.pop(0)
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(made, status=201)

    async def _meet(self) -> None:
        if self.together:
            if self.most_under_way >= self.together:
                self._met.set()
            async with asyncio.timeout(60):
                await self._met.wait()
            await asyncio.sleep(0.1)

    def _make(self, body: dict[str, Any]) -> dict[str, Any]:
        id = str(uuid4())
        self.stock[id] = body.pop("stock")
        made = {"id": id, **body}
        body["stock"] = self.stock[id]
        return made

    def _order(self, body: dict[str, Any]) -> Any:
        if any(self.stock[i["product_id"]] < i["quantity"] for i in body["items"]):
            return problem(409, "out-of-stock", "not enough")
        for item in body["items"]:
            self.stock[item["product_id"]] -= item["quantity"]
        return {"id": str(uuid4()), **body}


@dataclass
class Running:
    shop: PaperShop
    url: str


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    document = {"type": f"urn:market:problem:{kind}", "title": kind, "status": status, "detail": detail}
    return web.json_response(document, status=status, headers=headers, content_type="application/problem+json")
