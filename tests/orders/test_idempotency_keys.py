"""The header Idempotency-Key of POST /api/order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from .catalogue import FakeCatalogue
from .gates import arm, gated_service
from .service import MakeSettings, Service
from .stock import Stock
from .topic import Topic


async def test_a_repeated_key_returns_the_same_order_even_after_the_product_was_deleted(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    first = await service.place([(lamp, 2)], key=key)
    assert (first.status_code, first.headers.get("idempotency-replayed")) == (201, None)
    del catalogue.products[lamp]
    repeated = await service.place([(lamp, 1), (lamp.upper(), 1)], key=key)
    assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
    assert repeated.json() == first.json()
    assert repeated.headers["location"] == first.headers["location"]
    different = await service.place([(lamp, 3)], key=key)
    assert different.status_code == 422
    assert different.json()["type"] == "urn:market:problem:idempotency-key-reused"
    assert await stock.available(lamp) == 3
    assert (await service.http.delete(first.headers["location"])).status_code == 204
    cancelled = await service.place([(lamp, 2)], key=key)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    await topic.wait_for(first.json()["id"], "order.created", "order.cancelled")


async def test_a_request_with_two_keys_is_rejected(service: Service, catalogue: FakeCatalogue, stock: Stock) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1)
    order = {"user": "ann", "items": [{"product_id": lamp, "quantity": 1}]}
    response = await service.http.post(
        "/api/order", json=order, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    )
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert await stock.available(lamp) == 1


async def test_concurrent_requests_with_one_key_place_one_order(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 50)
    responses = await asyncio.gather(*(service.place([(lamp, 1)], key=key) for _ in range(20)))
    assert sorted(r.status_code for r in responses) == [200] * 19 + [201]
    assert len({r.json()["id"] for r in responses}) == 1
    assert await stock.available(lamp) == 49
    assert documents.count_documents({"key": key}) == 1


async def test_a_rejected_order_frees_its_key(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 1)
    assert (await service.place([(lamp, 2)], key=key)).status_code == 409
    assert documents.find_one({"key": key}) is None
    await stock.set(lamp, 2)
    response = await service.place([(lamp, 2)], key=key)
    assert (response.status_code, "idempotency-replayed" in response.headers) == (201, False)


@pytest.fixture
async def own_service(make_settings: MakeSettings, migrated: None, tmp_path: Path) -> AsyncIterator[Service]:
    """An instance without background tasks, whose failure points are armed by files in `tmp_path`."""
    async with gated_service(make_settings(), tmp_path) as service:
        yield service


@pytest.mark.parametrize("point", ["orders.after-intent", "orders.after-reserve", "orders.before-confirm"])
async def test_a_repeated_key_completes_an_order_left_pending(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic, documents: Any, point: str
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    arm(own_service, point, "fail")
    unknown = await own_service.place([(lamp, 2)], key=key)
    assert unknown.status_code == 503
    assert unknown.headers["retry-after"] == "1"
    order_id = unknown.json()["order_id"]
    assert documents.find_one({"_id": UUID(order_id)})["status"] == "pending"
    repeated = await own_service.place([(lamp, 2)], key=key)
    assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
    assert (repeated.json()["id"], repeated.json()["status"]) == (order_id, "confirmed")
    assert await stock.available(lamp) == 3
    assert [e.type for e in await topic.wait_for(order_id, "order.created")] == ["order.created"]


async def test_a_repeated_key_returns_the_order_while_products_is_unavailable(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    first = await own_service.place([(lamp, 2)], key=key)
    catalogue.unavailable = True
    try:
        repeated = await own_service.place([(lamp, 2)], key=key)
        different = await own_service.place([(lamp, 3)], key=key)
        unknown = await own_service.place([(lamp, 2)], key=f"key-{uuid4()}")
    finally:
        catalogue.reset()
    assert (repeated.status_code, repeated.json()) == (200, first.json())
    assert (different.status_code, unknown.status_code) == (422, 503)


async def test_an_unknown_outcome_says_how_the_client_can_find_the_result(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    details, order_ids = [], []
    for key in (f"key-{uuid4()}", None):
        arm(own_service, "orders.before-confirm", "fail")
        unknown = await own_service.place([(lamp, 2)], key=key)
        assert unknown.status_code == 503
        details.append(unknown.json()["detail"])
        order_ids.append(unknown.json()["order_id"])
        # As the detail promises, the order can be read by its id.
        assert (await own_service.http.get(f"/api/order/{unknown.json()['order_id']}")).json()["status"] == "pending"
    arm(own_service, "orders.before-cancel-status", "fail")
    uncancelled = await own_service.http.delete(f"/api/order/{unknown.json()['order_id']}")
    assert (uncancelled.status_code, uncancelled.json()["order_id"]) == (503, unknown.json()["order_id"])
    keyed, unkeyed, cancelling = *details, uncancelled.json()["detail"]
    for detail, action in ((keyed, "placed"), (unkeyed, "placed"), (cancelling, "cancelled")):
        assert detail.startswith(f"it is unknown whether the order was {action}: ")
    assert "repeat the request with the same Idempotency-Key for the final result" in keyed
    assert "read the order by its id for the result; without an Idempotency-Key" in unkeyed
    assert "cancel it again, or read the order by its id" in cancelling
    assert "Idempotency-Key" not in cancelling
    # Both, because a shared instance would later reject a pending order, and count it during another test.
    for order_id in order_ids:
        assert (await own_service.http.delete(f"/api/order/{order_id}")).status_code == 204


async def test_a_confirmation_whose_response_is_lost_is_looked_up(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    arm(own_service, "orders.after-confirm", "fail")
    response = await own_service.place([(lamp, 2)])
    assert (response.status_code, response.json()["status"]) == (201, "confirmed")
    await topic.wait_for(response.json()["id"], "order.created")
