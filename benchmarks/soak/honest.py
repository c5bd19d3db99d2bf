"""Honest clients as a process of their own: a fixed mix of requests at a fixed rate, by REST and by GraphQL.

Reads a `Spec` as JSON from stdin, and prints a `Result` as JSON. Requests are due at the rate whether or not responses
arrive, and latency counts from when a request was due.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import msgspec
import uvloop

from benchmarks.generator import pace
from benchmarks.measurements import Latency, percentiles
from market.kit.http.pool import ConnectError, ConnectionPool, ProtocolError

_TIMEOUT_SECONDS = 30
_CREATE_ORDER = (
    "mutation Create($input: CreateOrderInput!) { createOrder(input: $input) { id total items { name quantity } } }"
)
_LIST = "{ products(limit: 20) { items { id name price available } } }"
# How often each request is made, in parts of a hundred.
SHARES = {
    "list of products": 25,
    "one product": 25,
    "order of three lines": 20,
    "a user's orders": 10,
    "GraphQL list": 10,
    "GraphQL order": 10,
}


class Spec(msgspec.Struct, kw_only=True):
    """rate: requests per second of all kinds together."""

    ports: dict[str, int]
    product_ids: list[str]
    rate: float
    seconds: float
    first_number: int = 0


class Outcome(msgspec.Struct, kw_only=True):
    """What became of the requests of one kind. `errors`: number by status or exception."""

    requests: int
    errors: dict[str, int]
    latency: Latency


class Result(msgspec.Struct, kw_only=True):
    """All requests together, and by kind."""

    total: Outcome
    kinds: dict[str, Outcome]


class HonestClients:
    """Owns the connections to the three servers, and the latencies."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._pools = {name: ConnectionPool(f"http://127.0.0.1:{port}", 256) for name, port in spec.ports.items()}
        self._random = random.Random(spec.first_number)
        self._numbers = itertools.count(spec.first_number)
        self._latencies: dict[str, list[float]] = {kind: [] for kind in SHARES}
        self._errors: dict[str, Counter[str]] = {kind: Counter() for kind in SHARES}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Result:
        """Make the requests, and wait for the last responses."""
        pacing = asyncio.create_task(pace(self._spec.rate, self._arrive))
        await asyncio.sleep(self._spec.seconds)
        pacing.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        kinds = {kind: _outcome(self._latencies[kind], self._errors[kind]) for kind in SHARES}
        errors = sum(self._errors.values(), Counter())
        return Result(total=_outcome([s for all_ in self._latencies.values() for s in all_], errors), kinds=kinds)

    def _arrive(self, due: float) -> None:
        [kind] = self._random.choices(list(SHARES), list(SHARES.values()))
        task = asyncio.create_task(self._request(kind, due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, kind: str, due: float) -> None:
        server, method, path, body, headers = self._make(kind)
        if body is not None:
            headers = {**headers, "content-type": "application/json"}
        try:
            response = await self._pools[server].request(
                method, path, lambda: headers, None if body is None else json.dumps(body).encode(), _TIMEOUT_SECONDS
            )
        except (OSError, ConnectError, ProtocolError) as e:
            self._errors[kind][f"{type(e).__name__} {e}".strip()[:100]] += 1
            return
        self._latencies[kind].append(time.perf_counter() - due)
        if response.status not in (200, 201):
            self._errors[kind][str(response.status)] += 1
        elif response.body.startswith(b'{"errors"'):
            self._errors[kind][response.body[:150].decode("utf-8", "replace")] += 1

    def _make(self, kind: str) -> tuple[str, str, str, Any, dict[str, str]]:
        """Return server, method, path, body and headers of a new request."""
        number = next(self._numbers)
        user, email = f"buyer-{number % 1000}", f"buyer-{number}@example.test"
        ids = self._random.sample(self._spec.product_ids, 3)
        match kind:
            case "list of products":
                return "products", "GET", "/api/product?limit=20", None, {}
            case "one product":
                return "products", "GET", f"/api/product/{ids[0]}", None, {}
            case "a user's orders":
                return "orders", "GET", f"/api/order?user={user}&limit=20", None, {}
            case "order of three lines":
                body: Any = {"user": user, "email": email, "items": [{"product_id": id_, "quantity": 1} for id_ in ids]}
                return "orders", "POST", "/api/order", body, {"idempotency-key": f"honest-{number}"}
            case "GraphQL list":
                return "graphql", "POST", "/graphql", {"query": _LIST}, {"accept": "application/json"}
            case _:
                lines = [{"productId": id_, "quantity": 1} for id_ in ids]
                call = {"query": _CREATE_ORDER, "variables": {"input": {"user": user, "email": email, "items": lines}}}
                return "graphql", "POST", "/graphql", call, {"accept": "application/json"}


def _outcome(latencies: list[float], errors: Counter[str]) -> Outcome:
    # Errors without a response have no latency.
    without_response = sum(n for text, n in errors.items() if not text.isdigit() and not text.startswith("{"))
    return Outcome(
        requests=len(latencies) + without_response, errors=dict(errors.most_common(10)), latency=percentiles(latencies)
    )


async def main(spec: Spec) -> None:
    print(msgspec.json.encode(await HonestClients(spec).run()).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)))
