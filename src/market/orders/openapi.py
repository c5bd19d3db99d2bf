"""The OpenAPI document: `python -m market.orders.openapi [ISSUER]`."""

from __future__ import annotations

import json
import sys
from typing import Any

from market.contracts import access
from market.kit.http.openapi import Operation, document, parameter
from market.kit.paging import MAX_CURSOR_LENGTH, MAX_OFFSET
from market.orders.api import CreateOrder, Page
from market.orders.desk.endpoints import MAX_PERIOD_DAYS, ShortagePage, UnfinishedPage
from market.orders.history.representation import Order

_ID = parameter("id", "path", "The order's id.", {"type": "string", "format": "uuid"})
_KEY = parameter(
    "Idempotency-Key",
    "header",
    "Repeating the request with the same key and body returns the order that the first request placed. The key belongs "
    "to the subject of the token, or to the order's `user` where sign-in is not required. Others may use the same key.",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
)

_PREFER = parameter(
    "Prefer",
    "header",
    "`return=representation` (RFC 7240): respond with 200 and the order instead of 204. Other preferences are ignored.",
    {"type": "string"},
)


def _limit(items: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    return parameter("limit", "query", f"Maximum number of {items} to return.", schema)


def _after(filters: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR_LENGTH}
    text = f"The `next` of the previous page; {filters} must be the same as for that page."
    return parameter("after", "query", text, schema)


_RETRY = {status: {"Retry-After": "Seconds to wait before retrying."} for status in (429, 503)}


_PROBLEM_MEMBERS = {
    "order_id": {"type": "string", "format": "uuid", "description": "The order that the problem is about."},
    "total": {"type": "string", "description": "The total at current prices. Present if the price changed."},
    "currency": {
        "type": "string",
        "description": "The currency of `total`. Both are absent if the products now have different currencies.",
    },
    "shortages": {
        "type": "array",
        "description": "The products with fewer units available than requested.",
        "items": {
            "type": "object",
            "required": ["product_id", "wanted", "left"],
            "properties": {
                "product_id": {"type": "string", "format": "uuid"},
                "wanted": {"type": "integer"},
                "left": {"type": "integer"},
            },
        },
    },
}


def build(issuer: str | None = None) -> dict[str, Any]:
    """Return the document as JSON values.

    issuer: the URL of the OpenID Connect issuer. None for the published document, which does not depend on an issuer.
    """
    bad = {
        413: ("The body is over 1 MiB.", None),
        415: ("The content type is not application/json.", None),
        422: (
            "A field is missing, unknown, of the wrong type or out of range; or the key was used with a different "
            "body.",
            None,
        ),
    }
    unavailable = {
        429: (
            "This caller has too many requests in progress, or sends too many per second; nothing was done. Retry "
            "after the number of seconds in Retry-After.",
            None,
        ),
        503: (
            "Temporarily unavailable. Retry after the number of seconds in Retry-After. `order_id` is present if the "
            "problem concerns an order that may be stored: read the order by this id.",
            None,
        ),
    }
    return document(
        "Market: orders",
        "Place, read and cancel orders. Errors are RFC 9457 problem documents; money is a string with as many decimals "
        "as the currency has, but at least two.",
        "http://127.0.0.1:8082",
        [
            Operation(
                "POST",
                "/api/order",
                "createOrder",
                "Place an order: reserve all items or none.",
                {
                    201: ("The confirmed order. Location is its URL.", Order),
                    200: (
                        "The order that was placed with this Idempotency-Key before (Idempotency-Replayed: true).",
                        Order,
                    ),
                    400: ("The body is not JSON.", None),
                    409: (
                        "Out of stock (`shortages`), price changed (`total`, `currency`), or order cancelled "
                        "(`order_id`).",
                        None,
                    ),
                    **bad,
                    **unavailable,
                },
                [_KEY],
                CreateOrder,
                {
                    200: {"Location": "The order's URL.", "Idempotency-Replayed": "true"},
                    201: {"Location": "The order's URL."},
                    **_RETRY,
                },
            ),
            Operation(
                "GET",
                "/api/order",
                "listOrders",
                "List a customer's orders or everybody's, newest first, without unreadable ones.",
                {
                    200: ("A page of orders.", Page),
                    422: ("A parameter is unknown or out of range.", None),
                    **unavailable,
                },
                [
                    parameter(
                        "user",
                        "query",
                        "The customer, compared exactly. Without it, everybody's orders are listed; where sign-in is "
                        "required, buyers get their own. Buyers may name only the subject of their token.",
                        {"type": "string", "minLength": 1, "maxLength": 200},
                    ),
                    parameter(
                        "limit",
                        "query",
                        "Maximum number of orders to return.",
                        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                    ),
                    parameter(
                        "offset",
                        "query",
                        "Number of orders to skip. To read more than 10000 orders, use `after`.",
                        {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0},
                    ),
                    parameter(
                        "after",
                        "query",
                        "The `next` of the previous page. The filters must be the same as for that page, and `offset` "
                        "must be absent.",
                        {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR_LENGTH},
                    ),
                    parameter(
                        "status",
                        "query",
                        "Only orders with this status. Without it, rejected orders are not listed.",
                        {"type": "string", "enum": ["pending", "confirmed", "cancelled", "rejected"]},
                    ),
                    parameter(
                        "created_from",
                        "query",
                        "Only orders that were placed at this time or later.",
                        {"type": "string", "format": "date-time"},
                    ),
                    parameter(
                        "created_to",
                        "query",
                        "Only orders that were placed before this time.",
                        {"type": "string", "format": "date-time"},
                    ),
                ],
                headers=_RETRY,
            ),
            Operation(
                "GET",
                "/api/order/{id}",
                "getOrder",
                "Get an order with any status. Newer versions may add statuses; clients must tolerate them.",
                {
                    200: ("The order.", Order),
                    404: ("There is no such order, or the caller may not see it.", None),
                    422: ("A parameter is unknown.", None),
                    **unavailable,
                },
                [_ID],
                headers=_RETRY,
            ),
            Operation(
                "DELETE",
                "/api/order/{id}",
                "cancelOrder",
                "Cancel an order; it stays readable as cancelled.",
                {
                    200: ("The same as 204, if the request has `Prefer: return=representation`. The order.", Order),
                    202: ("The order is cancelled. Its stock will be released when inventory is available.", None),
                    204: (
                        "The order is cancelled and its stock released, or the order had been rejected before.",
                        None,
                    ),
                    404: ("There is no such order, or the caller may not see it.", None),
                    422: ("A parameter is unknown.", None),
                    **unavailable,
                },
                [_ID, _PREFER],
                headers={200: {"Preference-Applied": "return=representation"}, **_RETRY},
            ),
            Operation(
                "GET",
                "/api/shortages",
                "listShortages",
                "List what could not be sold, by day (UTC) and product, the latest day first. Counts the orders that "
                "were rejected for lack of stock and are still stored.",
                {
                    200: ("A page of shortages.", ShortagePage),
                    422: ("A parameter is unknown or out of range.", None),
                    **unavailable,
                },
                [
                    parameter(
                        "from",
                        "query",
                        f"The first day. The period has 30 days by default, and at most {MAX_PERIOD_DAYS}.",
                        {"type": "string", "format": "date"},
                    ),
                    parameter("to", "query", "The last day; by default today.", {"type": "string", "format": "date"}),
                    parameter("product", "query", "Only this product.", {"type": "string", "format": "uuid"}),
                    _limit("shortages"),
                    _after("`product`, `from` and `to`"),
                ],
                headers=_RETRY,
            ),
            Operation(
                "GET",
                "/api/unfinished-orders",
                "listUnfinishedOrders",
                "List orders with work that should have been done by now: pending for too long, stock not released, "
                "events unsent or stuck. Sorted by kind. In a kind, the oldest is first, but stock releases are sorted "
                "by when they were last tried.",
                {
                    200: ("The number of unfinished orders by kind, and a page of them.", UnfinishedPage),
                    422: ("A parameter is unknown or out of range.", None),
                    **unavailable,
                },
                [
                    parameter(
                        "kind",
                        "query",
                        "Only orders of this kind. An order may be of several kinds, and is then listed several times.",
                        {"type": "string", "enum": ["pending", "release-due", "unsent", "stuck"]},
                    ),
                    _limit("unfinished orders"),
                    _after("`kind`"),
                ],
                headers=_RETRY,
            ),
            Operation(
                "POST",
                "/api/unfinished-orders/{id}/retry",
                "retryUnfinishedOrder",
                "Do at once what is due for the order: reject it if it is overdue, release its stock, publish its "
                "events, including stuck ones. Can be repeated; does nothing if nothing is due.",
                {
                    202: ("Done. Publishing has been started.", None),
                    404: ("There is no such order.", None),
                    422: ("A parameter is unknown.", None),
                    **unavailable,
                },
                [_ID],
                headers=_RETRY,
            ),
        ],
        _PROBLEM_MEMBERS,
        access=access.ORDERS,
        issuer=issuer,
    )


if __name__ == "__main__":
    print(json.dumps(build(*sys.argv[1:2]), indent=2, ensure_ascii=False))
