"""The memory of requests is counted before it is spent: upper bounds and what is really allocated, and the budget."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client import REGISTRY

from market.graphql.api import GraphQLRequest
from market.graphql.clients import OrdersClient, ProductsClient
from market.graphql.config import DocumentCacheSize, Limits, Memory
from market.graphql.engine.documents import DocumentCache
from market.graphql.engine.executor import Executor
from market.graphql.engine.resolvers import load_schema
from market.graphql.memory.budget import MemoryBudget, json_cost
from market.graphql.service import Deps
from tests.graphql.graphql_gateway import order, product, running_gateway
from tests.graphql.upstreams import MIB, NOTHING, PRODUCTS, Upstream, page
from tests.support.waiting import until

LARGE = Memory(request_bytes=10**12, large_requests_bytes=10**12)


@pytest.fixture(scope="module")
def measurements() -> Iterator[ProcessPoolExecutor]:
    """A process for functions that measure memory: tracemalloc counts the allocations of all threads of a process, and
    the tests that ran before have left some running."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def allocated(make: Callable[[], Any]) -> tuple[int, int, Any]:
    """Return the bytes that `make` leaves allocated, the most that it had, and its result."""
    gc.collect()
    tracemalloc.start()
    try:
        result = make()
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        return tracemalloc.get_traced_memory()[0], peak, result
    finally:
        tracemalloc.stop()


# Bodies that make the most of their bytes.
BODIES = {
    "empty lists": "[" + "[]," * 100_000 + "0]",
    "empty objects": "[" + "{}," * 100_000 + "0]",
    "objects of one key": "[" + '{"a":0},' * 50_000 + "0]",
    "objects of new keys": "[" + ",".join(f'{{"{i:x}":0}}' for i in range(50_000)) + "]",
    "one large object": "{" + ",".join(f'"{i:x}":0' for i in range(50_000)) + "}",
    "large numbers": "[" + "300," * 100_000 + "0]",
    "fractions": "[" + "1.5," * 100_000 + "0]",
    "short texts": "[" + '"ab",' * 100_000 + "0]",
    "wide texts": json.dumps(["🜁" + "a" * 1000] * 500, ensure_ascii=False),
}


def measure_decoding(body: bytes) -> int:
    """Return the most bytes that decoding the body has allocated at a time."""
    _, peak, _ = allocated(lambda: msgspec.json.decode(body, type=GraphQLRequest))
    return peak


@pytest.mark.parametrize("name", BODIES)
def test_decoding_a_body_takes_at_most_what_is_counted(name: str, measurements: ProcessPoolExecutor) -> None:
    body = f'{{"query": "", "variables": {{"a": {BODIES[name]}}}}}'.encode()
    # The rest is for the copies that coercion and a call to REST make.
    assert measurements.submit(measure_decoding, body).result() < json_cost(body) * 2 / 3


DOCUMENTS = {
    "a list": "{ products(limit: 20) { items { id name price currency imageUrl available } } }",
    "many names": '{ product(id:"x") { ' + "id " * 90 + "}}",
    "many values": "{ products(ids: [" + '"",' * 7900 + "]) { total }}",
    "comments": "{ products { total } }" + "#a\n" * 5000,
    "50 aliases of a join": "{ "
    + " ".join(f'a{i}: orders(user:"x"){{items{{items{{product{{id}}}}}}}}' for i in range(50))
    + "}",
    "a wide selection": '{ orders(user: "x") { items { '
    + " ".join(f"a{i}: id" for i in range(45))
    + " items { quantity product { name price } } } } }",
    "an order of 1,000 lines": 'mutation { createOrder(input: {user: "u", items: ['
    + '{productId: "00000000-0000-4000-8000-000000000001", quantity: 1},' * 1000
    + "]}) { id } }",
    "wide characters": '{ products(q: "🜁' + "a" * 7000 + '") { total } }',
}


class Documents(NamedTuple):
    """The bytes that documents and their plans have allocated, and those that are counted for them."""

    documents: int
    counted_documents: int
    sizes_of_documents: int
    plans: int
    sizes_of_plans: int
    counted: int


