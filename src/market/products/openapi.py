"""`python -m market.products.openapi` prints the OpenAPI document; openapi/products.json is its copy."""

from __future__ import annotations

import json
from typing import Any, get_args

from market.contracts import access
from market.kit.http.openapi import Operation, document, parameter
from market.kit.paging import MAX_CURSOR_LENGTH, MAX_OFFSET
from market.products.api import ChangedProduct, NewProduct, ProductPage
from market.products.domain import DEFAULT_SORT, MAX_IDS, Change, Product, Sort

_UUID = {"type": "string", "format": "uuid"}
_ID = parameter("id", "path", "the product's id", _UUID)
_AVAILABILITY = parameter(
    "availability", "query", "if false, `available` is not looked up and is null", {"type": "boolean", "default": True}
)
_STOCK = parameter(
    "stock",
    "query",
    "if true, products have `stock`: the units that are free to sell, or null if inventory does not respond. "
    "Where sign-in is required, only for merchants",
    {"type": "boolean", "default": False},
)
_ETAG = {"ETag": "the version of the product, and the state of `available` and `stock` where the body has them"}
_IF_MATCH = parameter(
    "If-Match",
    "header",
    "entity tags: go on only if the product has one of these versions, whatever `available` was then",
    {"type": "string"},
)
_IF_NONE_MATCH = parameter(
    "If-None-Match", "header", "only `*`, which refuses the change of a product that exists", {"type": "string"}
)
_MODIFIED: dict[int, tuple[str, Any]] = {
    412: ("the product was modified by another request, and has `version`; or it exists", None)
}

# Responses of every operation: an invalid body or parameter, too many requests, an unavailable database.
_ANY: dict[int, tuple[str, Any]] = {
    413: ("the body is too large", None),
    422: ("a field or parameter is missing, unknown, of the wrong type or out of range; `errors` names it", None),
    429: ("too many requests of this caller are in progress; nothing was done", None),
    503: ("the service is temporarily unavailable; retry after `Retry-After` seconds", None),
}
_RETRY = {status: {"Retry-After": "seconds until a retry"} for status in (429, 503)}
_BODY: dict[int, tuple[str, Any]] = {
    400: ("the body is not JSON", None),
    415: ("the body is not application/json", None),
}
# Everybody may read products, but not their stock.
_STOCK_REFUSED: dict[int, tuple[str, Any]] = {
    401: ("the token is not valid, or there is none with `stock=true`", None),
    403: ("`stock=true` is for merchants", None),
}
_ABSENT: dict[int, tuple[str, Any]] = {404: ("there is no such product", None)}

# The language of search/language.py.
_SEARCH = (
    "a search for words in name and description. A product is found if it has all words of the search, or words with "
    "the same English or Russian stem. Case, accents and punctuation make no difference.\n\n"
    "- `white lantern`: both words, in any order\n"
    '- `"white lantern"`: one word after the other, both in the name or both in the description\n'
    '- `lantern -white`, `lantern -"white metal"`: without this word, or this phrase\n'
    "- `white OR black lantern`: one of the two words next to OR, and the other word\n"
    "- `KL-2024`: the words that punctuation joins, one after the other, or in one word: `KL2024`\n"
    "- `white lan`: the last word may be the beginning of a longer one, from two letters or three digits on\n\n"
    "What means nothing where it stands, such as an unpaired quote or a dash between spaces, separates words. A search "
    "that is the name of a product finds it. Words such as `of` are not required beside others. There may be 100 words."
    "\n\n"
    "Without `sort` the most relevant products come first: those with all words in the name before those with some in "
    "the description, whole words before beginnings, short names before long ones, then the newest. If nothing is "
    "found, the page has up to 100 products with similar words, and `suggested` is true"
)

