"""Forced interleavings of two requests with one key: after a crash, after the product was deleted, on two instances."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from market.orders.domain import Status

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service, open_together
from .service import IDLE, MakeSettings, OrdersProcess, serving, wait_for_intent
from .stock import Stock
from .topic import Topic


@pytest.mark.parametrize(
    ("point", "status"),
    [
        ("orders.after-intent", Status.PENDING),
        ("orders.after-reserve", Status.PENDING),
        ("orders.before-response", Status.CONFIRMED),
    ],
)
@pytest.mark.parametrize("product_deleted", [False, True])
async def test_a_repeated_key_completes_the_order_of_a_crashed_process_even_without_the_product(
    isolated_settings: MakeSettings,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path: Path,
    point: str,
    status: Status,
    product_deleted: bool,
) -> None:
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    user = f"crashed {uuid4()}"
    crashing = OrdersProcess(isolated_settings(recovery=IDLE), tmp_path)
    try:
        crashing.start()
        await crashing.ready()
        crashing.arm(point)
        with pytest.raises(httpx.TransportError):
            await crashing.place([(lamp, 2)], user=user, key=key)
        await crashing.exited()
    finally:
        await crashing.close()
    if product_deleted:
        del catalogue.products[lamp]
    async with serving(isolated_settings(), background=status is Status.CONFIRMED) as service:
        stored = await wait_for_intent(service, user)
        assert (stored["status"], stored["key"]) == (status.value, key)
        repeated = await service.place([(lamp, 2)], user=user, key=key)
        assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
        assert (repeated.json()["id"], repeated.json()["status"]) == (str(stored["_id"]), "confirmed")
        await topic.wait_for(repeated.json()["id"], "order.created")
        assert await service.documents.count_documents({"user": user}) == 1
    assert await stock.available(lamp) == 3
    assert await stock.reservation(stored["_id"]) == ("reserved", {lamp: 2})


async def test_two_requests_with_one_key_to_two_instances_place_one_order(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """Both requests have looked up the key and found nothing before either stores its intent."""
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    async with (
        gated_service(isolated_settings(), tmp_path / "a") as one,
        gated_service(isolated_settings(), tmp_path / "b") as two,
    ):
        gates = [gate_at(instance, "orders.before-intent") for instance in (one, two)]
        placing = [asyncio.create_task(instance.place([(lamp, 2)], key=key)) for instance in (one, two)]
        await open_together(gates)
        responses = [await task for task in placing]
        assert sorted(r.status_code for r in responses) == [200, 201]
        [order_id] = {r.json()["id"] for r in responses}
        page = (await two.http.get("/api/order", params={"user": "ada", "limit": 1000})).json()
        assert [o["id"] for o in page["items"]].count(order_id) == 1
        await topic.wait_for(order_id, "order.created")
    assert await stock.available(lamp) == 3
