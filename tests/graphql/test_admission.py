"""The gateway with too many large requests: which ones wait, which ones are refused, and how GraphQL shows it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from prometheus_client import REGISTRY

from market.graphql.api import weigh
from market.graphql.config import GatewayHttp
from market.kit.config import Admission
from tests.graphql.graphql_gateway import Gateway, running_gateway
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

# One order of five lines, or one page of five orders, at a time; two of one caller may be in progress.
LIMITS = Admission(small_weight=4, max_large_weight=5, max_caller_weight=12, max_wait_seconds=PATIENCE)
CREATE = "mutation Create($input: CreateOrderInput!) { createOrder(input: $input) { status } }"
PAGE = 'query Page($limit: Int) { orders(user: "ann", limit: $limit) { total } }'


def _gateway() -> Any:
    http = GatewayHttp(port=free_port(), trusted_proxies=("127.0.0.1",))
    return running_gateway(http=http, admission=LIMITS)


async def _post(gateway: Gateway, query: str, address: str, **variables: Any) -> httpx.Response:
    call = {"query": query, "variables": variables}
    return await gateway.http.post("/graphql", json=call, headers={"x-forwarded-for": address})


def _order(gateway: Gateway, lines: int) -> dict[str, Any]:
    ids = list(gateway.products.resources)[:lines]
    return {"user": "ann", "items": [{"productId": product_id, "quantity": 1} for product_id in ids]}


async def _until_waiting(weight: int) -> None:
    await until(
        lambda: REGISTRY.get_sample_value("market_admission_waiting_weight", {"size": "large"}) == weight,
        what=f"waiting weight {weight}",
    )


async def test_a_caller_beyond_its_share_gets_429_as_graphql_over_http_while_others_are_served() -> None:
    async with _gateway() as gateway:
        gateway.orders.gate = asyncio.Event()
        greedy = [asyncio.create_task(_post(gateway, PAGE, "203.0.113.1", limit=5)) for _ in range(2)]
        await until(lambda: len(gateway.orders.calls) == 1)
        await _until_waiting(5)
        refused = await _post(gateway, PAGE, "203.0.113.1", limit=5)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["content-type"] == "application/graphql-response+json; charset=utf-8"
        assert refused.json() == {
            "errors": [
                {
                    "message": "this caller's requests in progress would total 15 items, but at most 12 are allowed; "
                    "wait for their responses",
                    "extensions": {"code": "TOO_MANY_REQUESTS", "retryAfter": 1},
                }
            ]
        }
        by_get = await gateway.http.get(
            "/graphql",
            params={"query": PAGE, "variables": '{"limit": 5}'},
            headers={"x-forwarded-for": "203.0.113.1"},
        )
        assert (by_get.status_code, by_get.headers["retry-after"]) == (429, "1")
        # Small requests are served, those of the same caller too.
        for address in ("203.0.113.1", "203.0.113.2"):
            response = await _post(gateway, "{ products(limit: 1) { total } }", address)
            assert response.json() == {"data": {"products": {"total": 230}}}
        assert len(gateway.orders.calls) == 1
        gateway.orders.gate.set()
        assert [(await response).status_code for response in greedy] == [200, 200]


async def test_an_order_weighs_its_lines_and_waits_before_it_is_sent_upstream() -> None:
    async with _gateway() as gateway:
        gateway.orders.gate = asyncio.Event()
        # The outer object of the variables and of the input weigh too.
        first, second = (
            asyncio.create_task(_post(gateway, CREATE, f"203.0.113.{n}", input=_order(gateway, 5))) for n in (1, 2)
        )
        await until(lambda: len(gateway.orders.calls) == 1)
        await until(lambda: (REGISTRY.get_sample_value("market_admission_waiting_weight", {"size": "large"}) or 0) > 5)
        assert len(gateway.orders.calls) == 1
        gateway.orders.gate.set()
        for response in (await first, await second):
            assert list(response.json()) == ["data"]
        assert [call[0] for call in gateway.orders.calls] == ["POST /api/order"] * 2
        assert [call[3]["x-forwarded-for"] for call in gateway.orders.calls] == ["203.0.113.1", "203.0.113.2"]


async def test_a_refusal_by_orders_is_the_fields_error(gateway: Gateway) -> None:
    gateway.orders.fail(429, "too-many-requests", headers={"retry-after": "3"}, detail="too many")
    call = {"query": CREATE, "variables": {"input": _order(gateway, 1)}}
    response = await gateway.http.post("/graphql", json=call)
    [error] = response.json()["errors"]
    assert (response.status_code, error["path"]) == (200, ["createOrder"])
    assert (error["message"], error["extensions"]) == ("too many", {"code": "TOO_MANY_REQUESTS", "retryAfter": 3})
    # Not retried: the pause is the client's.
    assert len(gateway.orders.calls) == 1


def test_a_text_weighs_its_objects_before_it_is_parsed() -> None:
    assert weigh(b"{ products { total } }") == 2
    assert weigh(b'{"items": [' + b'{"productId": "0190a3b0-0000-7000-8000-000000000000"},' * 1000) == 1001
    assert weigh(b" " * 12_800) == 100
    assert weigh(b"") == 1
