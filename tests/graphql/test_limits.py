"""Requests that exceed a limit or make no sense: BAD_INPUT, quickly, and never a 500."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import httpx
import pytest
from graphql import build_client_schema, get_introspection_query, print_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.graphql.config import DocumentCacheSize, GatewayHttp, Limits
from market.graphql.engine.documents import DocumentCache
from market.graphql.engine.resolvers import load_schema
from tests.graphql.graphql_gateway import Gateway, running_gateway
from tests.support.ports import free_port

PRODUCT = '{id: "00000000-0000-4000-8000-000000000001"}'


def nested(depth: int) -> str:
    return '{ orders(user: "a") { items { items { product { id } } } } ' + "a { " * depth + "x" + " }" * depth + " }"


def doubling(n: int) -> str:
    spreads = " ".join(
        f"fragment F{i} on ProductPage {{ a{i}: items {{ id }} ...F{i + 1} b{i}: items {{ id }} ...F{i + 1} }}"
        for i in range(n)
    )
    return f"{{ products {{ ...F0 }} }} {spreads} fragment F{n} on ProductPage {{ total }}"


REJECTED = {
    "depth 100": nested(100),
    "depth 10,000": nested(10_000),
    "depth by inline fragments": "{ " + "... { " * 5000 + "__typename" + " }" * 5001,
    "1,000 aliases": "{ " + " ".join(f'a{i}: product(id: "x") {{ id }}' for i in range(1000)) + " }",
    "1,000 aliases of a leaf": '{ product(id: "x") { ' + " ".join(f"a{i}: id" for i in range(1000)) + " } }",
    "a field 4,000 times": '{ product(id: "x") { ' + "id " * 4000 + "} }",
    "a fragment cycle": "{ products { ...A } } fragment A on ProductPage { total ...B } fragment B on ProductPage { "
    "...A }",
    "a fragment of itself": "{ ...A } fragment A on Query { ...A }",
    "a cycle that is not spread": "{ products { total } } fragment A on ProductPage { ...A }",
    "doubling fragments": doubling(40),
    "many tokens": "{ products { total } }" + " # x\n" * 100_000,
    "many commas and tokens": '{ product(id: "x") { id } }' + " ,,, { a }" * 50_000,
    "a deep list": "{ products(ids: " + "[" * 5000 + "]" * 5000 + ") { total } }",
    "a deep type": "query ($a: " + "[" * 5000 + "Int" + "]" * 5000 + ") { products { total } }",
    "many variables": "query (" + " ".join(f"$v{i}: Int" for i in range(3000)) + ") { products { total } }",
    "many operations": " ".join(f"query Q{i} {{ products {{ total }} }}" for i in range(900)),
    "many directives": "{ products " + "@include(if: true) " * 2000 + "{ total } }",
    "many arguments": "{ products(" + "limit: 1 " * 2000 + ") { total } }",
    "an unterminated text": '{ product(id: "' + "x" * 500_000,
    "a lone surrogate": '{ product(id: "\\ud800") { id } }',
    "nothing": "",
    "not GraphQL": "SELECT * FROM products",
    "a subscription": "subscription { products { total } }",
    "a schema": "type Query { a: Int }",
    "an unknown field": "{ passwords }",
    "no selection": "{ products }",
    "a deeply nested introspection": "{ __schema { types { fields { type { fields { type { fields { type { fields { "
    "name } } } } } } } } } }",
}


@pytest.mark.parametrize("name", REJECTED)
async def test_a_document_that_exceeds_a_limit_or_is_invalid_is_bad_input(gateway: Gateway, name: str) -> None:
    started = time.thread_time()
    response = await gateway.http.post("/graphql", json={"query": REJECTED[name]})
    cpu_seconds = time.thread_time() - started
    assert response.status_code == 400
    result = response.json()
    assert "data" not in result
    assert {e["extensions"]["code"] for e in result["errors"]} == {"BAD_INPUT"}
    assert len(response.content) < 30_000
    # CPU time, because the gateway runs in this thread. The slowest takes a tenth of a second, or 0.3 s on a slow
    # machine.
    assert cpu_seconds < 2
    assert not gateway.products.calls


ERROR_TEXTS = {
    "depth 100": "query: must have at most 16 levels of fields, got 101",
    "a field 4,000 times": "query: must have at most 500 fields, got 4001",
    "doubling fragments": "query: must have at most 500 fields, got more than a billion",
    "a fragment of itself": "query: fragment A must not spread itself",
    "many operations": "operationName: is required because the document has 900 operations",
    "a schema": "operationName: the document has no operation",
}


@pytest.mark.parametrize("name", ERROR_TEXTS)
async def test_an_error_states_the_rule_and_the_value(gateway: Gateway, name: str) -> None:
    response = await gateway.http.post("/graphql", json={"query": REJECTED[name]})
    assert [e["message"] for e in response.json()["errors"]] == [ERROR_TEXTS[name]]


def test_validation_ends_at_its_limit_of_cpu_time_and_the_error_says_so() -> None:
    lines = '{productId: "00000000-0000-4000-8000-000000000001", quantity: 1},' * 1000
    document = f'mutation {{ createOrder(input: {{user: "a", items: [{lines}]}}) {{ id }} }}'
    # Far more than the default, because other programs slow the processor's cores down.
    long = DocumentCache(load_schema(), Limits(validation_seconds=60), DocumentCacheSize())
    assert not long.get(document, None).errors
    short = DocumentCache(load_schema(), Limits(validation_seconds=0.002), DocumentCacheSize())
    [error] = short.get(document, None).errors
    assert error["message"] == "query: must be simpler: its validation would take more than 0.002 s"
    assert error["extensions"]["code"] == "BAD_INPUT"


def test_a_garbage_collection_does_not_count_as_validation() -> None:
    collections = 0

    def collect_slowly(phase: str, _: dict[str, int]) -> None:
        nonlocal collections
        if phase == "start":
            collections += 1
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass

    cache = DocumentCache(load_schema(), Limits(validation_seconds=1), DocumentCacheSize())
    fields = " ".join(f'a{n}: product(id: "0") {{ id name }}' for n in range(15))
    thresholds = gc.get_threshold()
    gc.callbacks.append(collect_slowly)
    gc.set_threshold(100)
    try:
        prepared = cache.get("{ " + fields + " }", None)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collect_slowly)
    assert collections > 0
    assert prepared.errors == []
    assert gc.isenabled()


@pytest.mark.parametrize(
    "document",
    [
        "{ " + 'product(id: "0") { id } ' * 1500 + "}",
        '{ product(id: "0") { ' + "id " * 2500 + "} }",
        "{ ...A0 } " + " ".join(f"fragment A{n} on Query {{ ...A{n + 1} ...A{n + 1} }}" for n in range(1000)),
    ],
    ids=["fields with selections", "fields", "fragments"],
)
def test_validation_that_no_other_limit_bounds_ends_soon(document: str) -> None:
    no_limits = Limits(fields=10**6, aliases=10**6, repeats=10**6, tokens=10**6, depth=10**6, characters=10**7)
    cache = DocumentCache(load_schema(), no_limits, DocumentCacheSize())
    started = time.thread_time()
    assert cache.get(document, None).errors
    # CPU time: half a second for the validation, the rest for parsing. A busy machine makes little difference.
    assert time.thread_time() - started < 5


async def test_a_document_may_contain_an_order_of_1000_lines(gateway: Gateway) -> None:
    [product_id, *_] = gateway.products.resources
    lines = ", ".join(f'{{productId: "{product_id}", quantity: 1}}' for _ in range(1000))
    result = await gateway.run(
        f'mutation {{ createOrder(input: {{user: "u", items: [{lines}]}}) {{ items {{ quantity }} }} }}'
    )
    assert len(result["data"]["createOrder"]["items"]) == 1000


async def test_the_introspection_of_common_tools_is_within_the_limits(gateway: Gateway) -> None:
    result = await gateway.run(
        get_introspection_query(specified_by_url=True, directive_is_repeatable=True, schema_description=True)
    )
    assert print_schema(build_client_schema(result["data"])) == print_schema(load_schema())


@pytest.mark.parametrize(
    ("query", "field", "count"),
    [
        (
            '{ a: orders(user: "ann", limit: 1000) { total } b: orders(user: "ann", limit: 1000) { total } c: '
            "products(limit: 1) { total } }",
            "c",
            2,
        ),
        ("{ " + " ".join(f"a{i}: products(limit: 100) {{ total }}" for i in range(21)) + " }", "a20", 20),
    ],
)
async def test_the_pages_of_one_request_share_an_item_limit(
    gateway: Gateway, query: str, field: str, count: int
) -> None:
    result = await gateway.run(query)
    assert result["data"][field] is None
    [error] = result["errors"]
    assert (error["path"], error["extensions"]["code"], error["extensions"]["field"]) == ([field], "BAD_INPUT", "limit")
    assert error["message"].startswith("limit: the pages of one request must have at most 2000 items in total, got ")
    assert len(gateway.products.calls) + len(gateway.orders.calls) == count


BAD_VARIABLES: list[tuple[str, dict[str, Any] | None]] = [
    ("query ($n: Int) { products(limit: $n) { total } }", {"n": "20"}),
    ("query ($n: Int) { products(limit: $n) { total } }", {"n": 2**31}),
    ("query ($n: Int) { products(limit: $n) { total } }", {"n": 1.5}),
    ("query ($n: Int) { products(limit: $n) { total } }", {"n": 10**400}),
    ("query ($i: ID!) { product(id: $i) { id } }", {"i": None}),
    ("query ($i: ID!) { product(id: $i) { id } }", {}),
    ("query ($i: ID!) { product(id: $i) { id } }", None),
    ("query ($i: [ID!]) { products(ids: $i) { total } }", {"i": [1.5] * 100_000}),
    (
        "mutation ($i: CreateOrderInput!) { createOrder(input: $i) { id } }",
        {"i": {"user": "a", "items": [], "price": 1}},
    ),
    ("mutation ($i: CreateOrderInput!) { createOrder(input: $i) { id } }", {"i": {"user": "a"}}),
    (
        "mutation ($i: CreateOrderInput!) { createOrder(input: $i) { id } }",
        {"i": {"user": "a", "items": [{"productId": "x", "quantity": 2.5}]}},
    ),
]


@pytest.mark.parametrize("number", range(len(BAD_VARIABLES)))
async def test_variables_that_do_not_fit_are_bad_input(gateway: Gateway, number: int) -> None:
    query, variables = BAD_VARIABLES[number]
    response = await gateway.http.post("/graphql", json={"query": query, "variables": variables})
    assert response.status_code == 400
    errors = response.json()["errors"]
    assert {(e["extensions"]["code"], e["extensions"]["field"]) for e in errors} == {("BAD_INPUT", "variables")}
    assert len(response.content) < 30_000
    assert not gateway.products.calls + gateway.orders.calls


async def test_too_many_ids_are_bad_input_without_a_request_to_products(gateway: Gateway) -> None:
    text = "query ($i: [ID!]) { products(ids: $i) { total } }"
    for ids, field in ((list(gateway.products.resources)[:101], "ids"), (["x,y"], "ids[0]"), (["x"] * 20_000, "ids")):
        result = await gateway.run(text, {"i": ids})
        assert result["data"] == {"products": None}
        assert (result["errors"][0]["extensions"]["code"], result["errors"][0]["extensions"]["field"]) == (
            "BAD_INPUT",
            field,
        )
    assert not gateway.products.calls


@pytest.mark.parametrize("size", [1_048_577, 10_000_000])
async def test_a_body_over_one_mebibyte_is_413(gateway: Gateway, size: int) -> None:
    head = {"content-type": "application/json"}

    async def chunks() -> Any:
        for _ in range(size // 65_536 + 1):
            yield b" " * 65_536

    for body in (b" " * size, chunks()):
        try:
            response = await gateway.http.post("/graphql", content=body, headers=head)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            # The server need not read to the end. If it does not, the connection may be reset before its response is
            # read.
            continue
        assert response.status_code == 413
        assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_the_document_cache_is_limited_and_excludes_long_documents() -> None:
    documents = DocumentCache(load_schema(), Limits(), DocumentCacheSize(count=10, characters=100))
    for n in range(30):
        documents.get(f"{{ products(limit: {n}) {{ total }} }}", None)
    assert len(documents) == 10
    assert documents.get("{ products(limit: 29) { total } }", None) is documents.get(
        "{ products(limit: 29) { total } }", None
    )
    documents.get("{ products { total } }" + " " * 100, None)
    assert len(documents) == 10


async def test_one_text_with_two_operation_names_is_cached_as_two_documents(gateway: Gateway) -> None:
    text = "query A { products(limit: 1) { limit } } query B { products(limit: 2) { limit } }"
    for _ in range(2):
        assert (await gateway.run(text, operationName="A"))["data"]["products"]["limit"] == 1
        assert (await gateway.run(text, operationName="B"))["data"]["products"]["limit"] == 2
    for name in (None, "", "C"):
        result = await gateway.run(text, operationName=name)
        assert result["errors"][0]["extensions"]["field"] == "operationName"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TEXTS = [
    "query ($v: ID!) { product(id: $v) { id } order(id: $v) { id } }",
    "query ($v: Int) { products(limit: $v, offset: $v) { total } }",
    "query ($v: String!) { products(q: $v, sort: $v) { total } orders(user: $v, status: $v) { total } }",
    "query ($v: [ID!]) { products(ids: $v) { total } }",
    "mutation ($v: CreateOrderInput!) { createOrder(input: $v) { id } }",
    'mutation ($v: String) { createOrder(input: {user: "u", items: []}, idempotencyKey: $v) { id } }',
]


async def test_no_variables_cause_a_500(gateway: Gateway) -> None:
    """Any JSON may be the value of a variable. The fake upstreams accept anything, so their errors are not checked."""
    examples: list[tuple[str, Any]] = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(TEXTS), JSON)
    def collect(text: str, value: Any) -> None:
        examples.append((text, value))

    collect()
    for text, value in examples:
        response = await gateway.http.post("/graphql", json={"query": text, "variables": {"v": value}})
        assert response.status_code in (200, 400), (text, value)
        codes = {e["extensions"]["code"] for e in response.json().get("errors", [])}
        assert codes <= {"BAD_INPUT", "NOT_FOUND", "UNAVAILABLE"}, (text, value, response.text)


async def test_a_gateway_rejects_requests_beyond_max_in_flight() -> None:
    async with running_gateway(http=GatewayHttp(port=free_port(), max_in_flight=1)) as gateway:
        responses = await asyncio.gather(
            *(gateway.http.post("/graphql", json={"query": "{ products { total } }"}) for _ in range(30))
        )
        statuses = {r.status_code for r in responses}
        assert statuses <= {200, 503}
        for rejected in (r for r in responses if r.status_code == 503):
            assert rejected.headers["retry-after"] == "1"
            assert rejected.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
