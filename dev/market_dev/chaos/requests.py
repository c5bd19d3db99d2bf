"""What a client of the chaos test sends, by REST or by GraphQL, and what it learns from the response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from market_dev.chaos.history import Operation

CREATE_ORDER = """mutation($input: CreateOrderInput!, $key: String) {
  createOrder(input: $input, idempotencyKey: $key) { id status user }
}"""
DELETE_ORDER = "mutation($id: ID!) { deleteOrder(id: $id) { id status user } }"
READ_ORDER = "query($id: ID!) { order(id: $id) { id status user } }"
# The gateway's error codes as HTTP statuses.
STATUS_OF = {
    "OUT_OF_STOCK": 409,
    "PRICE_CHANGED": 409,
    "ORDER_CANCELLED": 409,
    "CONFLICT": 409,
    "BAD_INPUT": 422,
    "NOT_FOUND": 404,
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
}


@dataclass(frozen=True)
class Request:
    """A request. user: as in the request, "" to leave it out. items: product id -> quantity."""

    operation: Operation
    key: str = ""
    items: dict[str, int] = field(default_factory=dict)
    user: str = ""
    order_id: str = ""

    @property
    def named_user(self) -> dict[str, str]:
        return {"user": self.user} if self.user else {}


@dataclass
class Response:
    """What a client learns from a call.

    status: of HTTP, or 0 if there was no response
    shown_users: whose orders the response shows
    """

    status: int
    order_id: str = ""
    order_status: str = ""
    shown_users: list[str] = field(default_factory=list)
    detail: str = ""


async def send_rest(
    http: aiohttp.ClientSession, urls: dict[str, str], request: Request, headers: dict[str, str]
) -> Response:
    """Send the request by REST."""
    orders = f"{urls['orders']}/api/order"
    if request.operation == "browse":
        sending = http.get(f"{urls['products']}/api/product", params={"limit": "20"}, headers=headers)
    elif request.operation == "place":
        items = [{"product_id": p, "quantity": q} for p, q in request.items.items()]
        body = {**request.named_user, "items": items}
        sending = http.post(orders, json=body, headers={**headers, "Idempotency-Key": request.key})
    elif request.operation == "cancel":
        sending = http.delete(f"{orders}/{request.order_id}", headers=headers)
    elif request.operation == "list":
        sending = http.get(orders, params={**request.named_user, "limit": "20"}, headers=headers)
    else:
        sending = http.get(f"{orders}/{request.order_id}", headers=headers)
    async with sending as response:
        data = await response.read()
    content: Any = msgspec.json.decode(data) if data else {}
    if response.status >= 400:
        return Response(response.status, content.get("order_id", ""), detail=content.get("detail", "")[:200])
    shown = content["items"] if request.operation == "list" else [content]
    users = sorted({order["user"] for order in shown if "user" in order})
    return Response(response.status, content.get("id", ""), content.get("status", ""), users)


async def send_graphql(
    http: aiohttp.ClientSession, urls: dict[str, str], request: Request, headers: dict[str, str]
) -> Response:
    """Send the request by GraphQL: `place`, `cancel` or `read`."""
    variables: dict[str, Any]
    if request.operation == "place":
        lines = [{"productId": p, "quantity": q} for p, q in request.items.items()]
        query, field_name = CREATE_ORDER, "createOrder"
        variables = {"input": {**request.named_user, "items": lines}, "key": request.key}
    else:
        is_cancel = request.operation == "cancel"
        query, field_name = (DELETE_ORDER, "deleteOrder") if is_cancel else (READ_ORDER, "order")
        variables = {"id": request.order_id}
    body = {"query": query, "variables": variables}
    async with http.post(f"{urls['graphql']}/graphql", json=body, headers=headers) as response:
        content: Any = msgspec.json.decode(await response.read())
        status = response.status
    if status >= 400 and not content.get("errors"):
        # A token that is refused, for example: a problem, as by REST.
        return Response(status, detail=content.get("detail", "")[:200])
    if errors := content.get("errors"):
        extensions = errors[0].get("extensions", {})
        return Response(
            STATUS_OF.get(extensions.get("code", ""), 503),
            extensions.get("orderId", ""),
            detail=errors[0]["message"][:200],
        )
    order = content["data"][field_name]
    if order is None:
        return Response(404)
    return Response(200, order["id"], order["status"], [order["user"]])
