"""Reconciliation: each difference is found, named and mended; a shop at work gives no false alarm."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from market.kit.ids import new_id
from market.orders import app as orders_app
from market.orders.config import Config
from market.orders.domain import Status
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import CAUSES, Kind
from market.orders.store import OrderRepository
from tests.support.waiting import PATIENCE, until

from .parts import Catalogue, Service, Stock, Topic, serving
from .reconciling import LATE_SECONDS, RECOVERY, collection, reconcile, sent, unattended


@pytest.fixture
async def service(given: Any, migrated: None, stock: Stock, postgres: Any) -> Any:
    async with unattended(given(database=f"orders_reconcile_{uuid4().hex[:8]}", recovery=RECOVERY), postgres) as made:
        yield made


async def test_each_difference_is_named_and_what_has_one_right_answer_is_mended(
    service: Service, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)

    async def order() -> str:
        answer = await service.order([(lamp, 1)])
        assert answer.status_code == 201
        await topic.wait(answer.json()["id"], "order.created")
        await until(lambda: sent(service, answer.json()["id"]), what="cleared")
        return str(answer.json()["id"])

    well, unreserved, other_items, unsent, refused, unfinished, not_back, tombstone = [await order() for _ in range(8)]
    orders = collection(service)
    # Each of them is damaged, as a restore or a hand in the table would.
    for id in (unreserved, tombstone):
        await stock.give_back(id)
    missing = str(new_id())
    document = await orders.find_one({"_id": UUID(unreserved)})
    await orders.insert_one({**document, "_id": UUID(missing)})
    await orders.delete_one({"_id": UUID(unreserved)})
    await orders.update_one({"_id": UUID(other_items)}, {"$set": {"items.0.quantity": 2}})
    stale = {"id": uuid4(), "type": "order.created", "at": document["created_at"].replace(year=2020)}
    await orders.update_one({"_id": UUID(unsent)}, {"$set": {"outbox": [stale]}})
    await orders.update_one({"_id": UUID(refused)}, {"$set": {"outbox": [{**stale, "refused": "too large"}]}})
    await orders.update_one({"_id": UUID(unfinished)}, {"$set": {"status": "pending"}, "$unset": {"confirmed_at": 1}})
    await orders.update_one(
        {"_id": UUID(not_back)}, {"$set": {"status": "cancelled", "cancelled_at": document["created_at"]}}
    )
    nobody = str(new_id())
    await stock.reserve(nobody, lamp, 5)
    await asyncio.sleep(LATE_SECONDS)

    found = await reconcile(service)
    expected = {
        missing: Kind.NO_RESERVATION,
        other_items: Kind.ITEMS_DIFFER,
        unsent: Kind.EVENT_OVERDUE,
        refused: Kind.EVENT_REJECTED,
        unfinished: Kind.PENDING,
        not_back: Kind.NOT_RELEASED,
        nobody: Kind.NO_ORDER,
        tombstone: Kind.RESERVATION_CANCELLED,
    }
    assert {id: found.of(id) for id in expected} == {id: [(kind.value, None)] for id, kind in expected.items()}
    assert found.of(well) == []
    assert all(d["cause"] == CAUSES[Kind(d["difference"])] for d in found.all)
    assert found.summary["complete"] is True
    assert found.progress

    left = await stock.left(lamp)
    mended = await reconcile(service, repair=1)
    assert mended.of(missing) == [("confirmed-without-reservation", True)]
    assert mended.of(nobody) == [("reservation-without-order", True)]
    assert mended.of(not_back) == [("stock-not-released", True)]
    assert mended.of(unfinished) == [("order-still-pending", True)]
    assert mended.of(other_items) == [("reserved-items-differ", None)]
    assert mended.of(tombstone) == [("confirmed-but-reservation-cancelled", None)]
    # Reserved anew: 1; given back: 5 of nobody, 1 of the cancelled, 1 of the pending.
    assert await stock.left(lamp) == left - 1 + 7
    assert service.deps is not None
    await service.deps.relay.run_once()
    for id in (unsent, refused):
        await until(lambda id=id: sent(service, id), what="sent")  # type: ignore[misc]
    after = await reconcile(service)
    assert {id for id in expected if after.of(id)} == {other_items, tombstone}


async def test_events_that_the_topic_has_lost_are_sent_again(
    service: Service, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    answer = (await service.order([(lamp, 1)])).json()
    assert (await service.http.delete(f"/api/order/{answer['id']}")).status_code == 204
    await topic.wait(answer["id"], "order.created", "order.cancelled")
    await until(lambda: sent(service, answer["id"]), what="cleared")
    # The same order under an id that the topic has never seen.
    lost = str(new_id())
    document = await collection(service).find_one({"_id": UUID(answer["id"])})
    await collection(service).insert_one({**document, "_id": UUID(lost)})
    await asyncio.sleep(1.2)
    found = await reconcile(service, topic=1)
    assert found.of(lost) == [("event-not-in-topic", None)] * 2
    assert found.of(answer["id"]) == []
    assert found.summary["messages"] > 1
    mended = await reconcile(service, repair=1, topic=1)
    assert mended.of(lost) == [("event-not-in-topic", True)] * 2
    assert service.deps is not None
    await service.deps.relay.run_once()
    again = await topic.wait(lost, "order.created", "order.cancelled")
    assert [e.type for e in again] == ["order.created", "order.cancelled"]
    await until(lambda: sent(service, lost), what="cleared")
    assert (await reconcile(service, topic=1)).of(lost) == []


async def test_a_shop_at_work_gives_no_false_alarm(
    given: Any, migrated: None, catalogue: Catalogue, stock: Stock
) -> None:
    # Orders of a second ago are looked at. Nobody is late as yet, and the shop is not either where the machine stands
    # still.
    recovery = {"after_seconds": 1, "interval_seconds": 10, "lease_seconds": 30}
    config = given(database=f"orders_busy_{uuid4().hex[:8]}", recovery=recovery)
    assert await orders_app.migrate(msgspec.convert(config, Config), []) == 0
    lamp = catalogue.add()
    await stock.set(lamp, 100_000)
    async with serving(config) as service:
        busy = True

        async def buyer() -> None:
            while busy:
                order = await service.order([(lamp, 1)])
                # In a second a slow one is rejected.
                assert order.status_code in (201, 503), order.text
                if order.status_code == 201 and order.json()["id"].endswith(("0", "5", "a")):
                    await service.http.delete(order.headers["location"])

        async def many() -> bool:
            return bool(await collection(service).count_documents({}) > 30)

        buyers = [asyncio.create_task(buyer()) for _ in range(4)]
        try:
            await until(many, what="orders")
            await asyncio.sleep(1.2)
            ours = {str(d["_id"]) async for d in collection(service).find({}, {"_id": 1})}
            found = await reconcile(service, topic=1)
        finally:
            busy = False
            await asyncio.gather(*buyers)
        ours |= {str(d["_id"]) async for d in collection(service).find({}, {"_id": 1})}
        assert [d for d in found.all if d["id"] in ours] == []
        assert found.summary["complete"], found.summary
        assert found.summary["orders"] > 30


async def test_the_command_names_the_option_that_it_does_not_know(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command.run(service.config, ["--repair", "--everything"]) == 2
    assert capsys.readouterr() == ("", "unknown option --everything; usage: reconcile [--repair] [--json] [--topic]\n")


async def test_the_command_says_by_its_exit_status_what_it_found(given: Any, own_process: Any, migrated: None) -> None:
    process = own_process(database=f"orders_command_{uuid4().hex[:8]}")
    process.start("migrate")
    assert await process.exited(2 * PATIENCE) == 0
    process.start("reconcile", "--nonsense")
    assert await process.exited(2 * PATIENCE) == 2


def test_the_status_names_are_those_of_the_documents() -> None:
    assert [s.value for s in Status] == ["pending", "confirmed", "rejected", "cancelled"]
    assert OrderRepository is not None
