"""An instance of orders that requires sign-in, and callers who have signed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.issuer import Issuer

from .service import Service

Lines = Iterable[tuple[str, int]]


@dataclass
class Caller:
    """Somebody who sends each request with the same token, or without one if it is empty."""

    http: httpx.AsyncClient
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def place(self, lines: Lines, *, key: str | None = None, **fields: Any) -> httpx.Response:
        """Send POST /api/order. `lines`: (product id, quantity); `key`: the Idempotency-Key."""
        headers = self.headers | ({"Idempotency-Key": key} if key else {})
        items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]
        return await self.http.post("/api/order", json={"items": items, **fields}, headers=headers)

    async def get(self, order_id: str) -> httpx.Response:
        return await self.http.get(f"/api/order/{order_id}", headers=self.headers)

    async def list(self, **parameters: Any) -> httpx.Response:
        return await self.http.get("/api/order", params=parameters, headers=self.headers)

    async def cancel(self, order_id: str) -> httpx.Response:
        return await self.http.delete(f"/api/order/{order_id}", headers=self.headers)


@dataclass
class Shop:
    """The instance, and the issuer whose tokens it accepts."""

    service: Service
    issuer: Issuer

    @property
    def documents(self) -> Any:
        """PyMongo's asynchronous collection."""
        return self.service.documents

    def sign_in(self, subject: str, *roles: str, **claims: Any) -> Caller:
        """Return a caller with a token of its own. Without roles it is a buyer."""
        return Caller(self.service.http, self.issuer.token(subject, roles=roles, **claims))

    def anonymous(self) -> Caller:
        return Caller(self.service.http, "")
