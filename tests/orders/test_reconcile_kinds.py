"""Differences of reconciliation that need a world of their own: a dead inventory, a topic that nobody else writes to, a
damaged table. Each is made, named with its cause, and mended where it has one right answer; the exit status says
which."""

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

from .parts import Catalogue, Service, Stock, Topic, serving
from .reconciling import LATE_SECONDS, RECOVERY, Found, collection, reconcile, sent, unattended


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
def settings(given: Any, broker: str, kafka: Any) -> Any:
    """Configurations on a database and a broker of their own."""
    to = {"bootstrap_servers": broker, "partitions": 4 if kafka.kind == "apache" else 0, "delivery_seconds": 10}
    database = f"orders_kinds_{uuid4().hex[:8]}"
    return lambda **more: given(database=database, recovery=RECOVERY, kafka=to, **more)


@pytest.fixture(scope="module")
async def service(settings: Any, postgres: Any) -> AsyncIterator[Service]:
    """A service that nobody heals. Each test leaves it without a difference."""
    async with unattended(settings(), postgres) as made:
        yield made


async def exit_status(service: Service, *options: str) -> int:
    """Of `python -m market.orders reconcile`, with another shop on the same stores; not the one that says that it came
    to no end."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while (status := await command.run(service.config, list(options))) == 2 and asyncio.get_running_loop().time() < end:
        pass
    return status


async def ordered(service: Service, product: str, topic: Topic, *, cancelled: bool = False) -> str:
    """An order whose events are all in the topic."""
    answer = await service.order([(product, 2)])
    assert answer.status_code == 201
    order_id = str(answer.json()["id"])
    types = [events.CREATED]
    if cancelled:
        assert (await service.http.delete(f"/api/order/{order_id}")).status_code == 204
        types.append(events.CANCELLED)
    await topic.wait(order_id, *types)
    await until(lambda: sent(service, order_id), what="cleared")
    return order_id


async def copied(service: Service, order_id: str) -> str:
    """The same order under an id that the topic has never seen."""
    other = new_id()
    await collection(service).insert_one({**await collection(service).find_one({"_id": UUID(order_id)}), "_id": other})
    return str(other)


async def published(service: Service, topic: Topic, order_id: str, *types: str) -> None:
    """These events of the order, one after another."""
    assert service.deps is not None
    for type in types:
        entry = OutboxEntry(events.event_id(UUID(order_id), type), type, service.deps.clock())
        assert await service.deps.outbox.requeue(UUID(order_id), entry, service.deps.clock())
        await service.deps.relay.run_once()
        await topic.wait(order_id, type)
        await until(lambda: sent(service, order_id), what="cleared")


def named(kind: Kind, id: str, detail: str, repaired: bool | None = None) -> dict[str, Any]:
    return {
        "kind": "difference",
        "difference": kind.value,
        "id": id,
        "cause": CAUSES[kind],
        "detail": detail,
        "repaired": repaired,
    }


def all_agrees(found: Found) -> bool:
    return found.all == [] and found.counts == (0, 0, True)


async def test_goods_that_were_not_given_back_in_time_are_given_back(
    service: Service, settings: Any, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await ordered(service, lamp, own_topic)
    async with Proxy(upstream=int(stock.target.rpartition(":")[2])) as network:
        far = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
        async with serving(settings(inventory=far), loops=False) as cut_off:
            network.blackhole()
            assert (await cut_off.http.delete(f"/api/order/{order_id}")).status_code == 202
            await own_topic.wait(order_id, "order.cancelled")
            await until(lambda: sent(service, order_id), what="cleared")
            # What it swallowed never comes.
            network.disconnect()
    await asyncio.sleep(LATE_SECONDS)
    found = await reconcile(service)
    assert found.all == [named(Kind.RELEASE_OVERDUE, order_id, "the order is cancelled")]
    assert found.counts == (1, 0, True)
    assert await stock.left(lamp) == 3
    assert await exit_status(service) == 1
    mended = await reconcile(service, repair=1)
    assert mended.all == [named(Kind.RELEASE_OVERDUE, order_id, "the order is cancelled; released", True)]
    assert mended.counts == (1, 1, True)
    assert await stock.left(lamp) == 5
    assert await stock.reservation(order_id) == ("cancelled", {lamp: 2})
    assert "release_due" not in await collection(service).find_one({"_id": UUID(order_id)})
    assert all_agrees(await reconcile(service))
    assert await exit_status(service) == 0
    assert await stock.left(lamp) == 5


async def test_a_cancellation_that_came_first_is_sent_once_more_after_the_creation(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    well = await ordered(service, lamp, own_topic, cancelled=True)
    turned = await copied(service, well)
    await published(service, own_topic, turned, events.CANCELLED, events.CREATED)
    await asyncio.sleep(1.2)
    assert all_agrees(await reconcile(service))
    found = await reconcile(service, topic=1)
    assert found.all == [named(Kind.EVENTS_OUT_OF_ORDER, turned, "order.cancelled came first")]
    assert await exit_status(service, "--topic") == 1
    mended = await reconcile(service, repair=1, topic=1)
    assert mended.of(turned) == [("events-out-of-order", True)]
    assert mended.counts == (1, 1, True)
    assert service.deps is not None
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.events(turned)) == 3, what="sent once more")
    assert [(e.type, e.sequence) for e in own_topic.events(turned)] == [
        ("order.cancelled", 2),
        ("order.created", 1),
        ("order.cancelled", 2),
    ]
    assert own_topic.events(turned)[0].id == own_topic.events(turned)[2].id
    assert len(own_topic.of(well)) == 2
    await until(lambda: sent(service, turned), what="cleared")
    assert all_agrees(await reconcile(service, topic=1))
    assert await exit_status(service, "--topic") == 0


async def test_a_creation_that_the_topic_lost_is_sent_with_the_cancellation_after_it(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    half = await copied(service, await ordered(service, lamp, own_topic, cancelled=True))
    await published(service, own_topic, half, events.CANCELLED)
    await asyncio.sleep(1.2)
    mended = await reconcile(service, repair=1, topic=1)
    assert mended.all == [named(Kind.EVENT_MISSING, half, "order.created; queued for the relay", True)]
    assert service.deps is not None
    await service.deps.relay.run_once()
    await until(lambda: len(own_topic.of(half)) == 3, what="both sent")
    assert [e.type for e in own_topic.events(half)] == ["order.cancelled", "order.created", "order.cancelled"]
    await until(lambda: sent(service, half), what="cleared")
    assert all_agrees(await reconcile(service, topic=1))


async def test_an_event_whose_order_is_gone_is_reported(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    gone, well = [await ordered(service, lamp, own_topic) for _ in range(2)]
    document = await collection(service).find_one_and_delete({"_id": UUID(gone)})
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("DELETE FROM reservations WHERE id = $1", UUID(gone))
    await tables.close()
    await asyncio.sleep(1.2)
    # Without the topic nothing knows of it.
    assert all_agrees(await reconcile(service))
    assert await exit_status(service) == 0
    for repair in (0, 1):
        found = await reconcile(service, repair=repair, topic=1)
        # Nobody can say what the order was: there is no one right answer.
        assert found.all == [named(Kind.EVENT_WITHOUT_ORDER, gone, "the topic has events of it")]
        assert found.counts == (1, 0, True)
    assert await exit_status(service, "--repair", "--topic") == 1
    assert len(own_topic.of(gone)) == len(own_topic.of(well)) == 1
    # The operator puts the order back; the goods follow by themselves.
    await collection(service).insert_one(document)
    assert (await reconcile(service, repair=1, topic=1)).of(gone) == [("confirmed-without-reservation", True)]
    assert all_agrees(await reconcile(service, topic=1))


async def test_a_reserved_product_without_a_stock_row_is_reported(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp, well = catalogue.add(), catalogue.add()
    for product in (lamp, well):
        await stock.set(product, 5)
        await ordered(service, product, own_topic)
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("DELETE FROM inventory WHERE product_id = $1", UUID(lamp))
    await tables.close()
    await asyncio.sleep(1.2)
    for repair in (0, 1):
        found = await reconcile(service, repair=repair)
        # How many are free to sell only a stock-take knows.
        assert found.all == [named(Kind.NO_STOCK_ROW, lamp, "reservations hold units of it")]
        assert found.counts == (1, 0, True)
    assert await exit_status(service, "--repair") == 1
    await stock.set(lamp, 3)
    assert all_agrees(await reconcile(service))
    assert await exit_status(service) == 0
    assert (await stock.left(lamp), await stock.left(well)) == (3, 3)


async def test_a_stock_below_zero_is_reported(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic, postgres: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    await ordered(service, lamp, own_topic)
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("ALTER TABLE inventory DROP CONSTRAINT inventory_quantity_check")
    try:
        await tables.execute("UPDATE inventory SET quantity = -1 WHERE product_id = $1", UUID(lamp))
        found = await reconcile(service, repair=1)
        assert found.all == [named(Kind.STOCK_BELOW_ZERO, lamp, "available: -1")]
        assert found.counts == (1, 0, True)
    finally:
        await stock.set(lamp, 3)
        await tables.execute("ALTER TABLE inventory ADD CONSTRAINT inventory_quantity_check CHECK (quantity >= 0)")
        await tables.close()
    assert all_agrees(await reconcile(service))


async def test_a_document_that_is_no_order_is_named_and_hides_no_other(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    damaged, behind = [await ordered(service, lamp, own_topic) for _ in range(2)]
    document = await collection(service).find_one({"_id": UUID(damaged)})
    await collection(service).update_one({"_id": UUID(damaged)}, {"$unset": {"user": 1}})
    await stock.give_back(behind)
    await asyncio.sleep(1.2)
    found = await reconcile(service, repair=1, topic=1)
    assert found.of(damaged) == [("unreadable-order", None)]
    assert "user" in next(d["detail"] for d in found.all if d["id"] == damaged)
    assert found.of(behind) == [("confirmed-but-reservation-cancelled", None)]
    assert found.counts == (2, 0, True)
    await collection(service).replace_one({"_id": UUID(damaged)}, document)
    assert (await reconcile(service, topic=1)).of(damaged) == []
    # What inventory refuses for good ends as what it is: cancelled.
    assert (await service.http.delete(f"/api/order/{behind}")).status_code == 204
    await own_topic.wait(behind, events.CANCELLED)
    await until(lambda: sent(service, behind), what="cleared")
    assert all_agrees(await reconcile(service, topic=1))


async def test_documents_whose_ids_are_of_another_kind_are_named_and_hide_no_order(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    """MongoDB sorts numbers and texts before our ids, and ids of its own after them."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await ordered(service, lamp, own_topic)
    foreign = [1, "by hand", ObjectId("65f000000000000000000001"), b"x", b"y" * 17]
    await collection(service).insert_many([{"_id": id} for id in foreign])
    try:
        found = await reconcile(service, repair=1, topic=1)
        assert sorted(d["id"] for d in found.all) == sorted(repr(id) for id in foreign)
        assert all(d == named(Kind.UNREADABLE, d["id"], "its id is not a UUID") for d in found.all)
        assert (found.counts, found.of(order_id)) == ((5, 0, True), [])
    finally:
        await collection(service).delete_many({"_id": {"$in": foreign}})
    assert all_agrees(await reconcile(service, topic=1))


