"""The OpenAPI document: `python -m market.orders.openapi`."""

from __future__ import annotations

import json
from typing import Any

from market.contracts import events
from market.kit.http.openapi import Operation, document, parameter
from market.orders.api import CreateOrder, Page

_ID = parameter("id", "path", "The order's id.", {"type": "string", "format": "uuid"})
_KEY = parameter(
    "Idempotency-Key",
    "header",
    "A repeat with the same key and body answers the order that the first made.",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
)

_RETRY = {503: {"Retry-After": "Seconds."}}


def build() -> dict[str, Any]:
    """The document, as JSON values."""
    bad = {
        413: ("The body is over 1 MiB.", None),
        415: ("The content type is not application/json.", None),
        422: (
            "A field is missing, unknown, of the wrong type or out of bounds; or the key was used with another body.",
            None,
        ),
    }
    unavailable = {
        503: (
            "It could not be decided now; `order_id` names the order where one was minted. Retry-After says when to ask.",
            None,
        )
    }
    return document(
        "Market: orders",
        "Placing, reading and cancelling orders. Problems are RFC 9457; money is text with two places.",
        [
            Operation(
                "POST",
                "/api/order",
                "createOrder",
                "Places an order: takes all goods, or none.",
                {
                    201: ("Confirmed; Location names it.", events.Order),
                    200: ("The order that the Idempotency-Key made before (Idempotency-Replayed: true).", events.Order),
                    400: ("The body is not JSON.", None),
                    409: ("Out of stock (`shortages`), price changed (`total`), or cancelled meanwhile.", None),
                    **bad,
                    **unavailable,
                },
                [_KEY],
                CreateOrder,
                {
                    200: {"Location": "Its address.", "Idempotency-Replayed": "true"},
                    201: {"Location": "Its address."},
                    **_RETRY,
                },
            ),
            Operation(
                "GET",
                "/api/order",
                "listOrders",
                "A user's orders, newest first; rejected ones are left out.",
                {
                    200: ("A page.", Page),
                    422: ("A parameter is missing, unknown or out of bounds.", None),
                    **unavailable,
                },
                [
                    parameter(
                        "user",
                        "query",
                        "Compared exactly.",
                        {"type": "string", "minLength": 1, "maxLength": 200},
                        required=True,
                    ),
                    parameter(
                        "limit",
                        "query",
                        "Orders on the page.",
                        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                    ),
                    parameter(
                        "offset",
                        "query",
                        "Orders to leave out.",
                        {"type": "integer", "minimum": 0, "maximum": 1_000_000_000, "default": 0},
                    ),
                    parameter(
                        "status",
                        "query",
                        "Only those.",
                        {"type": "string", "enum": ["pending", "confirmed", "cancelled"]},
                    ),
                ],
                headers=_RETRY,
            ),
            Operation(
                "GET",
                "/api/order/{id}",
                "getOrder",
                "One order, whatever its status.",
                {
                    200: ("The order.", events.Order),
                    404: ("There is none.", None),
                    422: ("A parameter that is not known.", None),
                    **unavailable,
                },
                [_ID],
                headers=_RETRY,
            ),
            Operation(
                "DELETE",
                "/api/order/{id}",
                "cancelOrder",
                "Cancels an order; it is kept, as cancelled.",
                {
                    202: ("Cancelled; inventory did not answer, the goods follow.", None),
                    204: ("Cancelled, and the goods are back; a rejected order stays as it is.", None),
                    404: ("There is none.", None),
                    422: ("A parameter that is not known.", None),
                    **unavailable,
                },
                [_ID],
                headers=_RETRY,
            ),
        ],
    )


if __name__ == "__main__":
    print(json.dumps(build(), indent=2, ensure_ascii=False))
