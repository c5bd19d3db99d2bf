"""What hostile clients send: requests that cost a server as much as its limits allow, or more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks import http1

# A page of orders of this user is as large as the contract allows, once there are enough large orders.
USER = "hostile"
MIB = 1024 * 1024


def graphql(query: str, **more: Any) -> bytes:
    """Return a POST of the query; `more`: variables, operationName."""
    return http1.request("POST", "/graphql", json.dumps({"query": query, **more}, ensure_ascii=False).encode())


_FOUR_CONDITIONS = (
    "query ($a: Boolean!, $b: Boolean!, $c: Boolean!, $d: Boolean!) { "
    + " ".join(
        f'a{i}: orders(user: "x") {{ items {{ id @include(if: $a) items {{ quantity @skip(if: $b) product {{ '
        f"id name @include(if: $c) price @skip(if: $d) }} }} }} }}"
        for i in range(25)
    )
    + " }"
)
_WIDE = (
    "{ "
    + " ".join(f'a{i}: orders(user:"x"){{items{{items{{product{{id}}}}}}}}' for i in range(49))
    + " n%d: __typename }"
)
# Overlapping fragments: validation compares their fields with each other.
_OVERLAPS = (
    "{ "
    + " ".join(f"...f{i}" for i in range(60))
    + " } "
    + " ".join(f"fragment f{i} on Query {{ products {{ items {{ id name price }} }} }}" for i in range(60))
)


def graphql_requests(product_ids: Sequence[str] = ()) -> dict[str, list[bytes]]:
    """Return GraphQL requests by what they aim at.

    product_ids: up to 100, of products with long descriptions; by default those of the newest products
    """
    lists = f'orders(user: "{USER}", limit: 1000)'
    products = f"products(ids: {json.dumps(list(product_ids))})" if product_ids else "products(limit: 100)"
    return {
        "all orders": [graphql(f"{{ {lists} {{ items {{ id items {{ productId name quantity }} }} }} }}")],
        "joined descriptions": [graphql(f"{{ {lists} {{ items {{ items {{ product {{ id description }} }} }} }} }}")],
        "joined names": [graphql(f"{{ {lists} {{ items {{ items {{ product {{ id name }} }} }} }} }}")],
        "two large pages": [graphql(f"{{ a: {lists} {{ total }} b: {lists} {{ total }} }}")],
        "descriptions": [
            graphql("{ " + " ".join(f"a{i}: {products} {{ items {{ description }} }}" for i in range(20)) + "}")
        ],
        "aliases": [
            graphql(f"{{ {products} {{ items {{ " + " ".join(f"a{i}: description" for i in range(50)) + " } } }")
        ],
        "bodies of empty lists": [graphql("{ products(limit: 3) { total } }", variables={"a": [[]] * 200_000})],
        "bodies of texts": [graphql("{ products(limit: 3) { total } }", variables={"a": ["🜁" + "a" * 1000] * 1000})],
        "operation names": [
            graphql("{ products(limit: 3) { total } }", operationName=f"{n}" + "x" * 1_000_000) for n in range(4)
        ],
        "wide documents": [graphql(_WIDE % n) for n in range(40)],
        "conditions": [
            graphql(
                _FOUR_CONDITIONS + " " * (n // 16), variables={c: bool(n & 1 << bit) for bit, c in enumerate("abcd")}
            )
            for n in range(64)
        ],
        "overlapping fragments": [graphql(_OVERLAPS + " " * n) for n in range(40)],
        "orders in the document": [
            graphql(
                f'mutation {{ createOrder(input: {{user: "a{n}", items: ['
                + '{productId: "x", quantity: 1},' * 1400
                + "]}) { id } }"
            )
            for n in range(4)
        ],
        "the schema": [
            graphql(
                "{ __schema { types { "
                + " ".join(f"f{i}: fields {{ name description type {{ name fields {{ name }} }} }}" for i in range(12))
                + "} } }"
            )
        ],
    }


def order(product_ids: list[str], quantity: int = 1, user: str = USER, **headers: str) -> bytes:
    """Return a POST of an order with a line for each product."""
    items = [{"product_id": product_id, "quantity": quantity} for product_id in product_ids]
    return http1.request("POST", "/api/order", json.dumps({"user": user, "items": items}).encode(), **headers)


def padded(path: str, body: dict[str, Any]) -> bytes:
    """Return a POST whose body has spaces up to the limit."""
    data = json.dumps(body).encode()
    return http1.request("POST", path, data + b" " * (MIB - len(data)))


def malformed() -> list[bytes]:
    """Return requests that are not HTTP/1.1, or that servers understand differently."""
    host = b"host: localhost\r\n"
    return [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host * 2 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"transfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\n" + host + b"transfer-encoding: chunked\r\n\r\n1" + b"0" * 40 + b"\r\n",
        b"GET / HTTP/1.1\r\n"
        + host
        + b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n" + host + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    ]
