"""The HTTP edge alone: routing, parsing, problems, limits, deadlines, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import httpx
import msgspec
import pytest
from msgspec import Meta, Struct
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Http
from market.kit.errors import BadInput, Conflict, Unavailable
from market.kit.http import edge
from market.kit.http.requests import idempotency_key, parse_query, read_body
from market.kit.http.responses import json_response


class Body(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=5)]
    count: Annotated[int, Meta(ge=0, le=9)] = 0
    inner: list[dict[str, int]] = []


class Query(Struct, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=10)] = 5
    word: str | None = None
    all: bool = False
    order: Literal["up", "down"] | None = None
    least: Annotated[int, Meta(ge=0, le=5)] | None = None


DECODER = msgspec.json.Decoder(Body)


class SoldOut(Conflict):
    type = "sold"
    title = "Sold"

    def extension_members(self):
        return {"left": 3}


async def echo_body(request: Request) -> Response:
    return json_response(await read_body(request, DECODER))


async def read_query(request: Request) -> Response:
    return json_response(parse_query(request, Query))


async def one(request: Request) -> Response:
    return json_response({"id": request.path_params["id"], "deadline": context.deadline.get()}, 200, {"X-Own": "yes"})


async def fail(request: Request) -> Response:
    what = request.path_params["what"]
    if what == "problem":
        raise SoldOut("sold out")
    if what == "unavailable":
        raise Unavailable("unavailable", retry_after=7, order_id="x")
    raise KeyError("a secret")


async def slow(_: Request) -> Response:
    await asyncio.sleep(0.3)
    return json_response({})


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = edge.application(
        {
            "POST /body": echo_body,
            "GET /query": read_query,
            "GET /one/{id}": one,
            "PUT /one/{id}": one,
            "DELETE /one/fixed": slow,
            "GET /fail/{what}": fail,
            "GET /slow": slow,
            "GET /one/{id}/part": one,
        },
        Http(port=1, max_body_bytes=2000, max_in_flight=2),
        timeouts={"PUT /one/{id}": 10},
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_a_path_selects_its_endpoint_and_its_parameters(http):
    assert (await http.get("/one/a%20b")).json()["id"] == "a b"
    assert (await http.get("/one/7/part")).json()["id"] == "7"
    assert (await http.delete("/one/fixed")).status_code == 200
    for path in ("/one", "/one/", "/one/a/b", "/one/a/", "/On/a", "/one/a%2Fb", "/query/", "/one/7/part/"):
        response = await http.get(path)
        assert (response.status_code, response.json()["type"]) == (404, "urn:market:problem:not-found"), path


async def test_another_method_gets_405_with_the_allowed_ones(http):
    response = await http.post("/one/7")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, PUT")
    assert (await http.head("/one/7")).status_code == 200


async def test_a_problem_becomes_a_problem_document_with_its_extension_members(http):
    response = await http.get("/fail/problem")
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "urn:market:problem:sold",
        "title": "Sold",
        "status": 409,
        "detail": "sold out",
        "left": 3,
    }
    unavailable = await http.get("/fail/unavailable")
    assert (unavailable.status_code, unavailable.headers["retry-after"], unavailable.json()["order_id"]) == (
        503,
        "7",
        "x",
    )


async def test_an_internal_error_gets_500_and_is_not_disclosed(http):
    response = await http.get("/fail/error")
    assert (response.status_code, response.json()["type"]) == (500, "urn:market:problem:internal")
    assert "secret" not in response.text


async def test_the_request_id_is_accepted_or_generated_and_returned(http):
    assert (await http.get("/one/7", headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for odd in ("", "a b", "x" * 129):
        generated = (await http.get("/nothing", headers={"X-Request-Id": odd})).headers["x-request-id"]
        assert len(generated) == 32


@pytest.mark.parametrize(
    ("method", "headers", "seconds"),
    [
        ("GET", {}, 3),
        ("PUT", {}, 10),
        ("GET", {"X-Deadline-Ms": "1500"}, 1.5),
        ("GET", {"X-Deadline-Ms": "60000"}, 3),
    ],
)
async def test_the_earlier_of_two_deadlines_applies(http, method, headers, seconds):
    before = time.monotonic()
    deadline = (await http.request(method, "/one/7", headers=headers)).json()["deadline"]
    assert before + seconds <= deadline <= time.monotonic() + seconds
    assert context.deadline.get() is None


async def test_an_invalid_deadline_gets_422(http):
    for odd in ("-1", "x", "1.5", "9" * 10):
        assert (await http.get("/one/7", headers={"X-Deadline-Ms": odd})).status_code == 422


async def test_a_caller_above_its_requests_in_flight_gets_429_while_another_one_is_served() -> None:
    app = edge.application({"GET /slow": slow}, Http(port=1, max_in_flight_per_caller=2))

    async def get(address: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/slow")

    responses = await asyncio.gather(*map(get, ["203.0.113.1"] * 5), get("203.0.113.2"))
    refused = [r for r in responses if r.status_code == 429]
    assert len(refused) == 3
    assert responses[-1].status_code == 200
    assert (refused[0].json()["type"], refused[0].headers["retry-after"]) == (
        "urn:market:problem:too-many-requests",
        "1",
    )
    assert (await get("203.0.113.1")).status_code == 200
    assert app.in_flight.requests_by_caller == {}


async def test_requests_above_max_in_flight_get_503_at_once(http):
    responses = await asyncio.gather(*(http.get("/slow") for _ in range(5)))
    assert sorted(r.status_code for r in responses) == [200, 200, 503, 503, 503]
    rejected = next(r for r in responses if r.status_code == 503)
    assert (rejected.json()["type"], rejected.headers["retry-after"]) == ("urn:market:problem:overloaded", "1")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ('{"name": "a"}', 200, None),
        ("{", 400, "body"),
        ('{"name": 1, "x": ', 400, "body"),
        ('{"x": NaN}', 400, "body"),
        ("[]", 422, "body"),
        ("{}", 422, "name"),
        ('{"name": ""}', 422, "name"),
        ('{"name": "a", "count": "1"}', 422, "count"),
        ('{"name": "a", "count": 10}', 422, "count"),
        ('{"name": "a", "odd": 1}', 422, "odd"),
        ('{"name": "a", "inner": [{"b": "x"}]}', 422, "inner[0][...]"),
        ('{"name": "a", "a`b\\n": 1}', 422, "a`b\n"),
        ("[" * 1500, 400, "body"),
    ],
)
async def test_a_body_is_parsed_strictly(http, body, status, field):
    response = await http.post("/body", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    if field:
        assert response.json()["errors"][0]["field"] == field


async def test_a_body_that_is_too_large_gets_413_with_and_without_content_length(http):
    async def pieces():
        for _ in range(30):
            yield b" " * 100

    for content in (b" " * 2001, pieces()):
        response = await http.post("/body", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
    assert (
        await http.post("/body", content=b" " * 1980 + b'{"name": "a"}', headers={"content-type": "application/json"})
    ).status_code == 200


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"limit": 5, "word": None, "all": False, "order": None, "least": None}),
        (
            "limit=10&word=a+b%26&all=true&order=up&least=0",
            {"limit": 10, "word": "a b&", "all": True, "order": "up", "least": 0},
        ),
        ("word=%D0%BB", {"limit": 5, "word": "л", "all": False, "order": None, "least": None}),
        ("limit=11", "limit: must be a whole number from 1 to 10"),
        ("limit=1e0", "limit: must be a whole number from 1 to 10"),
        ("limit=" + "9" * 5000, "limit: must be a whole number from 1 to 10"),
        ("least=6", "least: must be a whole number from 0 to 5"),
        ("all=1", "all: must be one of true, false"),
        ("order=", "order: must be one of down, up"),
        ("odd=1", "odd: is unknown"),
        ("word=a&word=b", "word: must not be repeated"),
        ("word=%ff", "query: must be a query string in UTF-8 with at most 50 parameters"),
        ("&".join(f"a{n}=1" for n in range(60)), "query: must be a query string in UTF-8 with at most 50 parameters"),
    ],
)
async def test_a_query_is_parsed_strictly(http, query, expected):
    response = await http.get(f"/query?{query}")
    if isinstance(expected, str):
        assert (response.status_code, response.json()["detail"]) == (422, expected)
    else:
        assert response.json() == expected


async def test_a_query_in_unescaped_utf8_is_parsed():
    scope = {"type": "http", "query_string": "word=лампа".encode(), "headers": []}
    assert parse_query(Request(scope), Query).word == "лампа"
    with pytest.raises(BadInput):
        parse_query(Request({**scope, "query_string": b"word=\xff"}), Query)


async def test_responses_are_counted_by_route_and_clients_cannot_create_labels(http):
    def count(**labels: str) -> float:
        return REGISTRY.get_sample_value("market_http_requests_total", labels) or 0

    before = count(method="GET", route="/one/{id}", status="200")
    odd = count(method="-", route="/one/{id}", status="405")
    # Other edges in this process share the gauge.
    in_flight = REGISTRY.get_sample_value("market_http_requests_in_flight")
    await http.get("/one/7")
    await http.get("/one/8")
    await http.request("BREW", "/one/9")
    assert count(method="GET", route="/one/{id}", status="200") == before + 2
    assert count(method="-", route="/one/{id}", status="405") == odd + 1
    assert REGISTRY.get_sample_value("market_http_requests_in_flight") == in_flight


def test_an_idempotency_key_has_visible_ascii_characters() -> None:
    def key(*values: bytes) -> str | None:
        headers = [(b"idempotency-key", value) for value in values]
        return idempotency_key(Request({"type": "http", "headers": headers}))

    assert key() is None
    assert key(b"!~" + b"k" * 253) == "!~" + "k" * 253
    for bad in (b"", b" ", b"a b", "ключ".encode(), b"\xe9", b"k" * 256, b"a\n"):
        with pytest.raises(BadInput, match="Idempotency-Key: must have 1 to 255 visible ASCII characters"):
            key(bad)
    with pytest.raises(BadInput, match="Idempotency-Key"):
        key(b"one", b"two")
