"""The latency of each call of the shop, made alone: it starts when what the previous call left to do is done.

Reads a JSON object (`Spec`) from stdin; prints begin, end and the result, as the generator does.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
import uuid
from typing import Any

import msgspec

from benchmarks.measurements import Latency, percentiles
from benchmarks.workloads import product

# The calls, as the report names them.
CALLS = ("POST", "repeated POST", "GET", "list", "DELETE", "second DELETE", "PUT product", "PUT product with stock")

_ORDER = "id user items { productId name quantity unitPrice } total currency status createdAt"
_CREATE = (
    "mutation ($input: CreateOrderInput!, $key: String) { "
    f"createOrder(input: $input, idempotencyKey: $key) {{ {_ORDER} }} }}"
)
_GET = f"query ($id: ID!) {{ order(id: $id) {{ {_ORDER} }} }}"
_LIST = f"query ($user: String) {{ orders(user: $user) {{ items {{ {_ORDER} }} total }} }}"
_DELETE = "mutation ($id: ID!) { deleteOrder(id: $id) { id status } }"
_UPDATE = "mutation ($input: UpdateProductInput!) { updateProduct(input: $input) { id name price available } }"


class Spec(msgspec.Struct, kw_only=True):
    """What to call, and for how long.

    ports: of products, orders and graphql
    pause_seconds: before each call, so that events are published and the outbox is empty
    """

    ports: dict[str, int]
    product_ids: list[str]
    lines: int = 3
    seconds: float
    warmup: float
    pause_seconds: float = 0.02


class Result(msgspec.Struct):
    """The latency of each call, by "REST" or "GraphQL" and the call's name. `succeeded`: how many calls were made."""

    calls: dict[str, Latency]
    succeeded: int


class _Caller:
    """Makes the calls of one order after another on kept-alive connections.

    Each PUT has texts of its own: replacing a product with itself would not change the indexes of words.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._rng = random.Random()
        self._connections = {name: http.client.HTTPConnection("127.0.0.1", port) for name, port in spec.ports.items()}
        self.seconds: dict[str, list[float]] = {}

    def _call(self, name: str, service: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Make the call, record its latency and return the JSON of the response. Raises RuntimeError if it failed."""
        time.sleep(self._spec.pause_seconds)
        content = None if body is None else json.dumps(body).encode()
        named = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection = self._connections[service]
        started = time.perf_counter()
        connection.request(method, path, content, named)
        response = connection.getresponse()
        received = response.read()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        result = json.loads(received) if received else None
        if response.status >= 300 or (isinstance(result, dict) and "errors" in result):
            raise RuntimeError(f"{name}: {response.status} {received[:500]!r}")
        return result

    def _query(self, name: str, query: str, **variables: Any) -> Any:
        response = self._call(name, "graphql", "POST", "/graphql", {"query": query, "variables": variables})
        (result,) = response["data"].values()
        return result

    def by_rest(self) -> None:
        """Make every call once."""
        user, key, chosen = self._choose()
        items = [{"product_id": product_id, "quantity": 1} for product_id in chosen]
        order = {"user": user, "items": items}
        placed = self._call("REST POST", "orders", "POST", "/api/order", order, idempotency_key=key)
        path = f"/api/order/{placed['id']}"
        self._call("REST repeated POST", "orders", "POST", "/api/order", order, idempotency_key=key)
        self._call("REST GET", "orders", "GET", path)
        self._call("REST list", "orders", "GET", f"/api/order?user={user}")
        self._call("REST DELETE", "orders", "DELETE", path)
        self._call("REST second DELETE", "orders", "DELETE", path)
        replacement = product(f"with stock {key}") | {"id": chosen[0], "image_url": None}
        self._call("REST PUT product with stock", "products", "PUT", "/api/product", replacement)
        replacement = product(f"replaced {key}") | {"id": chosen[0], "image_url": None}
        del replacement["stock"]
        self._call("REST PUT product", "products", "PUT", "/api/product", replacement)

    def by_graphql(self) -> None:
        """Make every call once."""
        user, key, chosen = self._choose()
        order = {"user": user, "items": [{"productId": product_id, "quantity": 1} for product_id in chosen]}
        placed = self._query("GraphQL POST", _CREATE, input=order, key=key)
        self._query("GraphQL repeated POST", _CREATE, input=order, key=key)
        self._query("GraphQL GET", _GET, id=placed["id"])
        self._query("GraphQL list", _LIST, user=user)
        self._query("GraphQL DELETE", _DELETE, id=placed["id"])
        self._query("GraphQL second DELETE", _DELETE, id=placed["id"])
        replacement = product(f"with stock {key}") | {"id": chosen[0]}
        self._query("GraphQL PUT product with stock", _UPDATE, input=replacement)
        replacement = product(f"replaced {key}") | {"id": chosen[0]}
        del replacement["stock"]
        self._query("GraphQL PUT product", _UPDATE, input=replacement)

    def _choose(self) -> tuple[str, str, list[str]]:
        """Return a user, an idempotency key and products."""
        key = uuid.uuid4().hex
        return f"buyer-{key}", key, self._rng.sample(self._spec.product_ids, self._spec.lines)


def main(spec: Spec) -> Result:
    caller = _Caller(spec)
    warm_at = time.monotonic() + spec.warmup
    while time.monotonic() < warm_at:
        caller.by_rest()
        caller.by_graphql()
    caller.seconds.clear()
    print("begin", flush=True)
    end = time.monotonic() + spec.seconds
    while True:
        caller.by_rest()
        caller.by_graphql()
        if time.monotonic() > end:
            break
    print("end", flush=True)
    calls = {name: percentiles(seconds) for name, seconds in caller.seconds.items()}
    return Result(calls, sum(map(len, caller.seconds.values())))


if __name__ == "__main__":
    print(msgspec.json.encode(main(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))).decode(), flush=True)
