"""Reconciliation reports and repairs differences; a service under load has none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from market.kit.ids import new_id
from market.orders.domain import KNOWN_STATUSES
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import CAUSES, DifferenceType
from market.orders.reconciliation.reconcile import Summary
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .reconciliation import OVERDUE_SECONDS, RECOVERY, is_published, isolated_service, reconcile
from .service import MakeSettings, Service, is_release_recorded, on_new_database, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def service(make_settings: MakeSettings, migrated: None, stock: Stock, postgres: Any) -> Any:
    async with isolated_service(
        make_settings(database=f"orders_reconcile_{uuid4().hex[:8]}", recovery=RECOVERY), postgres
    ) as service:
        yield service


async def test_each_difference_is_reported_and_repaired_if_its_repair_is_unambiguous(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)

    async def place() -> str:
        response = await service.place([(lamp, 1)])
        assert response.status_code == 201
        await topic.wait_for(response.json()["id"], "order.created")
        await until(lambda: is_published(service, response.json()["id"]), what="published")
        return str(response.json()["id"])

    (
        intact,
        replaced,
        other_items,
        unsent,
        rejected_event,
        newer_event,
        unfinished,
        unreleased,
        reservation_cancelled,
    ) = [await place() for _ in range(9)]
    documents = service.documents
    # Damage each of them, as a restored backup or a manual change in the database would.
    for order_id in (replaced, reservation_cancelled):
        await stock.release(order_id)
    unreserved = str(new_id())
    document = await documents.find_one({"_id": UUID(replaced)})
    await documents.insert_one({**document, "_id": UUID(unreserved)})
    await documents.delete_one({"_id": UUID(replaced)})
    await documents.update_one({"_id": UUID(other_items)}, {"$set": {"items.0.quantity": 2}})
    old_entry = {"id": uuid4(), "type": "order.created", "at": document["created_at"].replace(year=2020)}
    await documents.update_one({"_id": UUID(unsent)}, {"$set": {"outbox": [old_entry]}})
    await documents.update_one(
        {"_id": UUID(rejected_event)}, {"$set": {"outbox": [{**old_entry, "refused": "too large"}]}}
    )
    await documents.update_one(
        {"_id": UUID(newer_event)},
        {"$set": {"outbox": [{**old_entry, "type": "order.shipped"}, old_entry], "unsent_since": old_entry["at"]}},
    )
    await documents.update_one(
        {"_id": UUID(unfinished)}, {"$set": {"status": "pending"}, "$unset": {"confirmed_at": 1}}
    )
    await documents.update_one(
        {"_id": UUID(unreleased)}, {"$set": {"status": "cancelled", "cancelled_at": document["created_at"]}}
    )
    without_order = str(new_id())
    await stock.reserve(without_order, lamp, 5)
    await asyncio.sleep(OVERDUE_SECONDS)

    report = await reconcile(service)
    expected = {
        unreserved: DifferenceType.NO_RESERVATION,
        other_items: DifferenceType.ITEMS_DIFFER,
        unsent: DifferenceType.EVENT_OVERDUE,
        rejected_event: DifferenceType.EVENT_STUCK,
        newer_event: DifferenceType.EVENT_UNKNOWN_TYPE,
        unfinished: DifferenceType.PENDING,
        unreleased: DifferenceType.NOT_RELEASED,
        without_order: DifferenceType.NO_ORDER,
        reservation_cancelled: DifferenceType.RESERVATION_CANCELLED,
    }
    assert {order_id: report.differences_of(order_id) for order_id in expected} == {
        order_id: [(kind.value, None)] for order_id, kind in expected.items()
    }
    assert report.differences_of(intact) == []
    assert all(d["cause"] == CAUSES[DifferenceType(d["difference"])] for d in report.differences)
    assert report.summary["complete"] is True
    assert report.progress

    available = await stock.available(lamp)
    repaired = await reconcile(service, repair=True)
    assert repaired.differences_of(unreserved) == [("confirmed-without-reservation", True)]
    assert repaired.differences_of(without_order) == [("reservation-without-order", True)]
    assert repaired.differences_of(unreleased) == [("stock-not-released", True)]
    assert repaired.differences_of(unfinished) == [("order-still-pending", True)]
    assert repaired.differences_of(other_items) == [("reserved-items-differ", None)]
    assert repaired.differences_of(newer_event) == [("event-of-unknown-type", None)]
    assert repaired.differences_of(reservation_cancelled) == [("confirmed-but-reservation-cancelled", None)]
    # Reserved again: 1. Released: 5 without an order, 1 of the cancelled order, 1 of the pending order.
    assert await stock.available(lamp) == available - 1 + 7
    await service.deps.relay.run_once()
    await until(lambda: is_published(service, unsent), what="published")
    await until(lambda: is_published(service, rejected_event), what="published")
    after = await reconcile(service)
    unrepaired = {other_items, newer_event, reservation_cancelled}
    assert {order_id for order_id in expected if after.differences_of(order_id)} == unrepaired


async def test_events_missing_from_the_topic_are_published_again(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    order = (await service.place([(lamp, 1)])).json()
    assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
    await topic.wait_for(order["id"], "order.created", "order.cancelled")
    await until(lambda: is_release_recorded(service, order["id"]), what="release is recorded")
    await until(lambda: is_published(service, order["id"]), what="published")
    # A copy of the order, with an id that has no events in the topic.
    copy = str(new_id())
    document = await service.documents.find_one({"_id": UUID(order["id"])})
    await service.documents.insert_one({**document, "_id": UUID(copy)})
    await asyncio.sleep(1.2)
    report = await reconcile(service, topic=True)
    assert report.differences_of(copy) == [("event-not-in-topic", None)] * 2
    assert report.differences_of(order["id"]) == []
    assert report.summary["messages"] > 1
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences_of(copy) == [("event-not-in-topic", True)] * 2
    await service.deps.relay.run_once()
    published = await topic.wait_for(copy, "order.created", "order.cancelled")
    assert [e.type for e in published] == ["order.created", "order.cancelled"]
    await until(lambda: is_published(service, copy), what="published")
    assert (await reconcile(service, topic=True)).differences_of(copy) == []


async def test_a_service_under_load_has_no_differences(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock
) -> None:
    # Orders older than a second are compared. Nothing is overdue, even if the machine stands still for a moment.
    recovery = {"reject_after_seconds": 1, "interval_seconds": 10, "lease_seconds": 30}
    new_settings = await on_new_database(make_settings)
    lamp = catalogue.add()
    await stock.set(lamp, 100_000)
    async with serving(new_settings(recovery=recovery)) as service:
        stopping = False

        async def buy() -> None:
            while not stopping:
                response = await service.place([(lamp, 1)])
                # An order slower than a second is rejected.
                assert response.status_code in (201, 503), response.text
                if response.status_code == 201 and response.json()["id"].endswith(("0", "5", "a")):
                    await service.http.delete(response.headers["location"])

        async def has_enough_orders() -> bool:
            return bool(await service.documents.count_documents({}) > 30)

        customers = [asyncio.create_task(buy()) for _ in range(4)]
        try:
            await until(has_enough_orders, what="orders")
            await asyncio.sleep(1.2)
            order_ids = {str(d["_id"]) async for d in service.documents.find({}, {"_id": 1})}
            report = await reconcile(service, topic=True)
        finally:
            stopping = True
            await asyncio.gather(*customers)
        order_ids |= {str(d["_id"]) async for d in service.documents.find({}, {"_id": 1})}
        assert [d for d in report.differences if d["id"] in order_ids] == []
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


async def test_the_command_is_not_finished_without_its_temporary_file(service: Service, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    records = command.records(service.deps, service.config, repair=False, topic=True, directory=missing)
    [summary] = [record async for record in records]
    assert isinstance(summary, Summary)
    assert not summary.complete
    assert summary.error is not None
    assert summary.error.startswith(f"the scratch database in {missing} failed: ")


async def test_the_command_exits_with_2_if_the_topic_cannot_be_read(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    # More than this consumer fetches at a time, which librdkafka refuses for this consumer only.
    kafka = msgspec.structs.replace(service.config.kafka, options={"message.max.bytes": "20000000"})
    config = msgspec.structs.replace(service.config, kafka=kafka)
    assert await command.run(config, ["--topic"]) == 2
    assert "; not finished: the topic cannot be read: " in capsys.readouterr().out


def test_the_status_values_are_those_in_stored_documents() -> None:
    assert [s.value for s in KNOWN_STATUSES] == ["pending", "confirmed", "rejected", "cancelled"]
