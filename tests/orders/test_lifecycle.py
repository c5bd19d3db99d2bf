"""The service starts before its dependencies, survives a hanging one, and stops without losing a confirmed order."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pymongo
import pytest
from pymongo.errors import AutoReconnect

from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .service import NOTHING_OVERDUE, MakeSettings, Service, migrate, on_new_database, serving
from .stock import Stock
from .topic import Topic


async def test_a_cancelled_operation_raises_cancelled_error_instead_of_unavailable(service: Service) -> None:
    """PyMongo reports a cancellation as a lost connection; a background task that retried after it would never end."""

    async def operation() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise AutoReconnect("operation cancelled") from None

    running = asyncio.create_task(service.deps.orders.collection.run(operation))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_repeated_starts_and_stops_do_not_hang(make_settings: MakeSettings, migrated: None) -> None:
    busy = {"relay_interval_seconds": 0.01, "interval_seconds": 0.01}
    async with asyncio.timeout(180):
        for n in range(5):
            async with serving(make_settings(recovery=busy)):
                await asyncio.sleep(n / 50)


async def test_sigterm_finishes_requests_in_flight_and_exits_with_zero(
    make_settings: MakeSettings, make_process: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    # A database on which no other instance publishes events or rejects orders in flight.
    settings = (await on_new_database(make_settings))()
    process = make_process(database=settings["mongodb"]["database"], recovery=NOTHING_OVERDUE)
    process.start()
    await process.ready()
    process.arm("orders.before-confirm", "pause 3")
    placing = asyncio.create_task(process.place([(lamp, 2)]))
    await until(lambda: process.reached("orders.before-confirm"), what="request in flight")
    process.terminate()
    response = await placing
    assert response.status_code == 201
    assert await process.exited() == 0
    assert [e.type for e in await topic.wait_for(response.json()["id"], "order.created")] == ["order.created"]
    with pytest.raises(httpx.ConnectError):
        await process.http.get("/api/order?user=ada")


async def test_the_service_is_not_ready_until_its_indexes_exist(make_process: Any, mongodb: Any) -> None:
    name = f"orders_bare_{uuid4().hex[:8]}"
    process = make_process(database=name)
    process.start()
    admin = f"http://127.0.0.1:{process.config['admin']['port']}"
    async with httpx.AsyncClient(timeout=PATIENCE) as http:

        async def get_missing() -> Any:
            try:
                response = await http.get(f"{admin}/readyz")
            except httpx.TransportError:
                return None
            return response.json().get("reasons", {}).get("indexes")

        assert "migrate" in await until(get_missing, 2 * PATIENCE, "missing indexes reported")
        assert (await http.get(f"{admin}/healthz")).status_code == 200
    settings = {section: value for section, value in process.config.items() if section != "faults"}
    await migrate(settings)
    # A second migration changes nothing.
    await migrate(settings)
    await process.ready()
    client: Any = pymongo.MongoClient(mongodb.uri)
    assert set(client[name].orders.index_information()) == {
        "_id_",
        "user_key",
        "subject_key",
        "key",
        "user",
        "user_ended",
        "status",
        "pending",
        "release_due",
        "unsent",
        "shortages",
        "stuck",
    }
    client.close()


async def test_a_hanging_store_is_reported_and_is_used_again_when_it_recovers(
    make_settings: MakeSettings, mongodb: Any, catalogue: FakeCatalogue, stock: Stock, migrated: None
) -> None:
    lamp, first_key, key = catalogue.add(), f"key-{uuid4()}", f"key-{uuid4()}"
    await stock.set(lamp, 5)
    settings = make_settings()
    settings["mongodb"]["timeout_seconds"] = 0.7
    async with serving(settings, background=False) as service:
        # On a busy machine such a short timeout may expire without a fault; a request with a key can be repeated.
        await until(lambda: _place(service, lamp, first_key), what="an order is placed")
        mongodb.pause()
        try:
            response = await service.place([(lamp, 1)], key=key)
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert "mongodb" in await service.process.health.unavailable_dependencies()
            # The service still responds, so it stays ready.
            assert service.process.health.unready_reasons() == {}
        finally:
            mongodb.resume()
        placed = await until(lambda: _place(service, lamp, key), what="an order is placed again")
        repeated = await until(lambda: _place(service, lamp, key), what="the same order")
        assert repeated.json()["id"] == placed.json()["id"]
        assert await stock.available(lamp) == 3


async def _place(service: Service, product_id: str, key: str) -> httpx.Response | None:
    """Return the response if the order is placed, None if the outcome is unknown."""
    response = await service.place([(product_id, 1)], key=key)
    assert response.status_code in (200, 201, 503)
    return response if response.status_code < 300 else None
