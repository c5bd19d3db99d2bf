"""Reconciliation: each difference is report, named and repaired; a shop at work gives no false alarm."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from market.kit.ids import new_id
from market.orders.domain import Status
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import CAUSES, Kind
from market.orders.store import OrderRepository
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .reconciliation import OVERDUE_SECONDS, RECOVERY, is_published, isolated_service, reconcile
from .service import MakeSettings, Service, migrate, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def service(make_settings: MakeSettings, migrated: None, stock: Stock, postgres: Any) -> Any:
    async with isolated_service(
        make_settings(database=f"orders_reconcile_{uuid4().hex[:8]}", recovery=RECOVERY), postgres
    ) as made:
        yield made


async def test_each_difference_is_reported_and_repaired_if_it_has_one_right_repair(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)

    async def order() -> str:
        response = await service.place([(lamp, 1)])
        assert response.status_code == 201
        await topic.wait_for(response.json()["id"], "order.created")
        await until(lambda: is_published(service, response.json()["id"]), what="published")
        return str(response.json()["id"])

    well, unreserved, other_items, unsent, refused, unfinished, not_back, tombstone = [await order() for _ in range(8)]
    orders = service.documents
    # Each of them is damaged, as a restore or a hand in the table would.
    for id in (unreserved, tombstone):
        await stock.release(id)
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
    await asyncio.sleep(OVERDUE_SECONDS)

    report = await reconcile(service)
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
    assert {id: report.differences_of(id) for id in expected} == {
        id: [(kind.value, None)] for id, kind in expected.items()
    }
    assert report.differences_of(well) == []
    assert all(d["cause"] == CAUSES[Kind(d["difference"])] for d in report.differences)
    assert report.summary["complete"] is True
    assert report.progress

    left = await stock.available(lamp)
    repaired = await reconcile(service, repair=True)
    assert repaired.differences_of(missing) == [("confirmed-without-reservation", True)]
    assert repaired.differences_of(nobody) == [("reservation-without-order", True)]
    assert repaired.differences_of(not_back) == [("stock-not-released", True)]
    assert repaired.differences_of(unfinished) == [("order-still-pending", True)]
    assert repaired.differences_of(other_items) == [("reserved-items-differ", None)]
    assert repaired.differences_of(tombstone) == [("confirmed-but-reservation-cancelled", None)]
    # Reserved anew: 1; make_settings back: 5 of nobody, 1 of the cancelled, 1 of the pending.
    assert await stock.available(lamp) == left - 1 + 7
    await service.deps.relay.run_once()
    for id in (unsent, refused):
        await until(lambda id=id: is_published(service, id), what="sent")  # type: ignore[misc]
    after = await reconcile(service)
    assert {id for id in expected if after.differences_of(id)} == {other_items, tombstone}


async def test_events_missing_from_the_topic_are_published_again(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    response = (await service.place([(lamp, 1)])).json()
    assert (await service.http.delete(f"/api/order/{response['id']}")).status_code == 204
    await topic.wait_for(response["id"], "order.created", "order.cancelled")
    await until(lambda: is_published(service, response["id"]), what="published")
    # The same order under an id that the topic has never seen.
    lost = str(new_id())
    document = await service.documents.find_one({"_id": UUID(response["id"])})
    await service.documents.insert_one({**document, "_id": UUID(lost)})
    await asyncio.sleep(1.2)
    report = await reconcile(service, topic=True)
    assert report.differences_of(lost) == [("event-not-in-topic", None)] * 2
    assert report.differences_of(response["id"]) == []
    assert report.summary["messages"] > 1
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences_of(lost) == [("event-not-in-topic", True)] * 2
    await service.deps.relay.run_once()
    again = await topic.wait_for(lost, "order.created", "order.cancelled")
    assert [e.type for e in again] == ["order.created", "order.cancelled"]
    await until(lambda: is_published(service, lost), what="published")
    assert (await reconcile(service, topic=True)).differences_of(lost) == []


async def test_a_service_under_load_has_no_differences(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock
) -> None:
    # Orders of a second ago are looked at. Nobody is late as yet, and the shop is not either where the machine stands still.
    recovery = {"after_seconds": 1, "interval_seconds": 10, "lease_seconds": 30}
    config = make_settings(database=f"orders_busy_{uuid4().hex[:8]}", recovery=recovery)
    await migrate(config)
    lamp = catalogue.add()
    await stock.set(lamp, 100_000)
    async with serving(config) as service:
        busy = True

        async def buyer() -> None:
            while busy:
                order = await service.place([(lamp, 1)])
                # In a second a slow one is rejected.
                assert order.status_code in (201, 503), order.text
                if order.status_code == 201 and order.json()["id"].endswith(("0", "5", "a")):
                    await service.http.delete(order.headers["location"])

        async def many() -> bool:
            return bool(await service.documents.count_documents({}) > 30)

        buyers = [asyncio.create_task(buyer()) for _ in range(4)]
        try:
            await until(many, what="orders")
            await asyncio.sleep(1.2)
            ours = {str(d["_id"]) async for d in service.documents.find({}, {"_id": 1})}
            report = await reconcile(service, topic=True)
        finally:
            busy = False
            await asyncio.gather(*buyers)
        ours |= {str(d["_id"]) async for d in service.documents.find({}, {"_id": 1})}
        assert [d for d in report.differences if d["id"] in ours] == []
        assert report.summary["complete"], report.summary
        assert report.summary["orders"] > 30


async def test_the_command_names_an_unknown_option(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command.run(service.config, ["--repair", "--everything"]) == 2
    assert capsys.readouterr() == ("", "unknown option --everything; usage: reconcile [--repair] [--json] [--topic]\n")


async def test_the_command_exits_with_2_for_an_unknown_option(
    make_settings: MakeSettings, make_process: Any, migrated: None
) -> None:
    process = make_process(database=f"orders_command_{uuid4().hex[:8]}")
    process.start("migrate")
    assert await process.exited(2 * PATIENCE) == 0
    process.start("reconcile", "--nonsense")
    assert await process.exited(2 * PATIENCE) == 2


def test_the_status_values_are_those_in_stored_documents() -> None:
    assert [s.value for s in Status] == ["pending", "confirmed", "rejected", "cancelled"]
    assert OrderRepository is not None
