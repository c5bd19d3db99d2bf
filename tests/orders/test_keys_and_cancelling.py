"""Idempotency-Key, and DELETE with all that it may meet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

from .parts import Catalogue, Service, Stock, Topic, serving
from .pods import hold, pod


async def test_a_repeat_answers_the_same_order_whatever_became_of_the_product(
    service: Service, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    first = await service.order([(lamp, 2)], key=key)
    assert (first.status_code, first.headers.get("idempotency-replayed")) == (201, None)
    del catalogue.goods[lamp]
    again = await service.order([(lamp, 1), (lamp.upper(), 1)], key=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    other = await service.order([(lamp, 3)], key=key)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:market:problem:idempotency-key-reused"
    assert await stock.left(lamp) == 3
    assert (await service.http.delete(first.headers["location"])).status_code == 204
    cancelled = await service.order([(lamp, 2)], key=key)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    await topic.wait(first.json()["id"], "order.created", "order.cancelled")


async def test_two_keys_are_none(service: Service, catalogue: Catalogue, stock: Stock) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1)
    order = {"user": "ann", "items": [{"product_id": lamp, "quantity": 1}]}
    answer = await service.http.post(
        "/api/order", json=order, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    )
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert await stock.left(lamp) == 1


async def test_requests_with_one_key_at_once_make_one_order(
    service: Service, catalogue: Catalogue, stock: Stock, documents: Any
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 50)
    answers = await asyncio.gather(*(service.order([(lamp, 1)], key=key) for _ in range(20)))
    assert sorted(a.status_code for a in answers) == [200] * 19 + [201]
    assert len({a.json()["id"] for a in answers}) == 1
    assert await stock.left(lamp) == 49
    assert documents.count_documents({"key": key}) == 1


async def test_a_rejected_attempt_frees_its_key(
    service: Service, catalogue: Catalogue, stock: Stock, documents: Any
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 1)
    assert (await service.order([(lamp, 2)], key=key)).status_code == 409
    assert documents.find_one({"key": key}) is None
    await stock.set(lamp, 2)
    answer = await service.order([(lamp, 2)], key=key)
    assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)


@pytest.fixture
async def faulty(given: Any, migrated: None, tmp_path: Path) -> Any:
    """A service whose failure points can be armed, and whose loops are off; yields it and the folder."""
    async with pod(given(), tmp_path) as made:
        yield made, tmp_path


@pytest.mark.parametrize("point", ["orders.after-intent", "orders.after-reserve", "orders.before-confirm"])
async def test_a_repeat_finishes_what_the_first_left_pending(
    faulty: Any, catalogue: Catalogue, stock: Stock, topic: Topic, documents: Any, point: str
) -> None:
    service, points = faulty
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    (points / point).write_text("fail")
    lost = await service.order([(lamp, 2)], key=key)
    assert lost.status_code == 503
    assert lost.headers["retry-after"] == "1"
    order_id = lost.json()["order_id"]
    assert documents.find_one({"_id": UUID(order_id)})["status"] == "pending"
    again = await service.order([(lamp, 2)], key=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert (again.json()["id"], again.json()["status"]) == (order_id, "confirmed")
    assert await stock.left(lamp) == 3
    assert [e.type for e in await topic.wait(order_id, "order.created")] == ["order.created"]


async def test_what_is_undecided_says_what_the_client_can_do_with_what_it_has(
    faulty: Any, catalogue: Catalogue, stock: Stock
) -> None:
    service, points = faulty
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    said = []
    for key in (f"key-{uuid4()}", None):
        (points / "orders.before-confirm").write_text("fail")
        lost = await service.order([(lamp, 2)], key=key)
        assert lost.status_code == 503
        said.append(lost.json()["detail"])
        # What is promised holds: the order can be read by its id.
        assert (await service.http.get(f"/api/order/{lost.json()['order_id']}")).json()["status"] == "pending"
    (points / "orders.before-cancel-status").write_text("fail")
    uncancelled = await service.http.delete(f"/api/order/{lost.json()['order_id']}")
    assert (uncancelled.status_code, uncancelled.json()["order_id"]) == (503, lost.json()["order_id"])
    keyed, unkeyed, cancelling = *said, uncancelled.json()["detail"]
    assert "repeat the request with the same Idempotency-Key for the final result" in keyed
    assert "read the order by its id for the result; without an Idempotency-Key" in unkeyed
    assert "cancel it again, or read the order by its id" in cancelling
    assert "Idempotency-Key" not in cancelling
    assert (await service.http.delete(f"/api/order/{lost.json()['order_id']}")).status_code == 204


async def test_a_confirmation_whose_answer_is_lost_is_looked_up(
    faulty: Any, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    service, points = faulty
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    (points / "orders.after-confirm").write_text("fail")
    answer = await service.order([(lamp, 2)])
    assert (answer.status_code, answer.json()["status"]) == (201, "confirmed")
    await topic.wait(answer.json()["id"], "order.created")


async def test_an_order_cancelled_while_it_is_placed_is_a_conflict_and_gives_the_goods_back(
    faulty: Any, service: Service, catalogue: Catalogue, stock: Stock, topic: Topic, documents: Any
) -> None:
    slow, _ = faulty
    lamp, user = catalogue.add(), f"hasty {uuid4()}"
    await stock.set(lamp, 5)
    reserved = hold(slow, "orders.before-confirm")
    placing = asyncio.create_task(slow.order([(lamp, 2)], user=user))
    await reserved.reached()
    order = documents.find_one({"user": user})
    assert (await service.http.delete(f"/api/order/{order['_id']}")).status_code == 204
    reserved.open()
    answer = await placing
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:market:problem:order-cancelled"
    assert await stock.left(lamp) == 5
    assert topic.of(str(order["_id"])) == []
    assert documents.find_one({"_id": order["_id"]}).keys() & {"outbox", "release_due"} == set()


@pytest.mark.parametrize("restocked", [False, True])
async def test_a_reservation_that_comes_after_the_rejection_is_refused(
    faulty: Any, catalogue: Catalogue, stock: Stock, documents: Any, restocked: bool
) -> None:
    from market.orders import service as use_cases

    service, _ = faulty
    lamp, user = catalogue.add(), f"late {uuid4()}"
    await stock.set(lamp, 2)
    reserving = hold(service, "orders.before-reserve")
    placing = asyncio.create_task(service.order([(lamp, 2)], user=user))
    await reserving.reached()
    order = documents.find_one({"user": user})
    document = await service.deps.orders.get_latest(order["_id"])
    rejected = await use_cases.advance(service.deps, document, overdue=True)
    await use_cases.advance(service.deps, rejected)
    if restocked:
        await stock.set(lamp, 10)
    reserving.open()
    answer = await placing
    assert answer.status_code == 503
    assert answer.json()["order_id"] == str(order["_id"])
    assert await stock.left(lamp) == (10 if restocked else 2)
    assert documents.find_one({"_id": order["_id"]})["status"] == "rejected"


async def test_a_cancelled_order_gives_its_goods_back_once_and_is_told_once(
    service: Service, catalogue: Catalogue, stock: Stock, topic: Topic, documents: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order = (await service.order([(lamp, 2)])).json()
    answers = await asyncio.gather(*(service.http.delete(f"/api/order/{order['id']}") for _ in range(8)))
    assert {a.status_code for a in answers} == {204}
    assert {a.content for a in answers} == {b""}
    assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    assert await stock.left(lamp) == 5
    assert (
        await stock.reservation(order["id"]) == ("cancelled", {lamp: 2})
        or (await stock.reservation(order["id"]))[0] == "cancelled"
    )
    assert (await service.http.get(f"/api/order/{order['id']}")).json() == {**order, "status": "cancelled"}
    found = await topic.wait(order["id"], "order.created", "order.cancelled")
    assert [(e.type, e.sequence) for e in found] == [("order.created", 1), ("order.cancelled", 2)]
    assert found[1].data.status == "cancelled"
    await until(lambda: "outbox" not in documents.find_one({"_id": UUID(order["id"])}), PATIENCE, "outbox cleared")


async def test_goods_follow_when_inventory_does_not_answer(
    given: Any, catalogue: Catalogue, stock: Stock, migrated: None, documents: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    # A database of its own, without loops: recovery of another service would give the goods back at any moment.
    database = f"orders_cut_off_{uuid4().hex[:8]}"
    apart = documents.database.client[database].orders
    nobody = {"target": f"127.0.0.1:{free_port()}"}
    assert await orders_app.migrate(msgspec.convert(given(database=database), Config), []) == 0
    async with (
        serving(given(database=database), loops=False) as well,
        serving(given(database=database, inventory=nobody), loops=False) as cut_off,
    ):
        order = (await well.order([(lamp, 2)])).json()
        assert (await cut_off.http.delete(f"/api/order/{order['id']}")).status_code == 202
        assert (await cut_off.http.delete(f"/api/order/{order['id']}")).status_code == 202
        assert apart.find_one({"_id": UUID(order["id"])})["status"] == "cancelled"
        assert await stock.left(lamp) == 3
        lost = await cut_off.order([(lamp, 1)], user="cut off")
        assert lost.status_code == 503
        assert "order_id" in lost.json() or apart.find_one({"user": "cut off"}) is None
        assert (await well.http.delete(f"/api/order/{order['id']}")).status_code == 204
        assert await stock.left(lamp) == 5


async def test_a_dead_inventory_opens_the_circuit_so_that_nothing_is_begun(
    given: Any, catalogue: Catalogue, migrated: None, documents: Any
) -> None:
    lamp, user = catalogue.add(), f"patient {uuid4()}"
    async with serving(given(inventory={"target": f"127.0.0.1:{free_port()}"}), loops=False) as cut_off:
        answers = [await cut_off.order([(lamp, 1)], user=user)]
        end = asyncio.get_running_loop().time() + PATIENCE
        # Where the next order comes after the circuit let one through to try, that one is begun.
        while "order_id" in answers[-1].json() and (len(answers) < 12 or asyncio.get_running_loop().time() < end):
            answers.append(await cut_off.order([(lamp, 1)], user=user))
    assert {a.status_code for a in answers} == {503}
    named = [a.json()["order_id"] for a in answers if "order_id" in a.json()]
    assert len(named) == len(answers) - 1, "the circuit never opened"
    assert {str(d["_id"]) for d in documents.find({"user": user})} == set(named)
    documents.delete_many({"user": user})