OPERATIONS = [
    Operation(
        "GET",
        "/api/product/{id}",
        "getProduct",
        "Get a product",
        {
            200: ("the product", Product),
            304: ("If-None-Match has the current tag", None),
            **_STOCK_REFUSED,
            **_ABSENT,
            412: ("the product has `version`, which is not one that If-Match requires", None),
            **_ANY,
        },
        [
            _ID,
            _AVAILABILITY,
            _STOCK,
            _IF_MATCH,
            parameter("If-None-Match", "header", "entity tags of the bodies that the client has", {"type": "string"}),
        ],
        headers={200: _ETAG, 304: _ETAG, **_RETRY},
    ),
    Operation(
        "GET",
        "/api/product",
        "listProducts",
        "List products: the newest first, or the most relevant to `q`",
        {200: ("a page of products", ProductPage), **_STOCK_REFUSED, **_ANY},
        [
            parameter(
                "limit",
                "query",
                "maximum number of products in the page; has no effect with `ids`",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            ),
            parameter(
                "offset",
                "query",
                "number of products to skip; use `after` to read further",
                {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0},
            ),
            parameter(
                "after",
                "query",
                "the `next` of a page, for the page that follows it; with the same q and sort, and without offset. "
                "A walk to the end returns once each product that exists all the time and whose place does not change",
                {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR_LENGTH},
            ),
            parameter(
                "q",
                "query",
                _SEARCH,
                {"type": "string", "minLength": 1, "maxLength": 200},
            ),
            parameter(
                "ids",
                "query",
                f"1 to {MAX_IDS} ids, separated by commas or in repeated parameters: these products in this order, "
                "each once, without unknown ones. Cannot be combined with q, another sort, offset and after.",
                {"type": "array", "items": _UUID, "minItems": 1, "maxItems": MAX_IDS},
            )
            | {"style": "form", "explode": False},
            parameter(
                "sort",
                "query",
                f"the order; - means descending. Without it: {DEFAULT_SORT}, or with `q` by relevance",
                {"type": "string", "enum": list(get_args(Sort))},
            ),
            _AVAILABILITY,
            _STOCK,
        ],
        headers=_RETRY,
    ),
    Operation(
        "POST",
        "/api/product",
        "createProduct",
        "Create a product, and set its stock",
        {
            200: ("the Idempotency-Key has been used before with the same body: the product as it is now", Product),
            201: ("the new product", Product),
            **_BODY,
            **_ANY,
            422: ("invalid input, or an Idempotency-Key that has been used with another body", None),
        },
        [
            parameter(
                "Idempotency-Key",
                "header",
                "requests of the same caller with the same key create one product",
                {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            )
        ],
        NewProduct,
        {
            200: {**_ETAG, "Location": "the path of the product", "Idempotency-Replayed": "true"},
            201: {**_ETAG, "Location": "the path of the product"},
            **_RETRY,
        },
    ),
    Operation(
        "PUT",
        "/api/product",
        "replaceProduct",
        "Replace a product; with `stock`, set its stock too, or with `delivery`, add units to it. Of concurrent "
        "requests, the one with the highest version in its ETag has both its fields and its stock in force",
        {
            200: ("the product after the change", Product),
            **_BODY,
            **_ABSENT,
            409: (
                "another request has changed the stock meanwhile: the delivery would make it too large, or its id has "
                "been used for another quantity. `fields` is `replaced`, `stock` is `unchanged`, and `etag` is the "
                "product's entity tag since",
                None,
            ),
            412: (
                "the product was modified by another request, and has `version`; neither its fields nor its stock were "
                "changed",
                None,
            ),
            **_ANY,
            503: (
                "the service is temporarily unavailable; retry after `Retry-After` seconds. If the body has a stock or "
                "a delivery, `fields` and `stock` are each `replaced`, `unchanged` or `unknown`, and `etag` is the "
                "product's entity tag since, if it is known",
                None,
            ),
        },
        [
            _IF_MATCH,
            _IF_NONE_MATCH,
        ],
        ChangedProduct,
        {
            200: _ETAG,
            409: {"ETag": "the product's version since"},
            **_RETRY,
            503: {**_RETRY[503], "ETag": "the product's version since, if it is known"},
        },
    ),
    Operation(
        "DELETE",
        "/api/product/{id}",
        "deleteProduct",
        "Delete a product; its stock stays for existing reservations",
        {204: ("the product has been deleted", None), **_ABSENT, **_MODIFIED, **_ANY},
        [_ID, _IF_MATCH, _IF_NONE_MATCH],
        headers=_RETRY,
    ),
]


_CHANGE = {"type": "string", "enum": list(get_args(Change))}


def products() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return document(
        "Market: products",
        "The products of the shop: names, prices, and whether they can be sold now.",
        "http://127.0.0.1:8081",
        OPERATIONS,
        {
            "fields": _CHANGE
            | {"description": "of a PUT with a stock or a delivery: what has happened to the product's fields"},
            "stock": _CHANGE
            | {"description": "of a PUT with a stock or a delivery: what has happened to the product's stock"},
            "etag": {"type": "string", "description": "the entity tag of the product's version since"},
            "version": {"type": "integer", "description": "with status 412: the version that the product has"},
        },
        access=access.PRODUCTS,
    )


if __name__ == "__main__":
    print(json.dumps(products(), indent=2))
