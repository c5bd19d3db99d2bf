"""What clients are told while the circuit breaker refuses all calls to MongoDB, so that nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
from pymongo.errors import AutoReconnect

from market.kit.errors import Unavailable
from market.kit.resilience import CircuitOpen
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import MakeSettings, Service, serving
from .stock import Stock


@pytest.fixture
async def own_service(make_settings: MakeSettings, migrated: None) -> AsyncIterator[Service]:
    """An instance without background tasks, which would use the circuit breaker, too."""
    async with serving(make_settings(), background=False) as service:
        yield service


@asynccontextmanager
async def open_circuit(service: Service) -> AsyncIterator[None]:
    """Keep the circuit breaker of MongoDB open: calls fail until it opens, and then its trial does not end."""
    collection = service.deps.orders.collection
    trial, ending = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        raise AutoReconnect("connection refused")

    async def wait() -> bool:
        trial.set()
        return await ending.wait()

    async def try_again() -> bool:
        with suppress(CircuitOpen):
            return await collection.run(wait)
        return False

    async def fail_until_refused() -> bool:
        with pytest.raises(Unavailable) as e:
            await collection.run(fail)
        return isinstance(e.value, CircuitOpen)

    await until(fail_until_refused)
    waiting = asyncio.create_task(until(try_again))
    await trial.wait()
    try:
        yield
    finally:
        ending.set()
        assert await waiting


async def test_an_order_that_mongodb_has_not_seen_is_reported_as_not_placed(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp, user = catalogue.add(), f"user-{uuid4()}"
    await stock.set(lamp, 5)
    async with open_circuit(own_service):
        response = await own_service.place([(lamp, 2)], user=user)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"] == "the order was not placed: mongodb is unavailable; place it again"
    # There is no order that could be read by its id.
    assert "order_id" not in response.json()
    assert documents.find_one({"user": user}) is None
    assert await stock.available(lamp) == 5
    assert (await own_service.place([(lamp, 2)], user=user)).status_code == 201


async def test_with_a_key_an_earlier_request_may_have_placed_the_order(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp, user, key = catalogue.add(), f"user-{uuid4()}", f"key-{uuid4()}"
    await stock.set(lamp, 5)
    first = await own_service.place([(lamp, 2)], user=user, key=key)
    assert first.status_code == 201
    async with open_circuit(own_service):
        repeated = await own_service.place([(lamp, 2)], user=user, key=key)
        # The price is unknown, too, so that the key is looked up before anything is inserted.
        catalogue.unavailable = True
        unpriced = await own_service.place([(lamp, 2)], user=user, key=key)
        catalogue.reset()
    for response in (repeated, unpriced):
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["detail"] == (
            "this request did not place the order: mongodb is unavailable; repeat it with the same Idempotency-Key, "
            "because an earlier request may have placed it"
        )
        assert "order_id" not in response.json()
    again = await own_service.place([(lamp, 2)], user=user, key=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert documents.count_documents({"user": user}) == 1
    assert await stock.available(lamp) == 3


async def test_a_cancellation_that_mongodb_has_not_seen_is_reported_as_not_made(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    placed = (await own_service.place([(lamp, 2)])).json()
    async with open_circuit(own_service):
        response = await own_service.http.delete(f"/api/order/{placed['id']}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["order_id"] == placed["id"]
    assert response.json()["detail"] == (
        "this request did not cancel the order: mongodb is unavailable; send the request again, or read the order by "
        "its id, because an earlier request may have cancelled it"
    )
    assert (await own_service.http.get(f"/api/order/{placed['id']}")).json()["status"] == "confirmed"
    assert await stock.available(lamp) == 3
