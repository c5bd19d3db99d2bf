"""GraphQL over HTTP as its specification requires, and a standard client unchanged."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportQueryError

from tests.graphql.graphql_gateway import UPSTREAM_TIMEOUT_SECONDS, Gateway

PREFERRED = "application/graphql-response+json"
LEGACY = "application/json"
QUERY = "{ products(limit: 1) { limit } }"
EXPECTED = {"data": {"products": {"limit": 1}}}


async def post(
    gateway: Gateway, body: Any, accept: str | None = PREFERRED, kind: str | None = LEGACY
) -> httpx.Response:
    headers = {k: v for k, v in (("accept", accept), ("content-type", kind)) if v is not None}
    request = gateway.http.build_request(
        "POST", "/graphql", content=body if isinstance(body, str | bytes) else json.dumps(body), headers=headers
    )
    for name in ("accept", "content-type"):
        if name not in headers:
            request.headers.pop(name, None)
    return await gateway.http.send(request)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PREFERRED, PREFERRED),
        (LEGACY, LEGACY),
        (None, LEGACY),
        ("", LEGACY),
        ("*/*", LEGACY),
        ("application/*", LEGACY),
        (f"*/*, {PREFERRED}", PREFERRED),
        (f"{PREFERRED};q=0.1, */*", LEGACY),
        ("*/*;v=" + "x" * 5000, LEGACY),
        (f"{PREFERRED}, {LEGACY};q=0.9", PREFERRED),
        (f"{LEGACY}, {PREFERRED}", LEGACY),
        (f"{LEGACY};q=0.5, {PREFERRED};q=0.6", PREFERRED),
        (f"{PREFERRED}; charset=utf-8, {LEGACY}; charset=utf-8", PREFERRED),
        (f"{PREFERRED};q=0, */*", LEGACY),
        (f"text/plain, {LEGACY}", LEGACY),
        (LEGACY.upper(), LEGACY),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", LEGACY),
    ],
)
async def test_the_response_has_the_preferred_media_type(gateway: Gateway, accept: str | None, kind: str) -> None:
    response = await post(gateway, {"query": QUERY}, accept)
    if f"{PREFERRED};q=0, */*" == accept:
        # The specification allows a server to reject this one, too.
        assert response.status_code in (200, 406)
        return
    assert (response.status_code, response.headers["content-type"], response.json()) == (
        200,
        f"{kind}; charset=utf-8",
        EXPECTED,
    )


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/*", f"{PREFERRED};q=0", "nonsense"])
async def test_a_client_that_accepts_neither_type_gets_406(gateway: Gateway, accept: str) -> None:
    assert (await post(gateway, {"query": QUERY}, accept)).status_code == 406


# Well-formed requests that fail as GraphQL: 400, but 200 in the legacy type.
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
async def test_a_request_error_is_400_and_in_the_legacy_type_200(gateway: Gateway, body: dict[str, Any]) -> None:
    new, old = await post(gateway, body), await post(gateway, body, LEGACY)
    assert (new.status_code, old.status_code) == (400, 200)
    assert new.json() == old.json()
    assert "data" not in new.json()
    assert new.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


# Malformed requests: 400 in both types.
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
async def test_a_malformed_request_is_400(gateway: Gateway, number: int) -> None:
    for accept in (PREFERRED, LEGACY):
        response = await post(gateway, MALFORMED[number], accept)
        assert response.status_code == 400
        assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_null_means_an_absent_parameter_and_unknown_parameters_are_ignored(gateway: Gateway) -> None:
    body = {"query": QUERY, "operationName": None, "variables": None, "extensions": None, "id": 7, "documentId": "x"}
    assert (await post(gateway, body)).json() == EXPECTED
    assert (
        await post(gateway, {"query": QUERY, "variables": {}, "extensions": {"a": 1}, "operationName": ""})
    ).json() == EXPECTED


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/graphql",
        f"{LEGACY}; charset=latin-1",
        PREFERRED,
    ],
)
async def test_a_post_that_is_not_json_is_415(gateway: Gateway, kind: str | None) -> None:
    response = await post(gateway, {"query": QUERY}, kind=kind)
    assert response.status_code == 415
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


@pytest.mark.parametrize("kind", [LEGACY, "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
async def test_every_spelling_of_the_json_content_type_is_accepted(gateway: Gateway, kind: str) -> None:
    assert (await post(gateway, {"query": QUERY}, kind=kind)).json() == EXPECTED


async def test_a_query_may_be_sent_by_get(gateway: Gateway) -> None:
    text = 'query A($n: Int) { products(limit: $n) { limit } } query B { orders(user: "x") { total } }'
    for accept, status in ((PREFERRED, 200), (LEGACY, 200)):
        parameters = {"query": text, "operationName": "A", "variables": '{"n": 1}', "extensions": "{}"}
        response = await gateway.http.get("/graphql", params=parameters, headers={"accept": accept})
        assert (response.status_code, response.json(), response.headers["content-type"]) == (
            status,
            EXPECTED,
            f"{accept}; charset=utf-8",
        )
    for parameters in ({"query": "{"}, {"query": text, "operationName": "A", "variables": '{"n": "x"}'}):
        assert (await gateway.http.get("/graphql", params=parameters, headers={"accept": PREFERRED})).status_code == 400
        assert (await gateway.http.get("/graphql", params=parameters, headers={"accept": LEGACY})).status_code == 200
    bad: list[dict[str, str]] = [
        {},
        {"query": ""},
        {"query": QUERY, "variables": "["},
        {"query": QUERY, "variables": "[]"},
        {"query": QUERY, "extensions": "5"},
    ]
    for parameters in bad:
        for accept in (PREFERRED, LEGACY):
            assert (
                await gateway.http.get("/graphql", params=parameters, headers={"accept": accept})
            ).status_code == 400
    assert (await gateway.http.get("/graphql?query=%ff")).status_code == 400
    repeated = await gateway.http.get("/graphql", params=[("query", QUERY), ("query", QUERY)])
    assert (repeated.status_code, repeated.json()["errors"][0]["message"]) == (400, "query: must not be repeated")
    assert (
        await gateway.http.get("/graphql", params={"query": QUERY, "operationName": "", "variables": "null"})
    ).json() == EXPECTED


async def test_a_mutation_by_get_is_405_and_changes_nothing(gateway: Gateway) -> None:
    before = len(gateway.products.resources)
    text = 'query Q { products { total } } mutation M { deleteProduct(id: "00000000-0000-4000-8000-000000000001") }'
    for accept in (PREFERRED, LEGACY):
        response = await gateway.http.get(
            "/graphql", params={"query": text, "operationName": "M"}, headers={"accept": accept}
        )
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert not gateway.products.calls
    assert len(gateway.products.resources) == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_405(gateway: Gateway, method: str) -> None:
    response = await gateway.http.request(method, "/graphql", json={"query": QUERY})
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("path", ["/graphql", "/graphql/"])
async def test_a_trailing_slash_changes_nothing(gateway: Gateway, path: str) -> None:
    responses = [
        await gateway.http.post(path, json={"query": QUERY}),
        await gateway.http.get(path, params={"query": QUERY}),
        await gateway.http.post(path, json={"query": "{"}),
        await gateway.http.post(path, json={"query": QUERY}, headers={"accept": "text/html"}),
        await gateway.http.get(path, params={"query": 'mutation { deleteProduct(id: "x") }'}),
        await gateway.http.put(path, json={"query": QUERY}),
    ]
    assert [r.status_code for r in responses] == [200, 200, 400, 406, 405, 405]
    assert [r.json() for r in responses[:2]] == [EXPECTED, EXPECTED]
    for response in responses[2:]:
        assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_no_cross_origin_access_is_allowed(gateway: Gateway) -> None:
    response = await gateway.http.post(
        "/graphql", json={"query": QUERY}, headers={"origin": "https://elsewhere.example"}
    )
    assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_request_id_trace_and_deadline_are_sent_upstream(gateway: Gateway) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"

    def sent_remaining(call: int, allowed: float, started: float) -> bool:
        """Return whether the call carried what remained of so many milliseconds."""
        elapsed = (time.monotonic() - started) * 1000
        return allowed - elapsed - 1 <= int(gateway.products.calls[call][3]["x-deadline-ms"]) <= allowed

    started = time.monotonic()
    response = await gateway.http.post(
        "/graphql",
        json={"query": QUERY},
        headers={"x-request-id": "abc-1", "traceparent": trace, "x-deadline-ms": "8000"},
    )
    assert sent_remaining(0, 8000, started)
    assert response.headers["x-request-id"] == "abc-1"
    sent = gateway.products.calls[0][3]
    assert (sent["x-request-id"], sent["traceparent"]) == ("abc-1", trace)
    started = time.monotonic()
    await gateway.http.post("/graphql", json={"query": QUERY})
    assert sent_remaining(1, 1000 * UPSTREAM_TIMEOUT_SECONDS, started)
    response = await gateway.http.post("/graphql", json={"query": QUERY}, headers={"x-deadline-ms": "0"})
    assert response.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"


async def test_the_clients_address_is_sent_upstream_and_a_forged_one_is_not(gateway: Gateway) -> None:
    forged = {"x-forwarded-for": "198.51.100.1", "forwarded": "for=198.51.100.1"}
    await gateway.http.post("/graphql", json={"query": QUERY}, headers=forged)
    sent = gateway.products.calls[0][3]
    assert (sent["x-forwarded-for"], "forwarded" in sent) == ("127.0.0.1", False)


async def test_the_client_gql_works_unchanged(gateway: Gateway) -> None:
    transport = AIOHTTPTransport(url=gateway.url)
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
    # A request error reaches the client's user as one, too.
    async with Client(transport=AIOHTTPTransport(url=gateway.url), execute_timeout=60) as client:
        with pytest.raises(TransportQueryError, match="Cannot query field"):
            await client.execute(gql("{ nothing }"))


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "If-Unmodified-Since"])
async def test_a_condition_is_refused_instead_of_ignored(gateway: Gateway, header: str) -> None:
    for response in (
        await gateway.http.post(gateway.url, json={"query": "{ __typename }"}, headers={header: "*"}),
        await gateway.http.get(gateway.url, params={"query": "{ __typename }"}, headers={header: "*"}),
    ):
        assert response.status_code == 400
        assert response.json()["errors"][0]["extensions"]["field"] == header
