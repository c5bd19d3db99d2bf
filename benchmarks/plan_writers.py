"""What closures cost a GraphQL plan, compared with generated code: python -m benchmarks.plan_writers [ROUNDS]

A plan turns the objects that it read into the objects that it writes by closures (engine/writers.py). The alternative,
here only, is one Python expression per document, compiled with `eval`. Both execute the same plans in one process, with
the upstreams' responses from memory, in turns of some milliseconds of CPU time. The ratio is taken within each round.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
from graphql import get_variable_values

from market.graphql.config import DocumentCacheSize, Limits, Memory
from market.graphql.engine.compiler import compile_plan
from market.graphql.engine.documents import DocumentCache
from market.graphql.engine.plan import ListStep, Plan, ProductJoin, Resources
from market.graphql.engine.resolvers import load_schema
from market.graphql.engine.selections import SelectedField
from market.graphql.engine.writers import Writer, object_writer, product_join, response_struct
from market.graphql.memory.budget import MemoryBudget
from market.graphql.service import Deps

DOCUMENTS = {
    "list of 20 products, six fields": "{ products(limit: 20) { items { id name price currency imageUrl available } } "
    "}",
    "20 orders, 60 lines, joined products": """{ orders(user: "ann", limit: 20) { items {
        id status total items { quantity unitPrice product { name imageUrl } } } } }""",
    "one product, two fields": '{ product(id: "00000000-0000-4000-8000-000000000001") { name price } }',
}
TURN_SECONDS = 0.005
SCHEMA = load_schema()


def generated_writer(selected: SelectedField) -> Writer:
    """Return a writer of generated code.

    For `orders(user: "ann") { items { id items { quantity product { name } } } }` it is

        lambda x, j: [W2([W1(x1.id, [W0(x2.quantity, j[0].get(x2.product_id)) for x2 in x1.items]) for x1 in x0.items])
            for x0 in x]
    """
    joins: list[ProductJoin] = []
    names: dict[str, Any] = {}

    def expression(field: SelectedField, depth: int, steps: tuple[ListStep, ...]) -> str:
        assert field.fields is not None
        item, values = f"x{depth}", []
        for f in field.fields:
            if f.is_join:
                values.append(f"j[{len(joins)}].get({item}.product_id)")
                joins.append(product_join(f, steps, generated_writer))
            elif f.fields is not None:
                below = expression(f, depth + 1, (*steps, ListStep(attrgetter(f.member), f.key)))
                values.append(f"[{below} for x{depth + 1} in {item}.{f.member}]")
            else:
                values.append(f"{item}.{f.member}")
        name = f"W{len(names)}"
        names[name] = response_struct(field.fields)
        return f"{name}({', '.join(values)})"

    return Writer(eval(f"lambda x, j: [{expression(selected, 0, ())} for x0 in x]", names), tuple(joins))


def product(n: int) -> dict[str, Any]:
    now = "2026-01-02T03:04:05.000006Z"
    return {
        "id": str(uuid.UUID(int=n, version=4)),
        "name": f"White hanging heart t-light holder {n}",
        "description": "Two litres, cream with a blue rim.",
        "price": f"{n}.50",
        "currency": "GBP",
        "image_url": f"/images/{n}.svg",
        "available": n % 2 == 0,
        "created_at": now,
        "updated_at": now,
    }


def order(n: int) -> dict[str, Any]:
    lines = [
        {"product_id": product(3 * n + k)["id"], "name": f"line {k}", "quantity": k + 1, "unit_price": "2.50"}
        for k in range(3)
    ]
    return {
        "id": str(uuid.UUID(int=1000 + n, version=4)),
        "user": "ann",
        "email": None,
        "items": lines,
        "total": "15.00",
        "currency": "GBP",
        "status": "confirmed",
        "created_at": "2026-01-02T03:04:05.000006Z",
    }


class Upstream:
    """Returns its responses from memory."""

    def __init__(self, items: list[dict[str, Any]], page: int) -> None:
        self._one = msgspec.json.encode(items[0])
        self._page = self._encode(items[:page])
        self._all = self._encode(items)

    @staticmethod
    def _encode(items: list[dict[str, Any]]) -> bytes:
        return msgspec.json.encode({"items": items, "total": len(items), "limit": len(items), "offset": 0})

    async def get(self, *_: Any, **__: Any) -> bytes:
        return self._one

    async def list(self, query: dict[str, Any]) -> bytes:
        return self._all if query.get("ids") else self._page


def plan(document: str, make_writer: Callable[[SelectedField], Writer]) -> Plan:
    prepared = DocumentCache(SCHEMA, Limits(), DocumentCacheSize()).get(document, None)
    assert prepared.document is not None
    assert prepared.operation is not None
    compiled = compile_plan(SCHEMA, prepared.document, prepared.operation, {}, make_writer=make_writer)
    assert compiled is not None
    return compiled


async def measure(document: str, rounds: int) -> tuple[float, float, list[float]]:
    """Return the medians of CPU seconds per execution, generated and closures, and the ratio of each round."""
    deps = Deps(Upstream([product(n) for n in range(60)], 20), Upstream([order(n) for n in range(20)], 20))  # type: ignore[arg-type]
    variables = get_variable_values(SCHEMA, (), {})
    assert not isinstance(variables, list)
    limits, budget = Limits(), MemoryBudget(Memory())
    plans = {"generated": plan(document, generated_writer), "closures": plan(document, object_writer)}

    async def execute(compiled: Plan) -> bytes:
        memory = budget.request()
        response = await compiled.execute(Resources(deps, limits, memory), variables)
        memory.close()
        return response

    async def turn(name: str, times: int) -> float:
        started = time.process_time()
        for _ in range(times):
            await execute(plans[name])
        return (time.process_time() - started) / times

    responses = [await execute(p) for p in plans.values()]
    assert responses[0] == responses[1]
    assert b"errors" not in responses[0]
    times = max(10, int(TURN_SECONDS / await turn("closures", 50)))
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name in random.sample(list(plans), 2):
            seconds[name].append(await turn(name, times))
    ratios = [c / g for c, g in zip(seconds["closures"], seconds["generated"], strict=True)]
    return statistics.median(seconds["generated"]), statistics.median(seconds["closures"]), ratios


async def main(rounds: int) -> None:
    print("| CPU per execution of a plan | generated code | closures | ratio, median (quartiles) |\n|---|---|---|---|")
    for name, document in DOCUMENTS.items():
        generated, closures, ratios = await measure(document, rounds)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {generated * 1e6:.1f} µs | {closures * 1e6:.1f} µs | {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
