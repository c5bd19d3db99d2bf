"""An Idempotency-Key beside a death, a deleted product and the same key in another pod: each interleaving forced."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from market.orders import app as orders_app
from market.orders.config import Config
from market.orders.domain import Status

from .parts import Catalogue, OrdersProcess, Stock, Topic, serving
from .pods import CALM, hold, intent, pod, together


@pytest.fixture(scope="module")
async def apart(given: Any, migrated: None) -> Any:
    """Configurations on a database where no other test's loops are."""
    name = f"orders_keys_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0
    return lambda **more: given(**{"database": name, **more})


@pytest.mark.parametrize(
    ("point", "was"),
    [
        ("orders.after-intent", Status.PENDING),
        ("orders.after-reserve", Status.PENDING),
        ("orders.before-response", Status.CONFIRMED),
    ],
)
@pytest.mark.parametrize("product_deleted", [False, True])
async def test_a_key_whose_process_died_is_finished_by_the_repeat_even_without_the_product(
    apart: Any,
    catalogue: Catalogue,
    stock: Stock,
    topic: Topic,
    tmp_path: Path,
    point: str,
    was: Status,
    product_deleted: bool,
) -> None:
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    body = {"user": f"dead {uuid4()}", "items": [{"product_id": lamp, "quantity": 2}]}
    dying = OrdersProcess(apart(recovery=CALM), tmp_path)
    try:
        dying.start()
        await dying.ready()
        dying.arm(point)
        with pytest.raises(httpx.TransportError):
            await dying.http.post("/api/order", json=body, headers={"Idempotency-Key": key})
        await dying.exited()
    finally:
        await dying.close()
    if product_deleted:
        del catalogue.goods[lamp]
    async with serving(apart(), loops=was is Status.CONFIRMED) as service:
        left = await intent(service, str(body["user"]))
        assert (left["status"], left["key"]) == (was.value, key)
        again = await service.http.post("/api/order", json=body, headers={"Idempotency-Key": key})
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
        assert (again.json()["id"], again.json()["status"]) == (str(left["_id"]), "confirmed")
        await topic.wait(again.json()["id"], "order.created")
        assert service.deps is not None
        assert await service.deps.orders.collection.documents.count_documents({"user": body["user"]}) == 1
    assert await stock.left(lamp) == 3
    assert await stock.reservation(left["_id"]) == ("reserved", {lamp: 2})


async def test_two_requests_with_one_key_through_two_pods_are_one_order(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """Both have looked the key up and found nothing before either stores its intent."""
    lamp, key = catalogue.add(), uuid4().hex
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path / "a") as one, pod(apart(), tmp_path / "b") as two:
        gates = [hold(pod, "orders.before-intent") for pod in (one, two)]
        placing = [asyncio.create_task(pod.order([(lamp, 2)], key=key)) for pod in (one, two)]
        await together(gates)
        answers = [await answer for answer in placing]
        assert sorted(a.status_code for a in answers) == [200, 201]
        assert len({a.json()["id"] for a in answers}) == 1
        assert (
            service_count(
                await two.http.get("/api/order", params={"user": "ada", "limit": 1000}), answers[0].json()["id"]
            )
            == 1
        )
        await topic.wait(answers[0].json()["id"], "order.created")
    assert await stock.left(lamp) == 3


def service_count(page: httpx.Response, order_id: str) -> int:
    return [o["id"] for o in page.json()["items"]].count(order_id)