async def test_orders_that_went_back_in_time_differ_from_what_the_topic_has_told(
    service: Service, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    """MongoDB was restored from an older backup: what was sold or cancelled since then, the world knows and orders does
    not."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    lost, unconfirmed = [await ordered(service, lamp, own_topic) for _ in range(2)]
    uncancelled = await ordered(service, lamp, own_topic, cancelled=True)
    orders = collection(service)
    before = {id: await orders.find_one({"_id": UUID(id)}) for id in (lost, unconfirmed, uncancelled)}
    await orders.delete_one({"_id": UUID(lost)})
    # It was pending, and recovery has rejected it; its goods are not given back yet.
    await orders.update_one({"_id": UUID(unconfirmed)}, {"$set": {"status": "rejected"}, "$unset": {"confirmed_at": 1}})
    await orders.update_one(
        {"_id": UUID(uncancelled)}, {"$set": {"status": "confirmed"}, "$unset": {"cancelled_at": 1}}
    )
    await asyncio.sleep(1.2)
    found = await reconcile(service, topic=1)
    assert found.of(lost) == [("reservation-without-order", None), ("event-without-order", None)]
    assert found.of(unconfirmed) == [("stock-not-released", None), ("event-contradicts-order", None)]
    assert found.of(uncancelled) == [("confirmed-but-reservation-cancelled", None), ("event-contradicts-order", None)]
    assert found.counts == (6, 0, True)
    for id in (unconfirmed, uncancelled):
        await orders.replace_one({"_id": UUID(id)}, before[id])
    for reservation in ("mended", "gone"):
        found = await reconcile(service, repair=1, topic=1)
        mended = [("reservation-without-order", True)] if reservation == "mended" else []
        # The customer was told of an order that is not there: nobody may keep silent about it once the goods are back.
        assert found.of(lost) == [*mended, ("event-without-order", None)]
        assert len(found.all) == len(mended) + 1
    # Put back as what it has become: cancelled.
    await orders.insert_one({**before[lost], "status": "cancelled", "cancelled_at": before[lost]["confirmed_at"]})
    assert (await reconcile(service, repair=1, topic=1)).of(lost) == [("event-not-in-topic", True)]
    assert service.deps is not None
    await service.deps.relay.run_once()
    await until(lambda: sent(service, lost), what="cleared")
    assert all_agrees(await reconcile(service, topic=1))


async def test_an_event_that_says_other_than_its_order_is_reported(
    service: Service, broker: str, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    """The last of this file: what is in the topic stays."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    changed, forged, doubled = [await ordered(service, lamp, own_topic) for _ in range(3)]
    document = await collection(service).find_one({"_id": UUID(changed)})
    await collection(service).update_one({"_id": UUID(changed)}, {"$set": {"user": "somebody else"}})
    await asyncio.sleep(1.2)
    found = await reconcile(service, repair=1, topic=1)
    assert found.all == [
        named(Kind.EVENT_DIFFERS, changed, "the event has a different user, products, prices or times")
    ]
    assert await exit_status(service, "--topic") == 1
    await collection(service).replace_one({"_id": UUID(changed)}, document)
    assert all_agrees(await reconcile(service, topic=1))
    producer = Producer({"bootstrap.servers": broker, "partitioner": "murmur2_random"})
    right = own_topic.of(forged)[0]
    producer.produce(
        events.TOPIC, right.value().replace(own_topic.events(forged)[0].id.encode(), str(uuid4()).encode()), forged
    )
    right = own_topic.of(doubled)[0]
    producer.produce(events.TOPIC, right.value().replace(b'"quantity":2', b'"quantity":3'), doubled)
    producer.produce(events.TOPIC, right.value()[:-2], doubled)
    assert producer.flush(60) == 0
    found = await reconcile(service, repair=1, topic=1)
    assert found.of(forged) == found.of(doubled) == [("event-differs-from-order", None)]
    assert {d["detail"] for d in found.all if d["id"] == doubled} == {"its events in the topic have different contents"}
    unreadable = [d for d in found.all if d["difference"] == Kind.EVENT_UNREADABLE.value]
    assert [d["id"].rpartition("/")[0] for d in unreadable] == [f"orders/{right.partition()}"]
    assert found.counts == (3, 0, True)


def test_the_command_prints_the_difference_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    line = named(Kind.NO_STOCK_ROW, "p", "reservations hold units of it")
    command.show(msgspec.convert(line, command.Difference))
    assert capsys.readouterr().out == (
        "reserved-product-without-stock-row p: reservations hold units of it. Likely cause: inventory's table was "
        "modified by hand\n"
    )
