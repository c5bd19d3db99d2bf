"""Placing orders under overload: which requests wait, which are refused, and that a refused order stores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from market.orders.api import weigh
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service
from .service import IDLE, MakeSettings, Service
from .stock import Stock

# An order of more than two lines is large. Of orders with five lines, one is placed at a time and four may wait. A
# caller may have two in progress.
LIMITS = {
    "small_weight": 2,
    "max_small_weight": 2,
    "max_large_weight": 5,
    "max_caller_weight": 12,
    "max_waiting_weight": 20,
    # Longer than a test.
    "max_wait_seconds": 40,
}


@pytest.fixture
async def service(make_settings: MakeSettings, migrated: None, tmp_path: Path) -> AsyncIterator[Service]:
    settings = make_settings(recovery=IDLE, admission=LIMITS)
    settings["http"]["trusted_proxies"] = ["127.0.0.1"]
    async with gated_service(settings, tmp_path) as service:
        yield service


@pytest.fixture
async def lines(catalogue: FakeCatalogue, stock: Stock) -> list[tuple[str, int]]:
    products = [catalogue.add() for _ in range(5)]
    for product in products:
        await stock.set(product, 100)
    return [(product, 1) for product in products]


async def _place(service: Service, lines: Any, address: str, *, user: str = "ada", key: str | None = None) -> Any:
    items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]
    headers = {"X-Forwarded-For": address} | ({"Idempotency-Key": key} if key else {})
    return await service.http.post("/api/order", json={"user": user, "items": items}, headers=headers)


async def _until_waiting(weight: int) -> None:
    await until(
        lambda: REGISTRY.get_sample_value("market_admission_waiting_weight", {"size": "large"}) == weight,
        what=f"{weight} waiting lines",
    )


async def test_a_caller_beyond_its_share_gets_429_while_others_are_served(
    service: Service, lines: list[tuple[str, int]]
) -> None:
    before_intent = gate_at(service, "orders.before-intent")
    # One is being placed and one waits.
    greedy = [asyncio.create_task(_place(service, lines, "203.0.113.1")) for _ in range(2)]
    await before_intent.wait_until_reached()
    await _until_waiting(5)
    refused = await _place(service, lines, "203.0.113.1", user="refused", key="refused-1")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json() == {
        "type": "urn:market:problem:too-many-requests",
        "title": "Too many requests",
        "status": 429,
        "detail": "this caller's requests in progress would total 15 lines, but at most 12 are allowed; wait for their "
        "responses",
    }
    # Small orders are served beside large ones, those of the same caller too.
    for address in ("203.0.113.1", "203.0.113.2"):
        assert (await _place(service, lines[:1], address)).status_code == 201
    honest = asyncio.create_task(_place(service, lines, "203.0.113.2"))
    before_intent.open()
    assert [(await response).status_code for response in (*greedy, honest)] == [201, 201, 201]
    # The refused order left nothing, and its key is free.
    assert await service.documents.count_documents({"user": "refused"}) == 0
    repeated = await _place(service, lines, "203.0.113.1", user="refused", key="refused-1")
    assert repeated.status_code == 201
    assert (await _place(service, lines, "203.0.113.1", user="refused", key="refused-1")).status_code == 200
    assert await service.documents.count_documents({"user": "refused"}) == 1


async def test_a_full_queue_refuses_with_503_and_stores_nothing(service: Service, lines: list[tuple[str, int]]) -> None:
    before_intent = gate_at(service, "orders.before-intent")
    placed = [asyncio.create_task(_place(service, lines, "203.0.113.1"))]
    await before_intent.wait_until_reached()
    others = [asyncio.create_task(_place(service, lines, f"203.0.113.{n}", user="queue")) for n in range(2, 7)]
    done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    [refused] = [task.result() for task in done]
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:market:problem:overloaded")
    assert refused.headers["retry-after"] == "1"
    assert await service.documents.count_documents({"user": "queue"}) == 0
    before_intent.open()
    assert [(await response).status_code for response in (*placed, *waiting)] == [201] * 5
    assert await service.documents.count_documents({"user": "queue"}) == 4


async def test_an_order_whose_client_has_left_the_queue_is_not_placed(
    service: Service, lines: list[tuple[str, int]]
) -> None:
    before_intent = gate_at(service, "orders.before-intent")
    placed = asyncio.create_task(_place(service, lines, "203.0.113.1"))
    await before_intent.wait_until_reached()
    # With a connection of its own, which ends with the request.
    async with httpx.AsyncClient(base_url=service.http.base_url) as leaving:
        items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]
        request = asyncio.create_task(leaving.post("/api/order", json={"user": "left", "items": items}))
        await _until_waiting(5)
        request.cancel()
    last = asyncio.create_task(_place(service, lines, "203.0.113.2", user="last"))
    await _until_waiting(10)
    before_intent.open()
    assert [(await response).status_code for response in (placed, last)] == [201, 201]
    assert await service.documents.count_documents({"user": "left"}) == 0


async def test_a_public_client_cannot_take_the_share_of_many_callers(
    make_settings: MakeSettings, migrated: None, tmp_path: Path, lines: list[tuple[str, int]]
) -> None:
    # Without a trusted proxy.
    async with gated_service(make_settings(recovery=IDLE, admission=LIMITS), tmp_path) as service:
        before_intent = gate_at(service, "orders.before-intent")
        placed = [asyncio.create_task(_place(service, lines, f"203.0.113.{n}")) for n in range(2)]
        await before_intent.wait_until_reached()
        await _until_waiting(5)
        assert (await _place(service, lines, "203.0.113.9")).status_code == 429
        before_intent.open()
        assert [(await response).status_code for response in placed] == [201, 201]


def test_a_body_weighs_its_lines_before_it_is_parsed() -> None:
    line = b'{"product_id": "0190a3b0-0000-7000-8000-000000000000", "quantity": 1}'
    body = b'{"user": "ada", "items": [' + b", ".join([line] * 1000) + b"]}"
    assert weigh(body) == 1000
    assert weigh(b'{"user": "ada", "items": [' + line + b"]}") == 1
    # An escaped name hides no line, and padding weighs too.
    assert weigh(body.replace(b"product_id", b"product\\u005fid")) == 1000
    assert weigh(b'{"user": "' + b"a" * 1_000_000) == 3906
    assert weigh(b"") == weigh(b"[]") == 1