def measure_documents(text: str) -> Documents:
    """Return the memory of documents like the text, which have no errors, in the cache."""
    limits, size = Limits(validation_seconds=60), DocumentCacheSize(bytes=256 * MIB, characters=10**6)
    executor = Executor(Deps(NOTHING, NOTHING), limits, size)
    # What graphql-core and msgspec cache at first use.
    warm_up = executor.documents.prepare(text, None)
    executor._plan(warm_up, ())
    texts = [text + " " * n for n in range(1, 3 + min(80, MIB // warm_up.size))]
    bytes_of_documents, _, documents = allocated(lambda: [executor.documents.get(text, None) for text in texts])
    assert not any(document.errors for document in documents)
    counted_documents = executor.documents.bytes
    sizes_of_documents = sum(document.size for document in documents)
    bytes_of_plans, _, plans = allocated(lambda: [executor._plan(document, ()) for document in documents])
    return Documents(
        bytes_of_documents,
        counted_documents,
        sizes_of_documents,
        bytes_of_plans,
        sum(plan.size for plan in plans),
        executor.documents.bytes,
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_and_plans_take_at_most_what_is_counted(name: str, measurements: ProcessPoolExecutor) -> None:
    memory = measurements.submit(measure_documents, DOCUMENTS[name]).result()
    assert memory.counted_documents == memory.sizes_of_documents
    # The rest is what Python keeps of freed objects.
    assert MIB / 8 < memory.documents <= memory.counted_documents + MIB / 3
    assert 0 < memory.plans <= memory.sizes_of_plans
    assert memory.counted >= memory.documents + memory.plans


LINES = [product(n)["id"] for n in range(100)] * 10
ORDERS = {
    "many short lines": page([order(n, "a", LINES, total="1.00") for n in range(20)]),
    "no lines": page([order(n, "a", []) for n in range(1000)]),
}
EXECUTIONS = {
    "all of a product": "{ products { items { id name description price currency imageUrl available createdAt } } }",
    "little of a product": "{ products { items { id } } }",
    "50 descriptions": "{ products { items { " + " ".join(f"a{i}: description" for i in range(50)) + " } } }",
    "50 long keys": "{ products { items { " + " ".join(f"{'k' * 200}{i}: price" for i in range(50)) + " } } }",
    "lists twice": "{ products { a: items { name description } b: items { description __typename } } }",
    "all of an order": '{ orders(user: "a") { items { id user email total currency status createdAt items { '
    "productId name quantity unitPrice } } } }",
    "50 quantities": '{ orders(user: "a") { items { items { ' + " ".join(f"a{i}: quantity" for i in range(50)) + "}}}}",
    "lines five times": '{ orders(user: "a") { items { '
    + " ".join(f"a{i}: items {{ productId name quantity unitPrice }}" for i in range(5))
    + "}}}",
    "50 lists of shortages": '{ orders(user: "a") { items { confirmedAt rejectionReason '
    + " ".join(f"a{i}: shortages {{ productId }}" for i in range(50))
    + "}}}",
    "joined": '{ orders(user: "a") { items { items { quantity product { name } } } } }',
    "joined descriptions": '{ orders(user: "a", limit: 1) { items { items { product { id description } } } } }',
    "the schema": "{ __schema { types { name description fields { name description args { name description } } } } }",
}


class Execution(NamedTuple):
    """The most bytes that an execution has allocated at a time, and those that are counted for it."""

    peak: int
    counted: int


def measure_execution(text: str, orders_page: bytes, products_page: bytes) -> Execution:
    """Return the memory of an execution that succeeds, all of which is released after it."""

    async def run() -> Execution:
        deps = Deps(
            ProductsClient(Upstream(lambda _: products_page)),  # type: ignore[arg-type]
            OrdersClient(Upstream(lambda _: orders_page)),  # type: ignore[arg-type]
        )
        executor = Executor(deps, Limits(), DocumentCacheSize())
        budget = MemoryBudget(LARGE)
        memory = budget.request()
        prepared = await executor.prepare(text, None, memory)
        before = memory.held
        gc.collect()
        tracemalloc.start()
        result = await executor.execute(prepared, {}, memory)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert b'"errors"' not in result.body[-2000:]
        counted = memory.held - before
        memory.close()
        assert (budget.small, budget.large) == (0, 0)
        return Execution(peak, counted)

    return asyncio.run(run())


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("name", EXECUTIONS)
def test_an_execution_takes_at_most_what_is_counted(
    name: str, orders: str, products: str, measurements: ProcessPoolExecutor
) -> None:
    execution = measurements.submit(measure_execution, EXECUTIONS[name], ORDERS[orders], PRODUCTS[products]).result()
    assert execution.peak <= execution.counted + 200_000


# Documents of one to four kilobytes, of which some made responses of hundreds of megabytes before.
HOSTILE = {
    "20 pages of 50 descriptions": "{ "
    + " ".join(
        f"p{i}: products(limit: 100) {{ items {{ {' '.join(f'd{k}: description' for k in range(2))} }} }}"
        for i in range(15)
    )
    + " }",
    "50 descriptions": "{ products(limit: 100) { items { " + " ".join(f"a{i}: description" for i in range(49)) + "}}}",
    "long keys": "{ products(limit: 100) { items { " + " ".join(f"{'k' * 3900}{i}: id" for i in range(49)) + "}}}",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_does_not_fit_into_a_requests_memory_is_bad_input_and_not_read(name: str) -> None:
    longest = page([product(n, description="🜁" * 10_000) for n in range(100)])
    upstream = Upstream(lambda _: longest)
    executor = Executor(Deps(ProductsClient(upstream), NOTHING), Limits(), DocumentCacheSize())  # type: ignore[arg-type]
    budget = MemoryBudget(Memory())
    memory = budget.request()
    prepared = await executor.prepare(HOSTILE[name], None, memory)
    assert not prepared.errors
    result = json.loads((await executor.execute(prepared, {}, memory)).body)
    codes = {error["extensions"]["code"] for error in result["errors"]}
    assert "BAD_INPUT" in codes
    assert "of memory, and may have" in result["errors"][0]["message"]
    memory.close()
    assert (budget.small, budget.large) == (0, 0)


async def test_lines_whose_products_do_not_fit_are_returned_without_them() -> None:
    upstreams = Upstream(lambda _: PRODUCTS["long"]), Upstream(lambda _: ORDERS["many short lines"])
    executor = Executor(Deps(ProductsClient(upstreams[0]), OrdersClient(upstreams[1])), Limits(), DocumentCacheSize())  # type: ignore[arg-type]
    memory = MemoryBudget(Memory()).request()
    text = '{ orders(user: "a") { items { items { quantity product { id description } } } } }'
    result = json.loads((await executor.execute(await executor.prepare(text, None, memory), {}, memory)).body)
    lines = [line for o in result["data"]["orders"]["items"] for line in o["items"]]
    assert len(lines) == 20_000
    assert all(line["product"] is None and line["quantity"] for line in lines)
    first, rest = result["errors"]
    assert (first["path"], first["extensions"]["code"]) == (["orders", "items", 0, "items", 0, "product"], "BAD_INPUT")
    assert rest["message"] == "the products of 19999 more order lines are null because of errors"


async def test_only_so_many_products_are_joined_and_so_many_errors_listed() -> None:
    many = [order(n, "a", [product(1000 * n + k)["id"] for k in range(1000)]) for n in range(4)]
    upstreams = Upstream(lambda _: page([])), Upstream(lambda _: page(many))
    executor = Executor(Deps(ProductsClient(upstreams[0]), OrdersClient(upstreams[1])), Limits(), DocumentCacheSize())  # type: ignore[arg-type]
    memory = MemoryBudget(Memory()).request()
    text = '{ orders(user: "a") { items { items { product { id } } } } }'
    result = json.loads((await executor.execute(await executor.prepare(text, None, memory), {}, memory)).body)
    assert upstreams[0].calls == 20
    assert len(result["errors"]) == 1001
    assert result["errors"][0]["path"] == ["orders", "items", 2, "items", 0, "product"]
    assert result["errors"][0]["message"].startswith(
        "query: the order lines of one response may have at most 2000 different products with their fields, got 4000"
    )
    assert result["errors"][-1]["message"] == "the products of 1000 more order lines are null because of errors"


FOUR_CONDITIONS = (
    "query ($a: Boolean!, $b: Boolean!, $c: Boolean!, $d: Boolean!) { "
    + " ".join(
        f'a{i}: orders(user: "x") {{ items {{ id @include(if: $a) items {{ quantity @skip(if: $b) product {{ '
        f"id name @include(if: $c) price @skip(if: $d) }} }} }} }}"
        for i in range(25)
    )
    + " }"
)


def test_the_document_cache_is_limited_in_bytes_with_its_plans() -> None:
    executor = Executor(Deps(NOTHING, NOTHING), Limits(), DocumentCacheSize())
    documents = executor.documents

    def fill() -> None:
        for n in range(4):
            prepared = documents.get(FOUR_CONDITIONS + " " * n, None)
            for values in range(16):
                executor._plan(prepared, tuple(bool(values & 1 << bit) for bit in range(4)))
                assert documents.bytes <= 12 * MIB
                assert prepared.cached_size <= 12 * MIB / 8

    size, _, _ = allocated(fill)
    assert len(FOUR_CONDITIONS) < 4000
    assert MIB < size <= 12 * MIB
    assert documents.bytes == sum(d.cached_size for d in documents._documents.values())


def test_a_long_operation_name_is_not_cached() -> None:
    documents = DocumentCache(load_schema(), Limits(), DocumentCacheSize())
    for n in range(50):
        assert documents.get("{ products { total } }", f"{n}" + "x" * MIB).errors
    assert (len(documents), documents.bytes) == (0, 0)


async def test_a_gateway_releases_the_memory_of_every_request() -> None:
    async with running_gateway() as gateway:
        ids = list(gateway.products.resources)
        for body in (
            {"query": "{ products { items { id } } }"},
            {"query": "{"},
            {"query": "{ nothing }"},
            {"query": "query ($n: Int!) { products(limit: $n) { total } }"},
            {"query": "query ($i: [ID!]) { products(ids: $i) { total } }", "variables": {"i": ids * 100}},
            {"query": "{ products { total } }", "variables": {"i": [[]] * 200_000}},
            {"query": 7},
        ):
            await gateway.http.post("/graphql", json=body)
            await gateway.http.get("/graphql", params={"query": str(body["query"])})
        # A response may arrive before its request has given its memory back.
        await until(lambda: held() == {"small": 0, "large": 0})


def held() -> dict[str, float]:
    return {
        sample.labels["size"]: sample.value
        for metric in REGISTRY.collect()
        if metric.name == "market_graphql_request_memory_bytes"
        for sample in metric.samples
    }
