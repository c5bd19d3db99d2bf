"""Differences of reconciliation that need a world of their own: a dead inventory, a topic that nobody else writes to, a
damaged table. Each is made, named with its cause, and repaired where it has one right response; the exit status says which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from bson import ObjectId
from confluent_kafka import Producer
from market_dev.chaos.proxy import Proxy
from market_dev.stack.kafka import apache
from market_dev.stack.kafka.broker import EmbeddedKafka

from market.contracts import events
from market.kit.ids import new_id
from market.orders.domain import OutboxEntry
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import CAUSES, Kind
from tests.support.ports import free_port
from tests.support.servers import ServerHandle
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .reconciliation import OVERDUE_SECONDS, RECOVERY, Report, is_published, isolated_service, reconcile
from .service import MakeSettings, Service, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture(scope="module")
def broker(kafka: Any, server_directory: Path) -> Iterator[str]:
    """Where a Kafka of our own is reached: its topic has no other test's events."""
    directory, logs = server_directory / "kafka-reconciled", server_directory / "logs"
    if kafka.kind == "apache":
        server = ServerHandle(apache.ApacheKafka(free_port(), free_port(), directory, logs))
    else:
        server = ServerHandle(EmbeddedKafka(free_port(), directory, logs))
    server.start(120)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(scope="module")
def own_topic(broker: str) -> Iterator[Topic]:
    made = Topic(broker)
    yield made
    made.close()


@pytest.fixture(scope="module")
def settings(make_settings: MakeSettings, broker: str, kafka: Any) -> Any:
    """Configurations on a database and a broker of their own."""
    to = {"bootstrap_servers": broker, "partitions": 4 if kafka.kind == "apache" else 0, "delivery_seconds": 10}
    database = f"orders_kinds_{uuid4().hex[:8]}"
    return lambda **more: make_settings(database=database, recovery=RECOVERY, kafka=to, **more)


@pytest.fixture(scope="module")
async def service(settings: Any, postgres: Any) -> AsyncIterator[Service]:
    """A service that nobody heals. Each test leaves it without a difference."""
    async with isolated_service(settings(), postgres) as made:
        yield made


