"""Differences of reconciliation that need a topic of their own, an unavailable inventory or a damaged table.

Each test causes a difference, checks how it is reported, repairs it, and leaves the stores without differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from bson import ObjectId
from confluent_kafka import Producer
from market_dev.chaos.proxy import Proxy

from market.contracts import events
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import DifferenceType
from market.orders.reconciliation.reconcile import Difference
from tests.support.servers import KafkaHandle, kafka_server, running
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .reconciliation import (
    OVERDUE_SECONDS,
    RECOVERY,
    copy_order,
    difference,
    exit_status,
    is_published,
    isolated_service,
    no_differences,
    place_and_publish,
    publish,
    reconcile,
)
from .service import MakeSettings, Service, get_document, is_release_recorded, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture(scope="module")
def bootstrap_servers(kafka: Any, server_directory: Path) -> Iterator[str]:
    """The address of a second broker, of the same kind, whose topic has no other test's events."""
    server = kafka_server(server_directory / "kafka-reconciliation", server_directory / "logs", kafka.kind)
    with running(KafkaHandle(server)):
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def own_topic(bootstrap_servers: str) -> Iterator[Topic]:
    topic = Topic(bootstrap_servers)
    yield topic
    topic.close()


@pytest.fixture(scope="module")
def new_settings(make_settings: MakeSettings, bootstrap_servers: str, kafka: Any) -> MakeSettings:
    """Make configurations with a new database and the second broker."""
    own_kafka = {
        "bootstrap_servers": bootstrap_servers,
        "partitions": 4 if kafka.kind == "apache" else 0,
        "delivery_seconds": 10,
    }
    database = f"orders_{uuid4().hex[:8]}"
    return lambda **sections: make_settings(database=database, recovery=RECOVERY, kafka=own_kafka, **sections)


@pytest.fixture(scope="module")
async def service(new_settings: MakeSettings, postgres: Any) -> AsyncIterator[Service]:
    """An instance without background tasks. Each test leaves it without differences."""
    async with isolated_service(new_settings(), postgres) as service:
        yield service


async def test_an_overdue_stock_release_is_repaired(
    service: Service, new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await place_and_publish(service, lamp, own_topic)
    async with Proxy(upstream=int(stock.target.rpartition(":")[2])) as network:
        inventory = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
        async with serving(new_settings(inventory=inventory), background=False) as cut_off:
            network.blackhole()
            assert (await cut_off.http.delete(f"/api/order/{order_id}")).status_code == 202
            await own_topic.wait_for(order_id, "order.cancelled")
            await until(lambda: is_published(service, order_id), what="published")
            # The swallowed requests never arrive.
            network.disconnect()
    await asyncio.sleep(OVERDUE_SECONDS)
    report = await reconcile(service)
    assert report.differences == [difference(DifferenceType.RELEASE_OVERDUE, order_id, "the order is cancelled")]
    assert report.counts == (1, 0, True)
    assert await stock.available(lamp) == 3
    assert await exit_status(service) == 1
    repaired = await reconcile(service, repair=True)
    assert repaired.differences == [
        difference(DifferenceType.RELEASE_OVERDUE, order_id, "the order is cancelled; released", True)
    ]
    assert repaired.counts == (1, 1, True)
    assert await stock.available(lamp) == 5
    assert await stock.reservation(order_id) == ("cancelled", {lamp: 2})
    assert "release_due" not in await service.documents.find_one({"_id": UUID(order_id)})
    assert no_differences(await reconcile(service))
    assert await exit_status(service) == 0
    assert await stock.available(lamp) == 5


async def test_a_cancellation_published_before_the_creation_is_published_again_after_it(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    intact = await place_and_publish(service, lamp, own_topic, cancelled=True)
    swapped = await copy_order(service, intact)
    await publish(service, own_topic, swapped, events.CANCELLED, events.CREATED)
    await asyncio.sleep(1.2)
    assert no_differences(await reconcile(service))
    report = await reconcile(service, topic=True)
    assert report.differences == [difference(DifferenceType.EVENTS_OUT_OF_ORDER, swapped, "order.cancelled came first")]
    assert await exit_status(service, "--topic") == 1
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences_of(swapped) == [("events-out-of-order", True)]
    assert repaired.counts == (1, 1, True)
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.events_of(swapped)) == 3, what="cancellation published again")
    assert [(e.type, e.sequence) for e in own_topic.events_of(swapped)] == [
        ("order.cancelled", "2"),
        ("order.created", "1"),
        ("order.cancelled", "2"),
    ]
    assert own_topic.events_of(swapped)[0].id == own_topic.events_of(swapped)[2].id
    assert len(own_topic.messages_of(intact)) == 2
    await until(lambda: is_published(service, swapped), what="published")
    assert no_differences(await reconcile(service, topic=True))
    assert await exit_status(service, "--topic") == 0


