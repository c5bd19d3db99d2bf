"""DELETE /api/order/{id}."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.ports import free_port
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service
from .service import MakeSettings, Service, get_document, on_new_database, serving
from .stock import Stock
from .topic import Topic


async def test_an_order_cancelled_while_it_is_placed_is_a_conflict_and_releases_its_stock(
    service: Service,
    make_settings: MakeSettings,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    documents: Any,
    tmp_path: Path,
) -> None:
    lamp, user = catalogue.add(), f"hasty {uuid4()}"
    await stock.set(lamp, 5)
    async with gated_service(make_settings(), tmp_path) as slow:
        confirming = gate_at(slow, "orders.before-confirm")
        placing = asyncio.create_task(slow.place([(lamp, 2)], user=user))
        await confirming.wait_until_reached()
        order = documents.find_one({"user": user})
        assert (await service.http.delete(f"/api/order/{order['_id']}")).status_code == 204
        confirming.open()
        response = await placing
    assert response.status_code == 409
    assert response.json()["type"] == "urn:market:problem:order-cancelled"
    assert await stock.available(lamp) == 5
    assert topic.messages_of(str(order["_id"])) == []
    await until(lambda: "release_due" not in documents.find_one({"_id": order["_id"]}), what="release is recorded")
    assert "outbox" not in documents.find_one({"_id": order["_id"]})


async def test_a_cancelled_order_releases_its_stock_once_and_publishes_one_event(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic, documents: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order = (await service.place([(lamp, 2)])).json()
    responses = await asyncio.gather(*(service.http.delete(f"/api/order/{order['id']}") for _ in range(8)))
    assert {r.status_code for r in responses} == {204}
    assert {r.content for r in responses} == {b""}
    assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    assert await stock.available(lamp) == 5
    assert await stock.reservation(order["id"]) == ("cancelled", {lamp: 2})
    cancelled = (await service.http.get(f"/api/order/{order['id']}")).json()
    assert datetime.fromisoformat(cancelled.pop("cancelled_at")) >= datetime.fromisoformat(order["confirmed_at"])
    assert cancelled == {**order, "status": "cancelled"}
    published = await topic.wait_for(order["id"], "order.created", "order.cancelled")
    assert [(e.type, e.sequence) for e in published] == [("order.created", "1"), ("order.cancelled", "2")]
    assert published[1].data.status == "cancelled"
    await until(lambda: "outbox" not in documents.find_one({"_id": UUID(order["id"])}), what="outbox empty")


@pytest.mark.parametrize(
    ("prefer", "is_returned"),
    [
        ([("Prefer", "return=representation")], True),
        ([("Prefer", "wait=10"), ("prefer", 'respond-async, Return="representation"')], True),
        ([("Prefer", "return=minimal")], False),
        ([("Prefer", "no-return=representation")], False),
    ],
)
async def test_a_cancelled_order_is_returned_if_the_client_prefers_it(
    service: Service, catalogue: FakeCatalogue, stock: Stock, prefer: list[tuple[str, str]], is_returned: bool
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    path = f"/api/order/{(await service.place([(lamp, 2)])).json()['id']}"
    first = await service.http.delete(path, headers=prefer)
    second = await service.http.delete(path, headers=prefer)
    order = (await service.http.get(path)).json()
    assert order["status"] == "cancelled"
    for response in (first, second):
        if is_returned:
            assert (response.status_code, response.json()) == (200, order)
            assert response.headers["preference-applied"] == "return=representation"
        else:
            assert (response.status_code, response.content) == (204, b"")
            assert "preference-applied" not in response.headers
    assert await stock.available(lamp) == 5


async def test_a_stock_release_is_deferred_while_inventory_is_unavailable(
    make_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, migrated: None
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    # A new database: recovery of another instance would release the stock at any moment.
    isolated_settings = await on_new_database(make_settings)
    unreachable = {"target": f"127.0.0.1:{free_port()}"}
    async with (
        serving(isolated_settings(), background=False) as connected,
        serving(isolated_settings(inventory=unreachable), background=False) as cut_off,
    ):
        order = (await connected.place([(lamp, 2)])).json()
        prefer = {"Prefer": "return=representation"}
        assert (await cut_off.http.delete(f"/api/order/{order['id']}", headers=prefer)).status_code == 202
        assert (await cut_off.http.delete(f"/api/order/{order['id']}")).status_code == 202
        assert (await get_document(connected, order["id"]))["status"] == "cancelled"
        assert await stock.available(lamp) == 3
        failed = await cut_off.place([(lamp, 1)], user="cut off")
        assert failed.status_code == 503
        assert "order_id" in failed.json() or await connected.documents.find_one({"user": "cut off"}) is None
        assert (await connected.http.delete(f"/api/order/{order['id']}")).status_code == 204
        assert await stock.available(lamp) == 5
