"""DELETE beside another DELETE, beside a create in flight, and its own death: each interleaving forced."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.waiting import until

from .parts import Catalogue, OrdersProcess, Stock, Topic, serving
from .pods import CALM, UNHURRIED, document, hold, intent, pod, together


@pytest.fixture(scope="module")
async def apart(given: Any, migrated: None) -> Any:
    """Configurations on a database where no other test's loops are."""
    name = f"orders_cancelling_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    return lambda **more: given(**{"database": name, **more})


async def test_of_two_cancellations_that_both_saw_it_confirmed_one_moves_it_and_both_say_so(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    settings = [apart(recovery=UNHURRIED) for _ in range(2)]
    async with pod(settings[0], tmp_path / "a", loops=True) as one, pod(settings[1], tmp_path / "b", loops=True) as two:
        order = (await one.order([(lamp, 2)])).json()
        await topic.wait(order["id"], "order.created")
        gates = [
            [hold(pod, point) for pod in (one, two)]
            for point in ("orders.before-cancel-status", "orders.after-cancel-status")
        ]
        cancelling = [asyncio.create_task(pod.http.delete(f"/api/order/{order['id']}")) for pod in (one, two)]
        for both in gates:
            await together(both)
        assert [(await answer).status_code for answer in cancelling] == [204, 204]
        found = await topic.wait(order["id"], "order.created", "order.cancelled")
        await asyncio.sleep(0.5)
    assert [(e.type, e.sequence) for e in topic.events(order["id"])] == [("order.created", 1), ("order.cancelled", 2)]
    assert found[1].data.status == "cancelled"
    assert await stock.left(lamp) == 5


async def test_a_cancellation_that_dies_before_the_status_has_changed_nothing(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, documents: Any, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    dying = OrdersProcess(apart(recovery=CALM), tmp_path)
    try:
        dying.start()
        await dying.ready()
        order = (
            await dying.http.post("/api/order", json={"user": "ada", "items": [{"product_id": lamp, "quantity": 2}]})
        ).json()
        await topic.wait(order["id"], "order.created")
        # Else it dies with a claim that nobody here waits for.
        orders = documents.database.client[dying.config["mongodb"]["database"]].orders
        await until(lambda: "outbox" not in orders.find_one({"_id": UUID(order["id"])}), what="cleared")
        dying.arm("orders.before-cancel-status")
        with pytest.raises(httpx.TransportError):
            await dying.http.delete(f"/api/order/{order['id']}")
        await dying.exited()
    finally:
        await dying.close()
    async with serving(apart(), loops=False) as service:
        assert (await service.http.get(f"/api/order/{order['id']}")).json()["status"] == "confirmed"
        assert await stock.left(lamp) == 3
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    assert await stock.left(lamp) == 5
    await topic.wait(order["id"], "order.created", "order.cancelled")


@pytest.mark.parametrize(
    "point", ["orders.after-intent", "orders.before-reserve", "orders.after-reserve", "orders.before-confirm"]
)
async def test_a_cancellation_against_a_create_in_flight_has_one_winner_at_every_step(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path, point: str
) -> None:
    lamp, user = catalogue.add(), f"{point} {uuid4()}"
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path / "a") as slow, pod(apart(), tmp_path / "b") as other:
        gate = hold(slow, point)
        placing = asyncio.create_task(slow.order([(lamp, 2)], user=user))
        await gate.reached()
        order = await intent(slow, user)
        assert (await other.http.delete(f"/api/order/{order['_id']}")).status_code == 204
        gate.open()
        answer = await placing
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:market:problem:order-cancelled")
        found = await document(slow, order["_id"])
        assert (found["status"], {"outbox", "release_due"} & found.keys()) == ("cancelled", set())
    assert await stock.left(lamp) == 5
    reservation = await stock.reservation(order["_id"])
    assert reservation is not None
    assert reservation[0] == "cancelled"
    assert topic.of(str(order["_id"])) == []
