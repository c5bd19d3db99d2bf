"""The calls of REST and of the admin ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.authorization import effects
from tests.authorization.callers import OWNER
from tests.authorization.calls import Call, Outcome, Reply, Send, Target, http_reply
from tests.authorization.operations import SERVICES
from tests.authorization.shop import Shop, bearer

_SERVICES = {
    "/api/product": "products",
    "/api/order": "orders",
    "/api/shortages": "orders",
    "/api/unfinished-orders": "orders",
    "/api/dead-letters": "notifications",
}


def _rest(method: str, path: str, body: Callable[[Target], Any] | None = None) -> Send:
    """Return a request; `{product}`, `{order}` and `{letter}` in the path are the target's ids."""
    service = next(name for prefix, name in _SERVICES.items() if path.startswith(prefix))

    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        url = path.format(product=target.product_id, order=target.order_id, letter=target.dead_letter_id)
        return http_reply(await shop.rest(service, method, url, token, json=body(target) if body else None))

    return send


def new_product(target: Target) -> dict[str, Any]:
    # The description tells whose it is.
    return {
        "name": "Made",
        "description": target.product["name"],
        "price": "1.00",
        "currency": "GBP",
        "stock": effects.NEW_STOCK,
    }


def changed_product(target: Target) -> dict[str, Any]:
    return {**target.product, "price": effects.CHANGED_PRICE, "stock": effects.CHANGED_STOCK}


def _new_order(target: Target) -> dict[str, Any]:
    return {"user": OWNER, "items": [{"product_id": target.product_id, "quantity": 3}]}


def _admin(service: str, path: str) -> Send:
    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        return http_reply(await shop.http.get(shop.admin[service] + path, headers=bearer(token)))

    return send


CALLS: dict[str, Call] = {
    "products: GET /api/product/{id}": Call(_rest("GET", "/api/product/{product}"), effects.shows_product),
    "products: GET /api/product/{id}?stock=true": Call(
        _rest("GET", "/api/product/{product}?stock=true"), effects.shows_stock
    ),
    "products: GET /api/product": Call(_rest("GET", "/api/product?ids={product}"), effects.shows_products),
    "products: GET /api/product?stock=true": Call(
        _rest("GET", "/api/product?ids={product}&stock=true"), effects.shows_stocks
    ),
    "products: POST /api/product": Call(
        _rest("POST", "/api/product", new_product), effects.product_is_created, changes=True
    ),
    "products: PUT /api/product": Call(
        _rest("PUT", "/api/product", changed_product), effects.product_is_changed, changes=True
    ),
    "products: DELETE /api/product/{id}": Call(
        _rest("DELETE", "/api/product/{product}"), effects.product_is_deleted, changes=True
    ),
    "orders: POST /api/order": Call(_rest("POST", "/api/order", _new_order), effects.order_is_placed, changes=True),
    "orders: GET /api/order/{id}": Call(
        _rest("GET", "/api/order/{order}"), effects.shows_order, other=Outcome.NOT_FOUND
    ),
    "orders: GET /api/order": Call(_rest("GET", f"/api/order?user={OWNER}"), effects.shows_orders),
    "orders: DELETE /api/order/{id}": Call(
        _rest("DELETE", "/api/order/{order}"), effects.order_is_cancelled, changes=True, other=Outcome.NOT_FOUND
    ),
    "notifications: GET /api/dead-letters": Call(_rest("GET", "/api/dead-letters"), effects.shows_dead_letters),
    "notifications: POST /api/dead-letters/{id}/replay": Call(
        _rest("POST", "/api/dead-letters/{letter}/replay"), effects.dead_letter_is_mailed, changes=True
    ),
    "notifications: POST /api/dead-letters/{id}/drop": Call(
        _rest("POST", "/api/dead-letters/{letter}/drop"), effects.dead_letter_is_dropped, changes=True
    ),
    "orders: GET /api/shortages": Call(_rest("GET", "/api/shortages"), effects.is_page),
    "orders: GET /api/unfinished-orders": Call(
        _rest("GET", "/api/unfinished-orders"), effects.shows_all_kinds_of_unfinished_orders
    ),
    "orders: POST /api/unfinished-orders/{id}/retry": Call(
        _rest("POST", "/api/unfinished-orders/{order}/retry"), effects.order_stays_confirmed
    ),
    **{
        f"admin of {service}: GET {path}": Call(_admin(service, path), effects.is_not_empty, reads_token=False)
        for service in SERVICES
        for path in ("/healthz", "/readyz", "/metrics")
    },
}
