"""The gateway verifies tokens, forwards them to products and orders alone, and lets these decide."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from market.graphql.config import Config, GatewayHttp
from market.kit.config import Admission, ConfigError, load
from market.kit.process.lifecycle import Process
from market.kit.process.tracing import Tracer
from tests.graphql.graphql_gateway import Gateway, code, running_gateway
from tests.graphql.signed_in import ProtectedUpstream, bearer, claims_of, protected_gateway
from tests.support.issuer import Fault, Issuer, SigningKey
from tests.support.ports import free_port
from tests.support.waiting import until

ORDERS = "{ orders(limit: 50) { total items { id user items { product { name } } } } }"
PRODUCTS = "{ products(limit: 1) { items { name } } }"
STOCK = "{ products(limit: 1) { items { name stock } } }"
CREATE = "mutation ($input: CreateOrderInput!) { createOrder(input: $input) { id user } }"
PREFERRED, LEGACY = "application/graphql-response+json", "application/json"


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as it:
        yield it


@pytest.fixture(scope="module")
async def running(issuer: Issuer) -> AsyncIterator[Gateway]:
    async with protected_gateway(issuer) as it:
        yield it


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.products.reset()
    running.orders.reset()
    return running


async def _post(
    gateway: Gateway, query: str, token: str | None = None, *, http: httpx.AsyncClient | None = None, **headers: str
) -> httpx.Response:
    more = headers | (bearer(token) if token else {})
    return await (http or gateway.http).post(gateway.url, json={"query": query}, headers=more)


async def test_without_a_token_products_are_read_and_orders_are_refused_in_the_words_of_orders(
    gateway: Gateway,
) -> None:
    response = await _post(gateway, "{ products(limit: 1) { items { name } } orders { total } }")
    assert response.status_code == 200
    assert response.json() == {
        "data": {"products": {"items": [{"name": "Thing 1 “é”"}]}, "orders": None},
        "errors": [
            {
                "message": "orders: sign in first",
                "locations": [{"line": 1, "column": 41}],
                "path": ["orders"],
                "extensions": {"code": "UNAUTHENTICATED"},
            }
        ],
    }
    assert (gateway.products.tokens(), gateway.orders.tokens()) == ([None], [None])


async def test_a_buyer_who_names_nobody_gets_and_places_their_own_orders(gateway: Gateway, issuer: Issuer) -> None:
    token = issuer.token("bob")
    listed = (await _post(gateway, ORDERS, token)).json()["data"]["orders"]
    assert {order["user"] for order in listed["items"]} == {"bob"}
    assert gateway.orders.calls[0][1] == "limit=50"
    item = {"productId": listed["items"][0]["id"], "quantity": 1}
    body = {"query": CREATE, "variables": {"input": {"items": [item]}}}
    created = (await gateway.http.post("/graphql", json=body, headers=bearer(token))).json()
    assert created["data"]["createOrder"]["user"] == "bob"
    method, _, sent, _ = gateway.orders.calls[-1]
    assert (method, sent) == ("POST /api/order", {"items": [{"product_id": item["productId"], "quantity": 1}]})


async def test_a_refusal_by_orders_has_the_code_forbidden_and_its_words(gateway: Gateway, issuer: Issuer) -> None:
    item = {"productId": "019b76da-0000-7000-8000-000000000001", "quantity": 1}
    body = {"query": CREATE, "variables": {"input": {"user": "ann", "items": [item]}}}
    result = (await gateway.http.post("/graphql", json=body, headers=bearer(issuer.token("bob")))).json()
    assert result["data"] == {"createOrder": None}
    assert result["errors"][0]["message"] == "user must be the one who has signed in"
    assert result["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.parametrize(("status", "expected"), [(401, "UNAUTHENTICATED"), (403, "FORBIDDEN")])
async def test_a_refusal_without_a_problem_document_has_its_code(gateway: Gateway, status: int, expected: str) -> None:
    gateway.orders.fail(status, "", headers={"content-type": "text/html"})
    assert code((await _post(gateway, ORDERS)).json()) == expected


async def test_stock_is_for_merchants(gateway: Gateway, issuer: Issuer) -> None:
    merchant = (await _post(gateway, STOCK, issuer.token("mia", roles=["merchant"]))).json()
    assert merchant == {"data": {"products": {"items": [{"name": "Thing 1 “é”", "stock": 0}]}}}
    buyer = (await _post(gateway, STOCK, issuer.token("bob"))).json()
    assert (buyer["data"], code(buyer)) == ({"products": None}, "FORBIDDEN")
    anonymous = (await _post(gateway, STOCK)).json()
    assert (anonymous["data"], code(anonymous)) == ({"products": None}, "UNAUTHENTICATED")


async def test_the_callers_token_goes_with_every_call_of_its_request_and_with_no_other(
    gateway: Gateway, issuer: Issuer
) -> None:
    ann, bob = issuer.token("ann"), issuer.token("bob")
    # One connection, so that what a request leaves behind would be found by the next.
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=gateway.http.base_url, limits=limits, timeout=60) as http:
        for token, expected in ((ann, f"Bearer {ann}"), (None, None), (bob, f"Bearer {bob}"), (None, None)):
            gateway.products.calls.clear()
            gateway.orders.calls.clear()
            query = "{ orders { items { items { product { name } } } } products { total } }"
            await http.post("/graphql", json={"query": query}, headers=bearer(token) if token else {})
            assert set(gateway.products.tokens() + gateway.orders.tokens()) == {expected}
            assert len(gateway.products.tokens()) == (2 if token else 1)


async def test_without_sign_in_the_header_of_a_client_goes_nowhere(issuer: Issuer) -> None:
    async with running_gateway(ProtectedUpstream) as gateway:
        response = await _post(gateway, PRODUCTS, issuer.token("ann"))
        assert response.json() == {"data": {"products": {"items": [{"name": "Thing 1 “é”"}]}}}
        assert (await _post(gateway, PRODUCTS, "broken")).status_code == 200
        assert gateway.products.tokens() == [None, None]


@pytest.mark.parametrize("media_type", [PREFERRED, LEGACY])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_broken_token_is_the_error_of_the_whole_request(
    gateway: Gateway, issuer: Issuer, media_type: str, method: str
) -> None:
    broken = {
        "expired": issuer.token(expires_in=-300),
        "another audience": issuer.token(audience="other"),
        "another issuer": issuer.token(issuer="https://issuer.example.com"),
        "another key": issuer.token(key=SigningKey(kid=issuer.signing_key.kid)),
        "no signature": issuer.token(algorithm="none"),
        "a secret": issuer.token(algorithm="HS256"),
        "no token": "nonsense",
    }
    for name, token in broken.items():
        headers = {"accept": media_type, **bearer(token)}
        if method == "GET":
            response = await gateway.http.get("/graphql", params={"query": PRODUCTS}, headers=headers)
        else:
            response = await gateway.http.post("/graphql", json={"query": PRODUCTS}, headers=headers)
        assert response.status_code == 401, name
        assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert response.headers["www-authenticate"].startswith('Bearer realm="market", error="invalid_token"')
        result = response.json()
        assert list(result) == ["errors"], name
        assert code(result) == "UNAUTHENTICATED"
        assert token not in response.text
    assert gateway.products.calls == []


async def test_a_token_of_100_kilobytes_is_refused(gateway: Gateway, issuer: Issuer) -> None:
    response = await _post(gateway, PRODUCTS, issuer.token("ann", padding="x" * 100_000))
    assert response.status_code in (401, 431)
    assert gateway.products.calls == []


async def test_64_callers_at_once_get_their_own_orders_with_their_own_tokens_though_one_leaves(
    gateway: Gateway, issuer: Issuer
) -> None:
    subjects = [f"buyer-{n}" for n in range(64)]
    template = next(iter(gateway.orders.resources.values()))
    own = {f"019b76da-0000-7000-8000-{n:012x}": subject for n, subject in enumerate(subjects)}
    gateway.orders.resources |= {i: {**template, "id": i, "user": subject} for i, subject in own.items()}
    gateway.orders.gate = asyncio.Event()
    http = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60)
    tokens = {subject: issuer.token(subject) for subject in subjects}

    async def list_own(subject: str, attempt: int) -> Any:
        # The request id tells whose request caused a call.
        request_id = {"x-request-id": f"{subject}.{attempt}"}
        return (await _post(gateway, ORDERS, tokens[subject], http=http, **request_id)).json()

    try:
        running = {(s, n): asyncio.create_task(list_own(s, n)) for n in range(2) for s in subjects}
        await until(lambda: len(gateway.orders.calls) == 128)
        leaving = running.pop(("buyer-7", 0))
        leaving.cancel()
        gateway.orders.gate.set()
        results = dict(zip(running, await asyncio.gather(*running.values()), strict=True))
        with pytest.raises(asyncio.CancelledError):
            await leaving
    finally:
        await http.aclose()
        for order_id in own:
            del gateway.orders.resources[order_id]
    for (subject, _), result in results.items():
        assert "errors" not in result
        assert [own[order["id"]] for order in result["data"]["orders"]["items"]] == [subject]
    for upstream in (gateway.products, gateway.orders):
        callers = [
            (headers["x-request-id"].split(".")[0], (claims_of(headers.get("authorization", "")) or {}).get("sub"))
            for _, _, _, headers in upstream.calls
        ]
        assert len(callers) >= 127
        assert [pair for pair in callers if pair[0] != pair[1]] == []


async def test_documents_and_plans_are_shared_by_callers_but_not_what_they_return(
    gateway: Gateway, issuer: Issuer
) -> None:
    # The same text, so that the second caller uses the plan of the first.
    for subject in ("ann", "bob"):
        response = await _post(gateway, ORDERS, issuer.token(subject))
        assert {order["user"] for order in response.json()["data"]["orders"]["items"]} == {subject}
        assert response.headers["cache-control"] == "no-store"


async def test_a_token_that_orders_rejects_though_the_gateway_has_verified_it_is_logged(
    gateway: Gateway, issuer: Issuer
) -> None:
    gateway.orders.fail(401, "unauthenticated", times=0, detail="the token is not for this audience")
    token = issuer.token("ann")
    with capture_logs() as lines:
        result = (await _post(gateway, ORDERS, token)).json()
        # An anonymous caller gets the same status, and nothing has gone wrong.
        await _post(gateway, ORDERS)
    assert (code(result), result["errors"][0]["message"]) == ("UNAUTHENTICATED", "the token is not for this audience")
    assert [line for line in lines if line["log_level"] == "warning"] == [
        {
            "component": "graphql",
            "event": "upstream rejected a verified token",
            "log_level": "warning",
            "upstream": "orders",
            "reason": "the token is not for this audience",
        }
    ]


async def test_no_token_is_in_logs_spans_or_errors(issuer: Issuer) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    process = Process(tracer=Tracer(provider.get_tracer("test")))
    tokens = [
        issuer.token("ann"),
        issuer.token("ann", expires_in=-300),
        f"{issuer.token('ann')}x",
        "not-a-token-at-all",
    ]
    with capture_logs() as lines:
        async with protected_gateway(issuer, process=process) as gateway:
            texts = []
            for token in tokens:
                for prepare in (
                    lambda: None,
                    lambda: gateway.orders.fail(401, "unauthenticated", times=0),
                    lambda: gateway.orders.fail(500, "internal", times=0, headers={"content-type": "text/plain"}),
                ):
                    prepare()
                    texts.append((await _post(gateway, ORDERS, token)).text)
                gateway.orders.reset()
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) == 3
    for secret in (part for token in tokens for part in {token, token.rpartition(".")[2]} if len(part) > 10):
        assert [text for text in [*texts, *spans, *map(repr, lines)] if secret in text] == []


async def test_callers_are_counted_by_their_subject_not_by_their_address(issuer: Issuer) -> None:
    http = GatewayHttp(port=free_port(), trusted_proxies=("127.0.0.1",))
    limits = Admission(small_weight=4, max_large_weight=30, max_caller_weight=12)
    page = "{ orders(limit: 10) { total } }"
    ann, bob = issuer.token("ann"), issuer.token("bob")
    async with protected_gateway(issuer, http=http, admission=limits) as gateway:
        gateway.orders.gate = asyncio.Event()
        first = asyncio.create_task(_post(gateway, page, ann, **{"x-forwarded-for": "203.0.113.1"}))
        await until(lambda: len(gateway.orders.calls) == 1)
        elsewhere = await _post(gateway, page, ann, **{"x-forwarded-for": "203.0.113.2"})
        assert (elsewhere.status_code, code(elsewhere.json())) == (429, "TOO_MANY_REQUESTS")
        other = asyncio.create_task(_post(gateway, page, bob, **{"x-forwarded-for": "203.0.113.1"}))
        await until(lambda: len(gateway.orders.calls) == 2)
        gateway.orders.gate.set()
        assert [r.status_code for r in await asyncio.gather(first, other)] == [200, 200]


async def test_the_rate_of_requests_is_limited_by_subject(issuer: Issuer) -> None:
    http = GatewayHttp(port=free_port(), max_requests_per_second_per_caller=0.01, max_burst_per_caller=2)
    async with protected_gateway(issuer, http=http) as gateway:
        ann, bob = issuer.token("ann"), issuer.token("bob")
        responses = [await _post(gateway, PRODUCTS, token) for token in (ann, ann, issuer.token("ann"), bob, None)]
        assert [response.status_code for response in responses] == [200, 200, 429, 200, 200]
        refused = responses[2]
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"].startswith(PREFERRED)
        assert code(refused.json()) == "TOO_MANY_REQUESTS"


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_while_the_issuer_fails_known_callers_are_served_and_products_are_read(fault: Fault | None) -> None:
    async with Issuer().serving() as issuer:
        known, later = issuer.token("ann"), issuer.token("bob")
        async with protected_gateway(issuer, auth={"timeout_seconds": 0.5, "min_refetch_seconds": 0.1}) as gateway:

            async def is_known() -> bool:
                return (await _post(gateway, ORDERS, known)).status_code == 200

            # On a busy machine the first attempts to fetch the keys may take longer than half a second.
            await until(is_known)
            async with issuer.away() if fault is None else issuer.faulty(fault):
                assert (await _post(gateway, ORDERS, known)).json()["data"]["orders"]["total"] == 25
                # The keys are kept, so a token that was not seen before can be verified.
                assert (await _post(gateway, ORDERS, later)).json()["data"]["orders"]["total"] == 5
                unknown = await _post(gateway, ORDERS, issuer.token(key=SigningKey()))
                assert unknown.status_code in (401, 503)
                assert (await _post(gateway, PRODUCTS)).json()["data"]["products"] is not None
        assert issuer.max_sent_bytes < 8 * 1024 * 1024


@pytest.mark.parametrize("fault", [None, *Fault])
async def test_if_the_issuer_has_never_responded_products_are_read_and_tokens_are_not_judged(
    fault: Fault | None,
) -> None:
    async with Issuer().serving() as issuer:
        async with issuer.away() if fault is None else issuer.faulty(fault):
            async with protected_gateway(issuer, auth={"timeout_seconds": 0.5, "min_refetch_seconds": 0.1}) as gateway:
                assert (await _post(gateway, PRODUCTS)).json()["data"]["products"] is not None
                response = await _post(gateway, ORDERS, issuer.token("ann"))
                assert (response.status_code, code(response.json())) == (503, "UNAVAILABLE")
                assert int(response.headers["retry-after"]) >= 1
                assert gateway.orders.calls == []


@pytest.mark.parametrize(
    ("auth", "graphiql", "reason"),
    [
        ("{mode: open}", "{client_id: page}", "graphiql.client_id can only be set if auth.mode is required"),
        (
            "{mode: required, issuer: 'https://id.example.com'}",
            "{client_id: market}",
            "graphiql.client_id must not be auth.audience, got market for both",
        ),
        (
            "{mode: required, issuer: 'https://id.example.com'}",
            "{client_id: page, scope: email}",
            "graphiql: scope must contain openid, got email",
        ),
    ],
)
def test_a_configuration_with_which_the_page_cannot_sign_in_is_rejected(
    tmp_path: Path, auth: str, graphiql: str, reason: str
) -> None:
    file = tmp_path / "graphql.yaml"
    upstreams = "products: {url: 'http://127.0.0.1:1'}\norders: {url: 'http://127.0.0.1:1'}\n"
    file.write_text(f"admin: {{port: 1}}\nhttp: {{port: 1}}\n{upstreams}auth: {auth}\ngraphiql: {graphiql}\n")
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load(file, Config, {})