async def exit_status(service: Service, *options: str) -> int:
    """Of `python -m market.orders reconcile`, with another shop on the same stores; not the one that says that it came to no end."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while (status := await command.run(service.config, list(options))) == 2 and asyncio.get_running_loop().time() < end:
        pass
    return status


async def place_and_publish(service: Service, product: str, topic: Topic, *, cancelled: bool = False) -> str:
    """An order whose events are all in the topic."""
    response = await service.place([(product, 2)])
    assert response.status_code == 201
    order_id = str(response.json()["id"])
    types = [events.CREATED]
    if cancelled:
        assert (await service.http.delete(f"/api/order/{order_id}")).status_code == 204
        types.append(events.CANCELLED)
    await topic.wait_for(order_id, *types)
    await until(lambda: is_published(service, order_id), what="published")
    return order_id


async def copy_order(service: Service, order_id: str) -> str:
    """The same order under an id that the topic has never seen."""
    other = new_id()
    await service.documents.insert_one({**await service.documents.find_one({"_id": UUID(order_id)}), "_id": other})
    return str(other)


async def publish(service: Service, topic: Topic, order_id: str, *types: str) -> None:
    """These events of the order, one after another."""
    for type in types:
        entry = OutboxEntry(events.event_id(UUID(order_id), type), type, service.deps.clock())
        assert await service.deps.outbox.requeue(UUID(order_id), entry, service.deps.clock())
        await service.deps.relay.run_once()
        await topic.wait_for(order_id, type)
        await until(lambda: is_published(service, order_id), what="published")


def difference(kind: Kind, id: str, detail: str, repaired: bool | None = None) -> dict[str, Any]:
    return {
        "kind": "difference",
        "difference": kind.value,
        "id": id,
        "cause": CAUSES[kind],
        "detail": detail,
        "repaired": repaired,
    }


def no_differences(report: Report) -> bool:
    return report.differences == [] and report.counts == (0, 0, True)


async def test_an_overdue_stock_release_is_repaired(
    service: Service, settings: Any, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await place_and_publish(service, lamp, own_topic)
    async with Proxy(upstream=int(stock.target.rpartition(":")[2])) as network:
        far = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
        async with serving(settings(inventory=far), background=False) as cut_off:
            network.blackhole()
            assert (await cut_off.http.delete(f"/api/order/{order_id}")).status_code == 202
            await own_topic.wait_for(order_id, "order.cancelled")
            await until(lambda: is_published(service, order_id), what="published")
            # What it swallowed never comes.
            network.disconnect()
    await asyncio.sleep(OVERDUE_SECONDS)
    report = await reconcile(service)
    assert report.differences == [difference(Kind.RELEASE_OVERDUE, order_id, "the order is cancelled")]
    assert report.counts == (1, 0, True)
    assert await stock.available(lamp) == 3
    assert await exit_status(service) == 1
    repaired = await reconcile(service, repair=True)
    assert repaired.differences == [
        difference(Kind.RELEASE_OVERDUE, order_id, "the order is cancelled; released", True)
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
    well = await place_and_publish(service, lamp, own_topic, cancelled=True)
    turned = await copy_order(service, well)
    await publish(service, own_topic, turned, events.CANCELLED, events.CREATED)
    await asyncio.sleep(1.2)
    assert no_differences(await reconcile(service))
    report = await reconcile(service, topic=True)
    assert report.differences == [difference(Kind.EVENTS_OUT_OF_ORDER, turned, "order.cancelled came first")]
    assert await exit_status(service, "--topic") == 1
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences_of(turned) == [("events-out-of-order", True)]
    assert repaired.counts == (1, 1, True)
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.events_of(turned)) == 3, what="sent once more")
    assert [(e.type, e.sequence) for e in own_topic.events_of(turned)] == [
        ("order.cancelled", 2),
        ("order.created", 1),
        ("order.cancelled", 2),
    ]
    assert own_topic.events_of(turned)[0].id == own_topic.events_of(turned)[2].id
    assert len(own_topic.messages_of(well)) == 2
    await until(lambda: is_published(service, turned), what="published")
    assert no_differences(await reconcile(service, topic=True))
    assert await exit_status(service, "--topic") == 0


async def test_a_creation_missing_from_the_topic_is_published_with_the_cancellation_after_it(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    half = await copy_order(service, await place_and_publish(service, lamp, own_topic, cancelled=True))
    await publish(service, own_topic, half, events.CANCELLED)
    await asyncio.sleep(1.2)
    repaired = await reconcile(service, repair=True, topic=True)
    assert repaired.differences == [difference(Kind.EVENT_MISSING, half, "order.created; queued for the relay", True)]
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.messages_of(half)) == 3, what="both sent")
    assert [e.type for e in own_topic.events_of(half)] == ["order.cancelled", "order.created", "order.cancelled"]
    await until(lambda: is_published(service, half), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_an_event_without_an_order_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    gone, well = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    document = await service.documents.find_one_and_delete({"_id": UUID(gone)})
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("DELETE FROM reservations WHERE id = $1", UUID(gone))
    await tables.close()
    await asyncio.sleep(1.2)
    # Without the topic nothing knows of it.
    assert no_differences(await reconcile(service))
    assert await exit_status(service) == 0
    for repair in (0, 1):
        report = await reconcile(service, repair=repair, topic=True)
        # Nobody can say what the order was: there is no one right response.
        assert report.differences == [difference(Kind.EVENT_WITHOUT_ORDER, gone, "the topic has events of it")]
        assert report.counts == (1, 0, True)
    assert await exit_status(service, "--repair", "--topic") == 1
    assert len(own_topic.messages_of(gone)) == len(own_topic.messages_of(well)) == 1
    # The operator puts the order back; the goods follow by themselves.
    await service.documents.insert_one(document)
    assert (await reconcile(service, repair=True, topic=True)).differences_of(gone) == [
        ("confirmed-without-reservation", True)
    ]
    assert no_differences(await reconcile(service, topic=True))


async def test_a_reserved_product_without_a_stock_row_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp, well = catalogue.add(), catalogue.add()
    for product in (lamp, well):
        await stock.set(product, 5)
        await place_and_publish(service, product, own_topic)
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("DELETE FROM inventory WHERE product_id = $1", UUID(lamp))
    await tables.close()
    await asyncio.sleep(1.2)
    for repair in (0, 1):
        report = await reconcile(service, repair=repair)
        # How many are free to sell only a stock-take knows.
        assert report.differences == [difference(Kind.NO_STOCK_ROW, lamp, "reservations hold units of it")]
        assert report.counts == (1, 0, True)
    assert await exit_status(service, "--repair") == 1
    await stock.set(lamp, 3)
    assert no_differences(await reconcile(service))
    assert await exit_status(service) == 0
    assert (await stock.available(lamp), await stock.available(well)) == (3, 3)


async def test_stock_below_zero_is_reported(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    await place_and_publish(service, lamp, own_topic)
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("ALTER TABLE inventory DROP CONSTRAINT inventory_quantity_check")
    try:
        await tables.execute("UPDATE inventory SET quantity = -1 WHERE product_id = $1", UUID(lamp))
        report = await reconcile(service, repair=True)
        assert report.differences == [difference(Kind.STOCK_BELOW_ZERO, lamp, "available: -1")]
        assert report.counts == (1, 0, True)
    finally:
        await stock.set(lamp, 3)
        await tables.execute("ALTER TABLE inventory ADD CONSTRAINT inventory_quantity_check CHECK (quantity >= 0)")
        await tables.close()
    assert no_differences(await reconcile(service))


async def test_an_unreadable_document_is_reported_and_hides_no_other_difference(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    damaged, behind = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    document = await service.documents.find_one({"_id": UUID(damaged)})
    await service.documents.update_one({"_id": UUID(damaged)}, {"$unset": {"user": 1}})
    await stock.release(behind)
    await asyncio.sleep(1.2)
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences_of(damaged) == [("unreadable-order", None)]
    assert "user" in next(d["detail"] for d in report.differences if d["id"] == damaged)
    assert report.differences_of(behind) == [("confirmed-but-reservation-cancelled", None)]
    assert report.counts == (2, 0, True)
    await service.documents.replace_one({"_id": UUID(damaged)}, document)
    assert (await reconcile(service, topic=True)).differences_of(damaged) == []
    # What inventory refuses for good ends as what it is: cancelled.
    assert (await service.http.delete(f"/api/order/{behind}")).status_code == 204
    await own_topic.wait_for(behind, events.CANCELLED)
    await until(lambda: is_published(service, behind), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_documents_whose_id_is_not_a_uuid_are_reported_and_hide_no_order(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """MongoDB sorts numbers and texts before our ids, and ids of its own after them."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await place_and_publish(service, lamp, own_topic)
    foreign = [1, "by hand", ObjectId("65f000000000000000000001"), b"x", b"y" * 17]
    await service.documents.insert_many([{"_id": id} for id in foreign])
    try:
        report = await reconcile(service, repair=True, topic=True)
        assert sorted(d["id"] for d in report.differences) == sorted(repr(id) for id in foreign)
        assert all(d == difference(Kind.UNREADABLE, d["id"], "its id is not a UUID") for d in report.differences)
        assert (report.counts, report.differences_of(order_id)) == ((5, 0, True), [])
    finally:
        await service.documents.delete_many({"_id": {"$in": foreign}})
    assert no_differences(await reconcile(service, topic=True))