async def test_a_creation_missing_from_the_topic_is_published_with_the_cancellation_after_it(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    incomplete = await copy_order(service, await place_and_publish(service, lamp, own_topic, cancelled=True))
    await publish(service, own_topic, incomplete, events.CANCELLED)
    await asyncio.sleep(1.2)
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences == [
        difference(DifferenceType.EVENT_MISSING, incomplete, "order.created; queued for the relay", True)
    ]
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.messages_of(incomplete)) == 3, what="both published")
    published = own_topic.events_of(incomplete)
    assert [e.type for e in published] == ["order.cancelled", "order.created", "order.cancelled"]
    # With the times of the original events, so that notifications does not take the repeated ones for new.
    document = await get_document(service, incomplete)
    times = [datetime.fromisoformat(e.time).replace(tzinfo=None) for e in published[1:]]
    assert times == [document["confirmed_at"].replace(tzinfo=None), document["cancelled_at"].replace(tzinfo=None)]
    await until(lambda: is_published(service, incomplete), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_an_event_without_an_order_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    deleted, intact = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    document = await service.documents.find_one_and_delete({"_id": UUID(deleted)})
    connection = await asyncpg.connect(postgres.uri("inventory"))
    await connection.execute("DELETE FROM reservations WHERE id = $1", UUID(deleted))
    await connection.close()
    await asyncio.sleep(1.2)
    # Without the topic there is nothing to compare.
    assert no_differences(await reconcile(service))
    assert await exit_status(service) == 0
    for repair in (False, True):
        report = await reconcile(service, repair=repair, topic=True)
        # The events do not tell the whole order: there is no unambiguous repair.
        assert report.differences == [
            difference(DifferenceType.EVENT_WITHOUT_ORDER, deleted, "the topic has events for this order")
        ]
        assert report.counts == (1, 0, True)
    assert await exit_status(service, "--repair", "--topic") == 1
    assert len(own_topic.messages_of(deleted)) == len(own_topic.messages_of(intact)) == 1
    # An operator restores the order; then the repair reserves its stock again.
    await service.documents.insert_one(document)
    assert (await reconcile(service, repair=True, topic=True)).differences_of(deleted) == [
        ("confirmed-without-reservation", True)
    ]
    assert no_differences(await reconcile(service, topic=True))


async def test_a_reserved_product_without_a_stock_row_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp, chair = catalogue.add(), catalogue.add()
    for product_id in (lamp, chair):
        await stock.set(product_id, 5)
        await place_and_publish(service, product_id, own_topic)
    connection = await asyncpg.connect(postgres.uri("inventory"))
    await connection.execute("DELETE FROM inventory WHERE product_id = $1", UUID(lamp))
    await connection.close()
    await asyncio.sleep(1.2)
    for repair in (False, True):
        report = await reconcile(service, repair=repair)
        # Only counting the units can tell how many are available.
        assert report.differences == [difference(DifferenceType.NO_STOCK_ROW, lamp, "reservations hold units of it")]
        assert report.counts == (1, 0, True)
    assert await exit_status(service, "--repair") == 1
    await stock.set(lamp, 3)
    assert no_differences(await reconcile(service))
    assert await exit_status(service) == 0
    assert (await stock.available(lamp), await stock.available(chair)) == (3, 3)


async def test_stock_below_zero_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    await place_and_publish(service, lamp, own_topic)
    connection = await asyncpg.connect(postgres.uri("inventory"))
    await connection.execute("ALTER TABLE inventory DROP CONSTRAINT inventory_quantity_check")
    try:
        await connection.execute("UPDATE inventory SET quantity = -1 WHERE product_id = $1", UUID(lamp))
        report = await reconcile(service, repair=True)
        assert report.differences == [difference(DifferenceType.STOCK_BELOW_ZERO, lamp, "available: -1")]
        assert report.counts == (1, 0, True)
    finally:
        await stock.set(lamp, 3)
        await connection.execute("ALTER TABLE inventory ADD CONSTRAINT inventory_quantity_check CHECK (quantity >= 0)")
        await connection.close()
    assert no_differences(await reconcile(service))


async def test_an_unreadable_document_is_reported_and_hides_no_other_difference(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    chair, lamp = catalogue.add(), catalogue.add()
    for product_id in (chair, lamp):
        await stock.set(product_id, 9)
    damaged, later = [await place_and_publish(service, product_id, own_topic) for product_id in (chair, lamp)]
    # Only the reservation of the unreadable order says that the chair needs a stock row.
    connection = await asyncpg.connect(postgres.uri("inventory"))
    await connection.execute("DELETE FROM inventory WHERE product_id = $1", UUID(chair))
    await connection.close()
    document = await service.documents.find_one({"_id": UUID(damaged)})
    await service.documents.update_one({"_id": UUID(damaged)}, {"$unset": {"user": 1}})
    await stock.release(later)
    await asyncio.sleep(1.2)
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences_of(damaged) == [("unreadable-order", None)]
    assert "user" in next(d["detail"] for d in report.differences if d["id"] == damaged)
    assert report.differences_of(later) == [("confirmed-but-reservation-cancelled", None)]
    assert report.differences_of(chair) == [("reserved-product-without-stock-row", None)]
    assert report.counts == (3, 0, True)
    await stock.set(chair, 8)
    await service.documents.replace_one({"_id": UUID(damaged)}, document)
    assert (await reconcile(service, topic=True)).differences_of(damaged) == []
    # Inventory will always reject this reservation; an operator cancels the order.
    assert (await service.http.delete(f"/api/order/{later}")).status_code == 204
    await until(lambda: is_release_recorded(service, later), what="release is recorded")
    await own_topic.wait_for(later, events.CANCELLED)
    await until(lambda: is_published(service, later), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_documents_whose_id_is_not_a_uuid_are_reported_and_hide_no_order(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """MongoDB sorts numbers and strings before UUIDs, and its own ObjectIds after them."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await place_and_publish(service, lamp, own_topic)
    non_uuid_ids = [*range(600), "by hand", ObjectId("65f000000000000000000001"), b"x", b"y" * 17]
    await service.documents.insert_many([{"_id": non_uuid_id} for non_uuid_id in non_uuid_ids])
    try:
        report = await reconcile(service, repair=True, topic=True)
        assert sorted(d["id"] for d in report.differences) == sorted(map(repr, non_uuid_ids))
        assert all(
            d == difference(DifferenceType.UNREADABLE, d["id"], "its id is not a UUID") for d in report.differences
        )
        assert (report.counts, report.differences_of(order_id)) == ((604, 0, True), [])
    finally:
        await service.documents.delete_many({"_id": {"$in": non_uuid_ids}})
    assert no_differences(await reconcile(service, topic=True))


async def test_orders_restored_from_an_old_backup_contradict_their_events(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """Orders has lost what happened since the backup, but inventory and the topic have not."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    lost, unconfirmed = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    uncancelled = await place_and_publish(service, lamp, own_topic, cancelled=True)
    documents = service.documents
    before = {order_id: await get_document(service, order_id) for order_id in (lost, unconfirmed, uncancelled)}
    await documents.delete_one({"_id": UUID(lost)})
    # It was pending in the backup, and recovery has rejected it, but not released its stock yet.
    await documents.update_one(
        {"_id": UUID(unconfirmed)}, {"$set": {"status": "rejected"}, "$unset": {"confirmed_at": 1}}
    )
    await documents.update_one(
        {"_id": UUID(uncancelled)}, {"$set": {"status": "confirmed"}, "$unset": {"cancelled_at": 1}}
    )
    await asyncio.sleep(1.2)
    report = await reconcile(service, topic=True)
    assert report.differences_of(lost) == [("reservation-without-order", None), ("event-without-order", None)]
    assert report.differences_of(unconfirmed) == [("stock-not-released", None), ("event-contradicts-order", None)]
    assert report.differences_of(uncancelled) == [
        ("confirmed-but-reservation-cancelled", None),
        ("event-contradicts-order", None),
    ]
    assert report.counts == (6, 0, True)
    for order_id in (unconfirmed, uncancelled):
        await documents.replace_one({"_id": UUID(order_id)}, before[order_id])
    # The customer got a mail about the lost order: it is still reported when its stock has been released.
    for repaired in ([("reservation-without-order", True)], []):
        report = await reconcile(service, repair=True, topic=True)
        assert report.differences_of(lost) == [*repaired, ("event-without-order", None)]
        assert len(report.differences) == len(repaired) + 1
    # An operator restores it as cancelled, since its stock is released.
    await documents.insert_one({**before[lost], "status": "cancelled", "cancelled_at": before[lost]["confirmed_at"]})
    assert (await reconcile(service, repair=True, topic=True)).differences_of(lost) == [("event-not-in-topic", True)]
    await service.deps.relay.run_once()
    await until(lambda: is_published(service, lost), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_an_event_that_differs_from_its_order_is_reported(
    service: Service, bootstrap_servers: str, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """This is the last test of the file, because its events stay in the topic."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    changed, forged, duplicated = [await place_and_publish(service, lamp, own_topic) for _ in range(3)]
    document = await service.documents.find_one({"_id": UUID(changed)})
    await service.documents.update_one({"_id": UUID(changed)}, {"$set": {"user": "somebody else"}})
    await asyncio.sleep(1.2)
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences == [
        difference(
            DifferenceType.EVENT_DIFFERS, changed, "the event's user, products, prices or times differ from the order's"
        )
    ]
    assert await exit_status(service, "--topic") == 1
    await service.documents.replace_one({"_id": UUID(changed)}, document)
    assert no_differences(await reconcile(service, topic=True))
    producer = Producer({"bootstrap.servers": bootstrap_servers, "partitioner": "murmur2_random"})
    original = own_topic.messages_of(forged)[0]
    original_id, other_id = own_topic.events_of(forged)[0].id.encode(), str(uuid4()).encode()
    producer.produce(events.TOPIC, original.value().replace(original_id, other_id), forged)
    original = own_topic.messages_of(duplicated)[0]
    producer.produce(events.TOPIC, original.value().replace(b'"quantity":2', b'"quantity":3'), duplicated)
    producer.produce(events.TOPIC, original.value()[:-2], duplicated)
    assert producer.flush(60) == 0
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences_of(forged) == report.differences_of(duplicated) == [("event-differs-from-order", None)]
    assert {d["detail"] for d in report.differences if d["id"] == duplicated} == {
        "the order's events in the topic have different contents"
    }
    unreadable = [d for d in report.differences if d["difference"] == DifferenceType.EVENT_UNREADABLE.value]
    assert [d["id"].rpartition("/")[0] for d in unreadable] == [f"orders/{original.partition()}"]
    assert report.counts == (3, 0, True)


def test_the_command_prints_a_difference_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    line = difference(DifferenceType.NO_STOCK_ROW, "p", "reservations hold units of it")
    command.show(msgspec.convert(line, Difference))
    assert capsys.readouterr().out == (
        "reserved-product-without-stock-row p: reservations hold units of it. Likely cause: inventory's table was "
        "modified by hand\n"
    )
