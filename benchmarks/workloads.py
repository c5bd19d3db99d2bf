"""What the generator sends: endless iterators of requests, by name."""

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
    """The workload of that name. The same parameters give the same sequence of goods."""
    return WORKLOADS[name](random.Random(params.get("seed", 1)), **{k: v for k, v in params.items() if k != "seed"})


def get(_: random.Random, path: str) -> Iterator[bytes]:
    """The same address again and again."""
    return itertools.repeat(http1.request("GET", path))


def products(rng: random.Random, ids: list[str]) -> Iterator[bytes]:
    """One product each, uniformly."""
    ready = [http1.request("GET", f"/api/product/{id}") for id in ids]
    while True:
        yield rng.choice(ready)


def _lines(rng: random.Random, ids: list[str], lines: int) -> list[tuple[str, int]]:
    return [(id, rng.randint(1, 3)) for id in rng.sample(ids, lines)]


def orders(rng: random.Random, ids: list[str], lines: int = 3, email: str = "") -> Iterator[bytes]:
    """Orders by REST. Without `email` no mail is due; with it the address says when the request was sent, in ns."""
    for n in itertools.count():
        items = [{"product_id": id, "quantity": quantity} for id, quantity in _lines(rng, ids, lines)]
        body: dict[str, Any] = {"user": f"buyer-{n % 1000}", "items": items}
        if email:
            body["email"] = f"{email}.{time.time_ns()}.{n}@example.test"
        yield http1.request("POST", "/api/order", json.dumps(body).encode())


_CREATE = """mutation Create($input: CreateOrderInput!) { createOrder(input: $input) {
  id user email items { productId name quantity unitPrice } total currency status createdAt } }"""


def graphql_orders(rng: random.Random, ids: list[str], lines: int = 3) -> Iterator[bytes]:
    """The same orders through GraphQL, all fields of the answer asked for."""
    for n in itertools.count():
        items = [{"productId": id, "quantity": quantity} for id, quantity in _lines(rng, ids, lines)]
        call = {"query": _CREATE, "variables": {"input": {"user": f"buyer-{n % 1000}", "items": items}}}
        yield http1.request("POST", "/graphql", json.dumps(call).encode())


def graphql(
    _: random.Random, query: str, variables: dict[str, Any] | None = None, path: str = "/graphql"
) -> Iterator[bytes]:
    """The same query again and again."""
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    return itertools.repeat(http1.request("POST", path, body, accept="application/json"))


def catalogue(_: random.Random, prefix: str) -> Iterator[bytes]:
    """New products, each with a key of its own, as `market import` makes them."""
    for n in itertools.count():
        body = json.dumps(product(f"{prefix}{n}")).encode()
        yield http1.request("POST", "/api/product", body, idempotency_key=f"import:{prefix}{n}")


def product(code: str) -> dict[str, Any]:
    """A product as the importer makes it of a line."""
    return {
        "name": f"WHITE HANGING HEART T-LIGHT HOLDER {code}",
        "description": f"WHITE HANGING HEART T-LIGHT HOLDER {code}. Stock code {code}.",
        "price": "2.55",
        "currency": "GBP",
        "stock": 2_000_000_000,
    }


def bodies(_: random.Random, path: str, file: str) -> Iterator[bytes]:
    """Bodies from a file, one JSON object with `body` and `key` on each line."""
    with open(file, "rb") as lines:
        for line in lines:
            one = json.loads(line)
            yield http1.request("POST", path, json.dumps(one["body"]).encode(), idempotency_key=one["key"])


_RESERVE = h2.headers("/market.inventory.v1.Inventory/Reserve")
_CHECK = h2.headers("/market.inventory.v1.Inventory/CheckAvaliable")


def reserve(rng: random.Random, ids: list[str], lines: int = 3) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Reserve, each with an id of its own."""
    from market.contracts import inventory_pb2 as pb

    while True:
        items = [pb.Item(product_id=id, quantity=quantity) for id, quantity in _lines(rng, ids, lines)]
        message = pb.ReserveRequest(reservation_id=str(uuid.uuid4()), items=items)
        yield _RESERVE, message.SerializeToString(), b"\x08\x01"


def check(rng: random.Random, ids: list[str], count: int = 100) -> Iterator[tuple[bytes, bytes, bytes]]:
    """CheckAvaliable of `count` products."""
    from market.contracts import inventory_pb2 as pb

    ready = [pb.CheckAvaliableRequest(product_ids=rng.sample(ids, count)).SerializeToString() for _ in range(64)]
    while True:
        yield _CHECK, rng.choice(ready), b"\x0a"


def reservations(rng: random.Random, ids: list[str], lines: int = 1) -> Iterator[tuple[uuid.UUID, list[Any]]]:
    """For the client that orders uses."""
    from market.orders.domain import Wanted

    while True:
        yield uuid.uuid4(), [Wanted(id, quantity) for id, quantity in _lines(rng, ids, lines)]


WORKLOADS = {
    f.__name__: f
    for f in (get, products, orders, graphql_orders, graphql, catalogue, bodies, reserve, check, reservations)
}