async def test_orders_restored_from_an_old_backup_contradict_their_events(
    service: Service, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """MongoDB was restored from an older backup: what was sold or cancelled since then, the world knows and orders does not."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    lost, unconfirmed = [await place_and_publish(service, lamp, own_topic) for _ in range(2)]
    uncancelled = await place_and_publish(service, lamp, own_topic, cancelled=True)
    orders = service.documents
    before = {id: await orders.find_one({"_id": UUID(id)}) for id in (lost, unconfirmed, uncancelled)}
    await orders.delete_one({"_id": UUID(lost)})
    # It was pending, and recovery has rejected it; its goods are not make_settings back yet.
    await orders.update_one({"_id": UUID(unconfirmed)}, {"$set": {"status": "rejected"}, "$unset": {"confirmed_at": 1}})
    await orders.update_one(
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
    for id in (unconfirmed, uncancelled):
        await orders.replace_one({"_id": UUID(id)}, before[id])
    for reservation in ("repaired", "gone"):
        report = await reconcile(service, repair=True, topic=True)
        repaired = [("reservation-without-order", True)] if reservation == "repaired" else []
        # The customer was told of an order that is not there: nobody may keep silent about it once the goods are back.
        assert report.differences_of(lost) == [*repaired, ("event-without-order", None)]
        assert len(report.differences) == len(repaired) + 1
    # Put back as what it has become: cancelled.
    await orders.insert_one({**before[lost], "status": "cancelled", "cancelled_at": before[lost]["confirmed_at"]})
    assert (await reconcile(service, repair=True, topic=True)).differences_of(lost) == [("event-not-in-topic", True)]
    await service.deps.relay.run_once()
    await until(lambda: is_published(service, lost), what="published")
    assert no_differences(await reconcile(service, topic=True))


async def test_an_event_that_differs_from_its_order_is_reported(
    service: Service, broker: str, catalogue: FakeCatalogue, stock: Stock, own_topic: Topic
) -> None:
    """The last of this file: what is in the topic stays."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    changed, forged, doubled = [await place_and_publish(service, lamp, own_topic) for _ in range(3)]
    document = await service.documents.find_one({"_id": UUID(changed)})
    await service.documents.update_one({"_id": UUID(changed)}, {"$set": {"user": "somebody else"}})
    await asyncio.sleep(1.2)
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences == [
        difference(Kind.EVENT_DIFFERS, changed, "the event has a different user, products, prices or times")
    ]
    assert await exit_status(service, "--topic") == 1
    await service.documents.replace_one({"_id": UUID(changed)}, document)
    assert no_differences(await reconcile(service, topic=True))
    producer = Producer({"bootstrap.servers": broker, "partitioner": "murmur2_random"})
    right = own_topic.messages_of(forged)[0]
    producer.produce(
        events.TOPIC, right.value().replace(own_topic.events_of(forged)[0].id.encode(), str(uuid4()).encode()), forged
    )
    right = own_topic.messages_of(doubled)[0]
    producer.produce(events.TOPIC, right.value().replace(b'"quantity":2', b'"quantity":3'), doubled)
    producer.produce(events.TOPIC, right.value()[:-2], doubled)
    assert producer.flush(60) == 0
    report = await reconcile(service, repair=True, topic=True)
    assert report.differences_of(forged) == report.differences_of(doubled) == [("event-differs-from-order", None)]
    assert {d["detail"] for d in report.differences if d["id"] == doubled} == {
        "its events in the topic have different contents"
    }
    unreadable = [d for d in report.differences if d["difference"] == Kind.EVENT_UNREADABLE.value]
    assert [d["id"].rpartition("/")[0] for d in unreadable] == [f"orders/{right.partition()}"]
    assert report.counts == (3, 0, True)


def test_the_command_prints_a_difference_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    line = difference(Kind.NO_STOCK_ROW, "p", "reservations hold units of it")
    command.show(msgspec.convert(line, command.Difference))
    assert capsys.readouterr().out == (
        "reserved-product-without-stock-row p: reservations hold units of it. Likely cause: inventory's table was modified by hand\n"
    )
