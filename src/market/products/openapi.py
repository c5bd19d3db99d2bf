"""`python -m market.products.openapi` prints the OpenAPI document; it is kept as openapi/products.json."""

from __future__ import annotations

import json
from typing import Any, get_args

from market.kit.http.openapi import Operation, document, parameter
from market.products.api import ChangedProduct, NewProduct, ProductPage
from market.products.domain import MAX_IDS, Product, Sort

_UUID = {"type": "string", "format": "uuid"}
_ID = parameter("id", "path", "the product's id", _UUID)
_AVAILABILITY = parameter(
    "availability", "query", "false: `available` is not looked up, and null", {"type": "boolean", "default": True}
)
_ETAG = {"ETag": "the product's version; `available` has no part in it"}

# What any call may get: a body or a parameter that is none, too many calls, a database that is away.
_ANY: dict[int, tuple[str, Any]] = {
    413: ("the body is larger than the service takes", None),
    422: ("a field or parameter is missing, unknown, of the wrong type or out of bounds: `errors` names it", None),
    503: ("it could not be decided now: ask again after `Retry-After` seconds", None),
}
_RETRY = {503: {"Retry-After": "seconds"}}
_BODY: dict[int, tuple[str, Any]] = {
    400: ("the body is not JSON", None),
    415: ("the body is not application/json", None),
}
_ABSENT: dict[int, tuple[str, Any]] = {404: ("there is no such product", None)}

OPERATIONS = [
    Operation(
        "GET",
        "/api/product/{id}",
        "getProduct",
        "One product",
        {200: ("the product", Product), 304: ("it is still what If-None-Match names", None), **_ABSENT, **_ANY},
        [
            _ID,
            _AVAILABILITY,
            parameter("If-None-Match", "header", "entity tags that the caller holds", {"type": "string"}),
        ],
        headers={200: _ETAG, 304: _ETAG, **_RETRY},
    ),
    Operation(
        "GET",
        "/api/product",
        "listProducts",
        "A page of products, newest first",
        {200: ("the page", ProductPage), **_ANY},
        [
            parameter(
                "limit",
                "query",
                "products in the page; does not apply to `ids`",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            ),
            parameter(
                "offset",
                "query",
                "products to pass over",
                {"type": "integer", "minimum": 0, "maximum": 2_147_483_647, "default": 0},
            ),
            parameter(
                "q",
                "query",
                'words in name and description; "a phrase", or, -without',
                {"type": "string", "minLength": 1, "maxLength": 200},
            ),
            parameter(
                "ids",
                "query",
                f"1 to {MAX_IDS} ids, separated by commas: these products in this order, each once, unknown ones left out. "
                "Does not go together with q, sort and offset.",
                {"type": "string", "minLength": 36},
            ),
            parameter(
                "sort",
                "query",
                "the order; - is descending",
                {"type": "string", "enum": list(get_args(Sort)), "default": "-created_at"},
            ),
            _AVAILABILITY,
        ],
        headers=_RETRY,
    ),
    Operation(
        "POST",
        "/api/product",
        "createProduct",
        "A new product, and its stock",
        {
            200: ("a repeat with the same Idempotency-Key: the product as it is now", Product),
            201: ("the new product", Product),
            **_BODY,
            **_ANY,
            422: ("bad input, or an Idempotency-Key that was used with another body", None),
        },
        [
            parameter(
                "Idempotency-Key",
                "header",
                "the same key makes one product, however often it is sent",
                {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            )
        ],
        NewProduct,
        {
            200: {**_ETAG, "Location": "its address", "Idempotency-Replayed": "true"},
            201: {**_ETAG, "Location": "its address"},
            **_RETRY,
        },
    ),
    Operation(
        "PUT",
        "/api/product",
        "replaceProduct",
        "Changes a product; with `stock`, its stock too",
        {200: ("the product after the change", Product), **_BODY, **_ABSENT, 412: ("someone was faster", None), **_ANY},
        [parameter("If-Match", "header", "change it only in one of these versions", {"type": "string"})],
        ChangedProduct,
        {200: _ETAG, **_RETRY},
    ),
    Operation(
        "DELETE",
        "/api/product/{id}",
        "deleteProduct",
        "Removes a product; its stock stays for open reservations",
        {204: ("it is gone", None), **_ABSENT, **_ANY},
        [_ID],
        headers=_RETRY,
    ),
]


def products() -> dict[str, Any]:
    return document(
        "Market: products", "Products of the shop: names, prices, and whether they can be sold now.", OPERATIONS
    )


if __name__ == "__main__":
    print(json.dumps(products(), indent=2))
