"""The service begins in any order and ends cleanly: what was answered is published, nothing hangs."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pymongo
import pytest
from pymongo.errors import AutoReconnect

from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.waiting import PATIENCE, until

from .parts import Catalogue, Service, Stock, Topic, serving
from .pods import UNHURRIED


async def test_a_cancelled_operation_is_cancelled_and_no_error_of_the_store(service: Service) -> None:
    """PyMongo reports a cancellation as a lost connection; a loop that took it for one would go on for ever."""

    async def as_pymongo_does() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise AutoReconnect("operation cancelled") from None

    assert service.deps is not None
    work = asyncio.create_task(service.deps.orders.collection.run(as_pymongo_does))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_many_starts_and_stops_hang_nowhere(given: Any, migrated: None) -> None:
    busy = {"relay_interval_seconds": 0.01, "interval_seconds": 0.01}
    async with asyncio.timeout(180):
        for step in range(5):
            async with serving(given(recovery=busy)):
                await asyncio.sleep(step / 50)


async def test_sigterm_finishes_what_is_in_flight_and_exits_cleanly(
    given: Any, own_process: Any, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    # A database where nobody else relays, and nobody rejects what is in flight.
    name = f"orders_sigterm_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    process = own_process(database=name, recovery=UNHURRIED)
    process.start()
    await process.ready()
    process.arm("orders.before-confirm", "pause 3")
    placing = asyncio.create_task(
        process.http.post("/api/order", json={"user": "ada", "items": [{"product_id": lamp, "quantity": 2}]})
    )
    await until(lambda: process.reached("orders.before-confirm"), what="in flight")
    process.terminate()
    answer = await placing
    assert answer.status_code == 201
    assert await process.exited() == 0
    assert [e.type for e in await topic.wait(answer.json()["id"], "order.created")] == ["order.created"]
    with pytest.raises(httpx.ConnectError):
        await process.http.get("/api/order?user=ada")


async def test_the_service_waits_for_its_indexes_and_says_so(own_process: Any, mongodb: Any) -> None:
    name = f"orders_bare_{uuid4().hex[:8]}"
    process = own_process(database=name)
    process.start()
    admin = f"http://127.0.0.1:{process.config['admin']['port']}"
    async with httpx.AsyncClient(timeout=PATIENCE) as http:

        async def missing() -> Any:
            try:
                answer = await http.get(f"{admin}/readyz")
            except httpx.TransportError:
                return None
            return answer.json().get("missing", {}).get("indexes")

        assert "migrate" in await until(missing, 2 * PATIENCE, "what is missing")
        assert (await http.get(f"{admin}/healthz")).status_code == 200
    config = msgspec.convert({k: v for k, v in process.config.items() if k != "faults"}, Config)
    assert await orders_app.migrate(config, []) == 0
    # Twice changes nothing.
    assert await orders_app.migrate(config, []) == 0
    await process.ready()
    client: Any = pymongo.MongoClient(mongodb.uri)
    assert set(client[name].orders.index_information()) == {
        "_id_",
        "key",
        "user",
        "pending",
        "release_due",
        "unsent",
        "stuck",
    }
    client.close()


async def test_a_store_that_stops_answering_is_said_and_is_used_again_when_it_does(
    given: Any, mongodb: Any, catalogue: Catalogue, stock: Stock, migrated: None
) -> None:
    lamp, first, key = catalogue.add(), f"key-{uuid4()}", f"key-{uuid4()}"
    await stock.set(lamp, 5)
    config = given()
    config["mongodb"]["timeout_seconds"] = 0.7
    async with serving(config, loops=False) as service:
        # So short a time may be over on a busy machine as well: whoever has a key asks again.
        await until(lambda: _placed(service, lamp, first), what="an order is placed")
        mongodb.pause()
        try:
            answer = await service.order([(lamp, 1)], key=key)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "mongodb" in await service.process.health.not_ready()
        finally:
            mongodb.resume()
        again = await until(lambda: _placed(service, lamp, key), what="an order is placed again")
        assert (await until(lambda: _placed(service, lamp, key), what="the same order")).json()["id"] == again.json()[
            "id"
        ]
        assert await stock.left(lamp) == 3


async def _placed(service: Any, lamp: str, key: str) -> Any:
    answer = await service.order([(lamp, 1)], key=key)
    assert answer.status_code in (200, 201, 503)
    return answer if answer.status_code < 300 else None
