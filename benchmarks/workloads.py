"""What the load generator sends: endless iterators of requests, by name."""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

from benchmarks import h2, http1


def make(name: str, params: dict[str, Any]) -> Iterator[Any]:
    """Return the requests of that workload. The same parameters give the same sequence of products."""
    return WORKLOADS[name](random.Random(params.get("seed", 1)), **{k: v for k, v in params.items() if k != "seed"})


def get(_: random.Random, path: str) -> Iterator[bytes]:
    """GET the same path repeatedly."""
    return itertools.repeat(http1.request("GET", path))


def get_any(rng: random.Random, paths: list[str]) -> Iterator[bytes]:
    """GET one of the paths each, uniformly distributed."""
    requests = [http1.request("GET", path) for path in paths]
    while True:
        yield rng.choice(requests)


def products(rng: random.Random, ids: list[str]) -> Iterator[bytes]:
    """GET one product each, uniformly distributed."""
    requests = [http1.request("GET", f"/api/product/{product_id}") for product_id in ids]
    while True:
        yield rng.choice(requests)


def _lines(rng: random.Random, ids: list[str], lines: int) -> list[tuple[str, int]]:
    return [(product_id, rng.randint(1, 3)) for product_id in rng.sample(ids, lines)]


def large_orders(
    rng: random.Random, ids: list[str], addresses: list[str], lines: int = 1000, path: str = "/api/order"
) -> Iterator[bytes]:
    """POST the same few large orders repeatedly, by REST or GraphQL, as a proxy forwards them from these addresses."""
    make = _graphql_order if path == "/graphql" else _order
    bodies = [json.dumps(make(n, _lines(rng, ids, lines))).encode() for n in range(16)]
    for address, body in zip(itertools.cycle(addresses), itertools.cycle(bodies), strict=False):
        yield http1.request("POST", path, body, x_forwarded_for=address)


def _order(n: int, lines: list[tuple[str, int]]) -> dict[str, Any]:
    items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]
    return {"user": f"buyer-{n % 1000}", "items": items}


def _signed_in(tokens: list[str]) -> Iterator[dict[str, str]]:
    """Return the headers of callers that take turns, endlessly; empty ones if there are no tokens."""
    return itertools.cycle([{"authorization": f"Bearer {token}"} for token in tokens] or [{}])


def replaced_products(rng: random.Random, ids: list[str], tokens: list[str] | None = None) -> Iterator[bytes]:
    """PUT products, whose stock stays as it is. tokens: of the callers."""
    for n, headers in enumerate(_signed_in(tokens or [])):
        body = product(f"replaced {n}") | {"id": rng.choice(ids), "image_url": None}
        del body["stock"]
        yield http1.request("PUT", "/api/product", json.dumps(body).encode(), **headers)


def orders(
    rng: random.Random,
    ids: list[str],
    lines: int = 3,
    email: str = "",
    domain: str = "example.test",
    tokens: list[str] | None = None,
) -> Iterator[bytes]:
    """POST orders by REST.

    Without `email` they have no mail; with it each gets an address in the domain that begins with it and contains the
    time of the request in ns. tokens: of the callers, who buy for themselves.
    """
    for n, headers in enumerate(_signed_in(tokens or [])):
        body = _order(n, _lines(rng, ids, lines))
        if tokens:
            del body["user"]
        if email:
            body["email"] = f"{email}.{time.time_ns()}.{n}@{domain}"
        yield http1.request("POST", "/api/order", json.dumps(body).encode(), **headers)


_CREATE_ORDER = """mutation Create($input: CreateOrderInput!) { createOrder(input: $input) {
  id user email items { productId name quantity unitPrice } total currency status createdAt } }"""


def _graphql_order(n: int, lines: list[tuple[str, int]]) -> dict[str, Any]:
    items = [{"productId": product_id, "quantity": quantity} for product_id, quantity in lines]
    return {"query": _CREATE_ORDER, "variables": {"input": {"user": f"buyer-{n % 1000}", "items": items}}}


def graphql_orders(rng: random.Random, ids: list[str], lines: int = 3) -> Iterator[bytes]:
    """Create the same orders by GraphQL, selecting all fields."""
    for n in itertools.count():
        call = _graphql_order(n, _lines(rng, ids, lines))
        yield http1.request("POST", "/graphql", json.dumps(call).encode())


def graphql(
    _: random.Random,
    query: str,
    variables: dict[str, Any] | None = None,
    path: str = "/graphql",
    tokens: list[str] | None = None,
) -> Iterator[bytes]:
    """POST the same query repeatedly. tokens: of the callers."""
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    callers = itertools.islice(_signed_in(tokens or []), max(1, len(tokens or [])))
    requests = [http1.request("POST", path, body, accept="application/json", **headers) for headers in callers]
    return itertools.cycle(requests)


def catalogue(_: random.Random, prefix: str) -> Iterator[bytes]:
    """POST new products, each with its own key, as `market import` does."""
    for n in itertools.count():
        body = json.dumps(product(f"{prefix}{n}")).encode()
        yield http1.request("POST", "/api/product", body, idempotency_key=f"import:{prefix}{n}")


def product(code: str) -> dict[str, Any]:
    """Return a product as `market import` makes it of a line."""
    return {
        "name": f"WHITE HANGING HEART T-LIGHT HOLDER {code}",
        "description": f"WHITE HANGING HEART T-LIGHT HOLDER {code}. Stock code {code}.",
        "price": "2.55",
        "currency": "GBP",
        "stock": 2_000_000_000,
    }


def bodies(_: random.Random, path: str, file: str) -> Iterator[bytes]:
    """POST bodies from a file, one JSON object with `body` and `key` per line."""
    with open(file, "rb") as lines:
        for line in lines:
            entry = json.loads(line)
            yield http1.request("POST", path, json.dumps(entry["body"]).encode(), idempotency_key=entry["key"])


_RESERVE = h2.headers("/market.inventory.v1.Inventory/Reserve")
_CHECK = h2.headers("/market.inventory.v1.Inventory/CheckAvaliable")


def reserve(rng: random.Random, ids: list[str], lines: int = 3) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Call Reserve, each with its own id."""
    from market.contracts import inventory_pb2 as pb

    while True:
        items = [pb.Item(product_id=product_id, quantity=quantity) for product_id, quantity in _lines(rng, ids, lines)]
        message = pb.ReserveRequest(reservation_id=str(uuid.uuid4()), items=items)
        yield _RESERVE, message.SerializeToString(), b"\x08\x01"


def check(rng: random.Random, ids: list[str], count: int = 100) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Call CheckAvaliable for `count` products."""
    from market.contracts import inventory_pb2 as pb

    messages = [pb.CheckAvaliableRequest(product_ids=rng.sample(ids, count)).SerializeToString() for _ in range(64)]
    while True:
        yield _CHECK, rng.choice(messages), b"\x0a"


def reservations(rng: random.Random, ids: list[str], lines: int = 1) -> Iterator[tuple[uuid.UUID, list[Any]]]:
    """Arguments for the client that orders uses."""
    from market.orders.domain import RequestedLine

    while True:
        yield uuid.uuid4(), [RequestedLine(product_id, quantity) for product_id, quantity in _lines(rng, ids, lines)]


WORKLOADS = {
    f.__name__: f
    for f in (
        get,
        get_any,
        products,
        replaced_products,
        orders,
        large_orders,
        graphql_orders,
        graphql,
        catalogue,
        bodies,
        reserve,
        check,
        reservations,
    )
}
