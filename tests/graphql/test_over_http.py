"""GraphQL over HTTP, as its specification says it; and standard clients unchanged."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportQueryError
from graphql_shop import NEIGHBOUR_SECONDS, Gateway

NEW = "application/graphql-response+json"
OLD = "application/json"
QUERY = "{ products(limit: 1) { limit } }"
GOOD = {"data": {"products": {"limit": 1}}}


async def post(shop: Gateway, body: Any, accept: str | None = NEW, kind: str | None = OLD) -> httpx.Response:
    headers = {k: v for k, v in (("accept", accept), ("content-type", kind)) if v is not None}
    request = shop.http.build_request(
        "POST", "/graphql", content=body if isinstance(body, str | bytes) else json.dumps(body), headers=headers
    )
    for name in ("accept", "content-type"):
        if name not in headers:
            request.headers.pop(name, None)
    return await shop.http.send(request)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (NEW, NEW),
        (OLD, OLD),
        (None, NEW),
        ("*/*", NEW),
        ("application/*", NEW),
        (f"{NEW}, {OLD};q=0.9", NEW),
        (f"{OLD}, {NEW}", OLD),
        (f"{OLD};q=0.5, {NEW};q=0.6", NEW),
        (f"{NEW}; charset=utf-8, {OLD}; charset=utf-8", NEW),
        (f"{NEW};q=0, */*", OLD),
        (f"text/plain, {OLD}", OLD),
        (OLD.upper(), OLD),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", OLD),
    ],
)
async def test_the_answer_is_in_the_type_that_is_liked_best(shop: Gateway, accept: str | None, kind: str) -> None:
    response = await post(shop, {"query": QUERY}, accept)
    if f"{NEW};q=0, */*" == accept:
        # Who takes anything but the preferred type: refusing is within the specification, too.
        assert response.status_code in (200, 406)
        return
    assert (response.status_code, response.headers["content-type"], response.json()) == (
        200,
        f"{kind}; charset=utf-8",
        GOOD,
    )


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/*", f"{NEW};q=0", "nonsense"])
async def test_who_takes_neither_type_gets_406(shop: Gateway, accept: str) -> None:
    assert (await post(shop, {"query": QUERY}, accept)).status_code == 406


# What is well formed as a request, and fails as GraphQL: 400, but 200 in the legacy type.
FAILING: list[dict[str, Any]] = [
    {"query": "{"},
    {"query": ""},
    {"query": "{ nothing }"},
    {"query": "query A { products { total } } query B { products { total } }"},
    {"query": QUERY, "operationName": "Other"},
    {"query": "query ($n: Int!) { products(limit: $n) { total } }"},
    {"query": "query ($n: Int!) { products(limit: $n) { total } }", "variables": {"n": "x"}},
]


@pytest.mark.parametrize("body", FAILING)
async def test_a_request_error_is_400_and_in_the_legacy_type_200(shop: Gateway, body: dict[str, Any]) -> None:
    new, old = await post(shop, body), await post(shop, body, OLD)
    assert (new.status_code, old.status_code) == (400, 200)
    assert new.json() == old.json()
    assert "data" not in new.json()
    assert new.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


# What is no request at all: 400 in both types.
MALFORMED: list[Any] = [
    "NONSENSE",
    '{"query":',
    b"\xff\xfe",
    "[" * 100_000,
    "null",
    "[]",
    [{"query": QUERY}],
    {},
    {"qeury": QUERY},
    {"query": 5},
    {"query": None},
    {"query": {"a": 1}},
    {"query": QUERY, "operationName": 5},
    {"query": QUERY, "operationName": {}},
    {"query": QUERY, "variables": "x"},
    {"query": QUERY, "variables": [7]},
    {"query": QUERY, "extensions": "x"},
    {"query": QUERY, "extensions": [0]},
    '{"query": "{ __typename }", "variables": {"a": 1e999}}',
    '{"query": "\\ud800"}',
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
async def test_what_is_no_request_is_400(shop: Gateway, number: int) -> None:
    for accept in (NEW, OLD):
        response = await post(shop, MALFORMED[number], accept)
        assert response.status_code == 400
        assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_null_stands_for_an_absent_parameter_and_others_are_ignored(shop: Gateway) -> None:
    body = {"query": QUERY, "operationName": None, "variables": None, "extensions": None, "id": 7, "documentId": "x"}
    assert (await post(shop, body)).json() == GOOD
    assert (
        await post(shop, {"query": QUERY, "variables": {}, "extensions": {"a": 1}, "operationName": ""})
    ).json() == GOOD


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/graphql",
        f"{OLD}; charset=latin-1",
        NEW,
    ],
)
async def test_a_post_that_is_not_json_is_415(shop: Gateway, kind: str | None) -> None:
    response = await post(shop, {"query": QUERY}, kind=kind)
    assert response.status_code == 415
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


@pytest.mark.parametrize("kind", [OLD, "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
async def test_json_is_taken_however_it_is_written(shop: Gateway, kind: str) -> None:
    assert (await post(shop, {"query": QUERY}, kind=kind)).json() == GOOD


async def test_a_query_comes_by_get_too(shop: Gateway) -> None:
    text = 'query A($n: Int) { products(limit: $n) { limit } } query B { orders(user: "x") { total } }'
    for accept, status in ((NEW, 200), (OLD, 200)):
        given = {"query": text, "operationName": "A", "variables": '{"n": 1}', "extensions": "{}"}
        response = await shop.http.get("/graphql", params=given, headers={"accept": accept})
        assert (response.status_code, response.json(), response.headers["content-type"]) == (
            status,
            GOOD,
            f"{accept}; charset=utf-8",
        )
    for given in ({"query": "{"}, {"query": text, "operationName": "A", "variables": '{"n": "x"}'}):
        assert (await shop.http.get("/graphql", params=given, headers={"accept": NEW})).status_code == 400
        assert (await shop.http.get("/graphql", params=given, headers={"accept": OLD})).status_code == 200
    bad: list[dict[str, str]] = [
        {},
        {"query": ""},
        {"query": QUERY, "variables": "["},
        {"query": QUERY, "variables": "[]"},
        {"query": QUERY, "extensions": "5"},
    ]
    for given in bad:
        for accept in (NEW, OLD):
            assert (await shop.http.get("/graphql", params=given, headers={"accept": accept})).status_code == 400
    assert (await shop.http.get("/graphql?query=%ff")).status_code == 400
    twice = await shop.http.get("/graphql", params=[("query", QUERY), ("query", QUERY)])
    assert (twice.status_code, twice.json()["errors"][0]["message"]) == (400, "query: is given twice")
    assert (
        await shop.http.get("/graphql", params={"query": QUERY, "operationName": "", "variables": "null"})
    ).json() == GOOD


async def test_a_mutation_by_get_is_405_and_does_nothing(shop: Gateway) -> None:
    before = len(shop.products.things)
    text = 'query Q { products { total } } mutation M { deleteProduct(id: "00000000-0000-4000-8000-000000000001") }'
    for accept in (NEW, OLD):
        response = await shop.http.get(
            "/graphql", params={"query": text, "operationName": "M"}, headers={"accept": accept}
        )
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert not shop.products.calls
    assert len(shop.products.things) == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_405(shop: Gateway, method: str) -> None:
    response = await shop.http.request(method, "/graphql", json={"query": QUERY})
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_no_foreign_page_is_let_in(shop: Gateway) -> None:
    response = await shop.http.post("/graphql", json={"query": QUERY}, headers={"origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_request_id_trace_and_deadline_travel_on(shop: Gateway) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

    def left(call: int, allowed: float, started: float) -> bool:
        """Whether the call was told what was left of so many milliseconds."""
        gone = (time.monotonic() - started) * 1000
        return allowed - gone - 1 <= int(shop.products.calls[call][3]["x-deadline-ms"]) <= allowed

    started = time.monotonic()
    response = await shop.http.post(
        "/graphql",
        json={"query": QUERY},
        headers={"x-request-id": "abc-1", "traceparent": trace, "x-deadline-ms": "8000"},
    )
    assert left(0, 8000, started)
    assert response.headers["x-request-id"] == "abc-1"
    sent = shop.products.calls[0][3]
    assert (sent["x-request-id"], sent["traceparent"]) == ("abc-1", trace)
    started = time.monotonic()
    await shop.http.post("/graphql", json={"query": QUERY})
    assert left(1, 1000 * NEIGHBOUR_SECONDS, started)
    response = await shop.http.post("/graphql", json={"query": QUERY}, headers={"x-deadline-ms": "0"})
    assert response.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"


async def test_the_client_gql_works_unchanged(shop: Gateway) -> None:
    transport = AIOHTTPTransport(url=shop.url)
    async with Client(transport=transport, fetch_schema_from_transport=True, execute_timeout=60) as client:
        query = gql(
            "query ($user: String!) { orders(user: $user, limit: 2) { total items { id items { product { name } } } } }"
        )
        query.variable_values = {"user": "ann"}
        result = await client.execute(query)
        assert (result["orders"]["total"], len(result["orders"]["items"])) == (25, 2)
        with pytest.raises(TransportQueryError) as e:
            await client.execute(gql('{ product(id: "x") { id } }'))
        assert e.value.errors is not None
        assert e.value.errors[0]["extensions"]["code"] == "NOT_FOUND"
    # A request error reaches its user as one, too.
    async with Client(transport=AIOHTTPTransport(url=shop.url), execute_timeout=60) as client:
        with pytest.raises(TransportQueryError, match="Cannot query field"):
            await client.execute(gql("{ nothing }"))
