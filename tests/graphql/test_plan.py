"""Plans against graphql-core: the same response for any document, errors included."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import GraphQLObjectType, get_named_type, is_leaf_type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import from_schema
from structlog.testing import capture_logs

from benchmarks import plan_writers
from market.graphql.app import Clients, build
from market.graphql.clients import OrdersClient, ProductsClient
from market.graphql.config import Config, DocumentCacheSize, GatewayHttp, Limits, Memory
from market.graphql.engine.documents import DocumentCache
from market.graphql.engine.executor import Executor
from market.graphql.engine.resolvers import load_schema
from market.graphql.memory.budget import MemoryBudget
from market.graphql.service import Deps
from market.kit.config import HttpUpstream, Listen
from market.kit.errors import Unavailable
from market.kit.http.client import HttpResponse
from market.kit.process.lifecycle import Process
from tests.graphql import reference
from tests.graphql.graphql_gateway import FakeUpstream, order, product
from tests.support.ports import free_port

SCHEMA = load_schema()
SDL = (Path(__file__).parents[2] / "graphql" / "schema.graphql").read_text()
PRODUCTS = [product(n) for n in range(1, 120)]
IDS = [p["id"] for p in PRODUCTS]
ORDERS = [
    order(n, "ann" if n % 3 else "bob", [IDS[(11 * n + 5 * k) % 119] for k in range(n % 6 + 1)]) for n in range(12)
]
# The product of one line has been deleted.
ORDERS[1]["items"][0]["product_id"] = "00000000-0000-4000-8000-0000000fffff"
ORDERS[2] |= {
    "status": "rejected",
    "rejected_at": "2026-01-31T12:00:01.000Z",
    "rejection_reason": "out-of-stock",
    "shortages": [{"product_id": IDS[0], "wanted": 3, "left": 1}, {"product_id": IDS[1], "wanted": 2, "left": 0}],
}
UNKNOWN = "00000000-0000-4000-8000-00000000ffff"


class InProcessHttpClient:
    """An HttpClient that calls a fake upstream without a network."""

    def __init__(self, kind: str, resources: list[dict[str, Any]], fails: str) -> None:
        self._upstream = FakeUpstream(kind)
        self._upstream.resources = {t["id"]: copy.deepcopy(t) for t in resources}
        self._fails = fails

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Any = None,
        **_: Any,
    ) -> HttpResponse:
        await asyncio.sleep(0)
        if self._fails == "unavailable":
            raise Unavailable("connection closed")
        if self._fails == "rejects" or (self._fails == "rejects pages" and path.partition("?")[0].count("/") == 2):
            self._upstream.fail(422, "bad-input", detail="no", errors=[{"field": "some_thing", "reason": "is wrong"}])
        # A plan reads the selected members only, so only a response that is wrong as a whole fails both ways.
        if self._fails == "breaks the contract":
            return HttpResponse(200, b"[5]", {"content-type": "application/json"})
        path, _, raw = path.partition("?")
        query = dict(p.split("=", 1) for p in raw.replace("%2C", ",").split("&")) if raw else {}
        if not all(query.get(n, "0").lstrip("-").isdigit() for n in ("limit", "offset")):
            query = {}
        status, document, more = self._upstream.respond(
            method, path, query, json.loads(body) if body else {}, headers or {}
        )
        kind = "application/problem+json" if status >= 400 else "application/json"
        return HttpResponse(
            status, b"" if document is None else json.dumps(document).encode(), {"content-type": kind, **more}
        )


async def execute(text: str, variables: dict[str, Any], fails: tuple[str, str], *, compiled: bool) -> tuple[bool, Any]:
    """Return whether the document was executed, and the response."""
    deps = Deps(
        ProductsClient(InProcessHttpClient("product", PRODUCTS, fails[0])),
        OrdersClient(InProcessHttpClient("order", ORDERS, fails[1])),
    )
    # Not limited by what graphql-core does not count: CPU time, which differs each time, and memory.
    limits = Limits(list_items=500, validation_seconds=60)
    with capture_logs():
        async with asyncio.timeout(60):
            if compiled:
                memory = MemoryBudget(Memory(request_bytes=10**12, large_requests_bytes=10**12)).request()
                executor = Executor(deps, limits, DocumentCacheSize())
                result = await executor.execute(await executor.prepare(text, None, memory), variables, memory)
            else:
                result = await reference.execute_request(deps, limits, text, variables)
    response = json.loads(result.body)
    for error in response.get("errors", []):
        # A generated key differs each time.
        error.get("extensions", {}).pop("idempotencyKey", None)
    if result.executed:
        response.get("errors", []).sort(key=json.dumps)
    return result.executed, response


def assert_same(text: str, variables: dict[str, Any], fails: tuple[str, str]) -> dict[str, Any]:
    """Assert that both ways return the same response, and return it."""
    executed, expected = asyncio.run(execute(text, variables, fails, compiled=False))
    executed_by_plan, response = asyncio.run(execute(text, variables, fails, compiled=True))
    assert (executed, expected) == (executed_by_plan, response)
    # The fields are in the document's order, too.
    assert json.dumps(expected.get("data")) == json.dumps(response.get("data"))
    return dict(response)


FAILS = st.sampled_from(["", "", "", "", "unavailable", "rejects", "rejects pages", "breaks the contract"])
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@RELAXED
@given(from_schema(SDL), st.tuples(FAILS, FAILS))
def test_a_generated_document_has_the_same_response(text: str, fails: tuple[str, str]) -> None:
    assert_same(text, {}, fails)


ARGUMENTS: dict[str, list[str]] = {
    "product": ["id: $id", *(f'id: "{id}"' for id in (*IDS[:2], UNKNOWN, "x")), "id: 7"],
    "products": [
        "",
        "limit: 3",
        "limit: $n",
        "limit: $n, offset: 2",
        'q: "Thing 11"',
        "ids: $ids",
        'ids: ["x"]',
        f'ids: ["{IDS[4]}", "{IDS[2]}"]',
        "limit: 400",
    ],
    "order": ["id: $order", f'id: "{ORDERS[1]["id"]}"', f'id: "{ORDERS[5]["id"]}"', f'id: "{UNKNOWN}"'],
    "orders": ['user: "ann"', "user: $user", 'user: "bob", limit: $n', 'user: "ann", status: "confirmed", limit: 400'],
    "deleteProduct": [f'id: "{IDS[0]}"', "id: $id", 'id: "x"', "id: $id, expectedVersion: $n"],
    "deleteOrder": ["id: $order", f'id: "{UNKNOWN}"'],
    "createOrder": [
        f'input: {{user: "zoe", items: [{{productId: "{IDS[1]}", quantity: 2}}, {{productId: "{IDS[3]}", quantity: '
        f"$n}}]}}",
        "input: $new",
        'input: $new, idempotencyKey: "k"',
        "input: $new, idempotencyKey: $user",
    ],
    "createProduct": ['input: {name: "n", description: "", price: "1", currency: $user}'],
    "updateProduct": [
        f'input: {{id: "{IDS[1]}", name: $user, description: "d", price: "1", currency: "GBP", imageUrl: null}}',
        f'input: {{id: "{IDS[1]}", name: "n", description: "d", price: "1", currency: "GBP", expectedVersion: $n}}',
    ],
}
HEADER = (
    f'($id: ID = "{IDS[3]}", $ids: [ID!] = ["{IDS[5]}"], $n: Int = 4, $order: ID! = "{ORDERS[4]["id"]}", $user: '
    'String! = "ann", '
    "$new: CreateOrderInput!, $yes: Boolean! = true, $no: Boolean = false)"
)
NEW = {"user": "eve", "items": [{"productId": IDS[9], "quantity": 1}, {"productId": IDS[8], "quantity": 5}]}
VARIABLES = st.fixed_dictionaries(
    {"new": st.sampled_from([NEW, NEW, {**NEW, "email": None}, {"user": "eve"}, None])},
    optional={
        "id": st.sampled_from([IDS[7], UNKNOWN, None, 12]),
        "ids": st.sampled_from([IDS[:3], [], None, IDS[5], ["x"], IDS * 2]),
        "n": st.sampled_from([1, 2, 99, None, -1, "1"]),
        "order": st.sampled_from([ORDERS[2]["id"], UNKNOWN, None]),
        "user": st.sampled_from(["bob", "", "nobody"]),
        "yes": st.sampled_from([True, False]),
        "no": st.sampled_from([True, False, None]),
    },
)
KEYS = st.sampled_from(["", "", "", "a: ", "b: ", "zZ_9: "])
CONDITIONS = st.sampled_from(
    [
        "",
        "",
        "",
        "",
        " @include(if: $yes)",
        " @skip(if: $no)",
        " @skip(if: true)",
        " @include(if: $no) @skip(if: false)",
    ]
)


@st.composite
def selections(draw: st.DrawFn, object_type: GraphQLObjectType, fragments: list[str], depth: int = 0) -> str:
    parts: list[str] = []
    for _ in range(draw(st.integers(1, 4 if depth else 3))):
        kind = draw(st.integers(0, 9))
        if kind == 0:
            parts.append(f"{draw(KEYS)}__typename")
        elif kind == 1 and depth < 5:
            parts.append(
                f"... on {object_type.name}{draw(CONDITIONS)} {{ {draw(selections(object_type, fragments, depth + 1))} "
                f"}}"
            )
        elif kind == 2 and depth < 5:
            name = f"F{len(fragments)}"
            fragments.append("")
            fragments[int(name[1:])] = (
                f"fragment {name} on {object_type.name} {{ {draw(selections(object_type, fragments, depth + 1))} }}"
            )
            parts += [f"...{name}{draw(CONDITIONS)}"] * draw(st.integers(1, 2))
        else:
            name = draw(st.sampled_from(sorted(object_type.fields)))
            below = get_named_type(object_type.fields[name].type)
            # Mostly an alias of its own for each field: two fields with one key are invalid.
            key = draw(KEYS)
            text = f"{key.replace(':', f'_{name}:') if draw(st.integers(0, 9)) else key}{name}"
            if name in ARGUMENTS and object_type.name in ("Query", "Mutation"):
                text += f"({draw(st.sampled_from(ARGUMENTS[name]))})".replace("()", "")
            text += draw(CONDITIONS)
            if not is_leaf_type(below):
                text += f" {{ {draw(selections(below, fragments, depth + 1))} }}"
            parts.append(text)
    return " ".join(parts)


@st.composite
def documents(draw: st.DrawFn, mutation: bool) -> str:
    fragments: list[str] = []
    root_type = SCHEMA.mutation_type if mutation else SCHEMA.query_type
    body = draw(selections(root_type, fragments))
    header = HEADER
    for name in ("id", "ids", "n", "order", "user", "new", "yes", "no"):
        # An unused variable is invalid.
        if not any(f"${name}{end}" in text for text in (body, *fragments) for end in (")", ",", "}", " ", "]")):
            start = header.index(f"${name}:")
            ends = [
                header.find(f", ${other}:", start) for other in ("id", "ids", "n", "order", "user", "new", "yes", "no")
            ]
            end = min((e for e in ends if e > 0), default=-1)
            header = header[:start] + header[end + 2 :] if end > 0 else header[:start].rstrip(", ") + ")"
    header = "" if header == "()" else header
    return f"{'mutation' if mutation else 'query'} {header} {{ {body} }} {' '.join(fragments)}"


@RELAXED
@given(documents(mutation=False), VARIABLES, st.tuples(FAILS, FAILS))
def test_a_query_has_the_same_response(text: str, variables: dict[str, Any], fails: tuple[str, str]) -> None:
    assert_same(text, variables, fails)


@RELAXED
@given(documents(mutation=True), VARIABLES, st.tuples(FAILS, FAILS))
def test_a_mutation_has_the_same_response(text: str, variables: dict[str, Any], fails: tuple[str, str]) -> None:
    assert_same(text, variables, fails)


def test_most_generated_queries_are_valid_and_compiled() -> None:
    seen = {"valid": 0, "all": 0}

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(documents(mutation=False))
    def look(text: str) -> None:
        prepared = DocumentCache(SCHEMA, Limits(), DocumentCacheSize()).get(text, None)
        seen["all"] += 1
        seen["valid"] += not prepared.errors

    look()
    assert seen["valid"] > seen["all"] / 3, seen


@pytest.mark.parametrize("fails", ["", "unavailable", "rejects pages"])
def test_two_selections_of_one_join_are_both_filled(fails: str) -> None:
    text = """query ($yes: Boolean!) {
      orders(user: "ann") {
        a: items { p: product { id } q: product { available name @include(if: $yes) } } items { quantity } n: total
      }
      again: orders(user: "bob", limit: 2) { items { items { product { __typename price } } } }
      __typename
    }"""
    for yes in (True, False):
        assert_same(text, {"yes": yes}, (fails, ""))


def test_introspection_is_executed_by_graphql_core() -> None:
    response = assert_same("{ __schema { queryType { name } } products { total } }", {}, ("", ""))
    assert response == {"data": {"__schema": {"queryType": {"name": "Query"}}, "products": {"total": 119}}}


async def test_the_gateway_calls_the_clients_that_build_is_given() -> None:
    clients = Clients(
        ProductsClient(InProcessHttpClient("product", PRODUCTS, "")),
        OrdersClient(InProcessHttpClient("order", ORDERS, "")),
    )
    nowhere = HttpUpstream(url="http://127.0.0.1:1")
    config = Config(admin=Listen(port=1), http=GatewayHttp(port=free_port()), products=nowhere, orders=nowhere)
    async with build(config, Process(), clients) as server:
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.http.port}", timeout=60) as http:
            response = await http.post(
                "/graphql", json={"query": '{ products { total } orders(user: "bob") { total } }'}
            )
        await server.stop(1)
    assert response.json() == {"data": {"products": {"total": 119}, "orders": {"total": 4}}}


@pytest.mark.parametrize("name", plan_writers.DOCUMENTS)
async def test_the_benchmark_compares_writers_with_the_same_response(name: str) -> None:
    generated, closures, ratios = await plan_writers.measure(plan_writers.DOCUMENTS[name], rounds=2)
    assert generated > 0
    assert closures > 0
    assert len(ratios) == 2


def test_a_selection_set_whose_fields_are_all_skipped_is_empty() -> None:
    text = (
        'query ($no: Boolean!) { orders(user: "bob", limit: 1) { items { id @include(if: $no) items { product { '
        "id @include(if: $no) } } } } }"
    )
    response = assert_same(text, {"no": False}, ("", ""))
    [bobs_order] = response["data"]["orders"]["items"]
    assert bobs_order == {"items": [{"product": {}}]}
