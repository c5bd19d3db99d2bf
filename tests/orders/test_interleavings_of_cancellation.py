"""Forced interleavings of DELETE: with another DELETE, with a create in flight, and with a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service, open_together
from .service import (
    IDLE,
    NOTHING_OVERDUE,
    MakeSettings,
    OrdersProcess,
    get_document,
    is_release_recorded,
    serving,
    wait_for_intent,
)
from .stock import Stock
from .topic import Topic


async def test_two_concurrent_cancellations_both_succeed_and_publish_one_event(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    settings = [isolated_settings(recovery=NOTHING_OVERDUE) for _ in range(2)]
    async with (
        gated_service(settings[0], tmp_path / "a", background=True) as one,
        gated_service(settings[1], tmp_path / "b", background=True) as two,
    ):
        order = (await one.place([(lamp, 2)])).json()
        await topic.wait_for(order["id"], "order.created")
        gates = [
            [gate_at(instance, point) for instance in (one, two)]
            for point in ("orders.before-cancel-status", "orders.after-cancel-status")
        ]
        cancelling = [asyncio.create_task(instance.http.delete(f"/api/order/{order['id']}")) for instance in (one, two)]
        for gates_at_point in gates:
            await open_together(gates_at_point)
        assert [(await task).status_code for task in cancelling] == [204, 204]
        published = await topic.wait_for(order["id"], "order.created", "order.cancelled")
        await asyncio.sleep(0.5)
    assert [(e.type, e.sequence) for e in topic.events_of(order["id"])] == [
        ("order.created", "1"),
        ("order.cancelled", "2"),
    ]
    assert published[1].data.status == "cancelled"
    assert await stock.available(lamp) == 5


async def test_a_cancellation_that_crashes_before_the_status_change_changes_nothing(
    isolated_settings: MakeSettings,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    documents: Any,
    tmp_path: Path,
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    crashing = OrdersProcess(isolated_settings(recovery=IDLE), tmp_path)
    try:
        crashing.start()
        await crashing.ready()
        order = (await crashing.place([(lamp, 2)])).json()
        await topic.wait_for(order["id"], "order.created")
        # Otherwise the process could crash with a lease that does not expire during this test.
        isolated_documents = documents.database.client[crashing.config["mongodb"]["database"]].orders
        await until(lambda: "outbox" not in isolated_documents.find_one({"_id": UUID(order["id"])}), what="published")
        crashing.arm("orders.before-cancel-status")
        with pytest.raises(httpx.TransportError):
            await crashing.http.delete(f"/api/order/{order['id']}")
        await crashing.exited()
    finally:
        await crashing.close()
    async with serving(isolated_settings(), background=False) as service:
        assert (await service.http.get(f"/api/order/{order['id']}")).json()["status"] == "confirmed"
        assert await stock.available(lamp) == 3
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    assert await stock.available(lamp) == 5
    await topic.wait_for(order["id"], "order.created", "order.cancelled")


@pytest.mark.parametrize(
    "point", ["orders.after-intent", "orders.before-reserve", "orders.after-reserve", "orders.before-confirm"]
)
async def test_a_cancellation_wins_against_a_create_in_flight_at_every_step(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path, point: str
) -> None:
    lamp, user = catalogue.add(), f"{point} {uuid4()}"
    await stock.set(lamp, 5)
    async with (
        gated_service(isolated_settings(), tmp_path / "a") as slow,
        gated_service(isolated_settings(), tmp_path / "b") as other,
    ):
        gate = gate_at(slow, point)
        placing = asyncio.create_task(slow.place([(lamp, 2)], user=user))
        await gate.wait_until_reached()
        order = await wait_for_intent(slow, user)
        assert (await other.http.delete(f"/api/order/{order['_id']}")).status_code == 204
        gate.open()
        response = await placing
        assert (response.status_code, response.json()["type"]) == (409, "urn:market:problem:order-cancelled")
        await until(lambda: is_release_recorded(slow, order["_id"]), what="release is recorded")
        stored = await get_document(slow, order["_id"])
        assert (stored["status"], "outbox" in stored) == ("cancelled", False)
    assert await stock.available(lamp) == 5
    reservation = await stock.reservation(order["_id"])
    assert reservation is not None
    assert reservation[0] == "cancelled"
    assert topic.messages_of(str(order["_id"])) == []
