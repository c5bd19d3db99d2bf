"""Differences of reconciliation that need a world of their own: a dead inventory, a topic that nobody else writes to, a
damaged table. Each is made, named with its cause, and mended where it has one right answer; the exit status says which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from market.contracts import events
from market.kit.ids import new_id
from market.local.kafka import apache
from market.local.kafka.broker import EmbeddedKafka
from market.local.servers.base import Handle
from market.local.torture.proxy import Proxy
from market.orders import admin
from market.orders.domain import Entry
from market.orders.reconcile import CAUSES, Kind

from .parts import Catalogue, Service, Stock, Topic, ports, until
from .reconciling import LATE_SECONDS, RECOVERY, Found, collection, reconcile, sent, unattended


@pytest.fixture(scope="module")
def broker(kafka: Any, server_directory: Path) -> Iterator[str]:
    """Where a Kafka of our own is reached: its topic has no other test's events."""
    directory, logs = server_directory / "kafka-reconciled", server_directory / "logs"
    if kafka.kind == "apache":
        server = Handle(apache.ApacheKafka(next(ports), next(ports), directory, logs))
    else:
        server = Handle(EmbeddedKafka(next(ports), directory, logs))
    server.start()
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(scope="module")
def own_topic(broker: str) -> Iterator[Topic]:
    made = Topic(broker)
    yield made
    made.close()


@pytest.fixture(scope="module")
async def network(stock: Stock) -> AsyncIterator[Proxy]:
    """What lies between orders and inventory."""
    async with Proxy(to=int(stock.target.rpartition(":")[2])) as made:
        yield made


@pytest.fixture(scope="module")
async def service(given: Any, broker: str, kafka: Any, network: Proxy, postgres: Any) -> AsyncIterator[Service]:
    """A service that nobody heals, on a database and a broker of its own. Each test leaves it without a difference."""
    settings = given(database=f"orders_kinds_{uuid4().hex[:8]}", recovery=RECOVERY)
    settings["kafka"] = {"bootstrap_servers": broker, "partitions": 4 if kafka.kind == "apache" else 0, "delivery_seconds": 10}
    settings["inventory"] = {"target": f"127.0.0.1:{network.port}", "timeout_seconds": 1}
    async with unattended(settings, postgres) as made:
        yield made


async def exit_status(service: Service, *options: str) -> int:
    """Of `python -m market.orders reconcile`, with another shop on the same stores."""
    return await admin.command(service.config, list(options))


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
    await until(lambda: sent(service, order_id), 10, "cleared")
    return order_id


def named(kind: Kind, id: str, detail: str, repaired: bool | None = None) -> dict[str, Any]:
    return {"kind": "difference", "difference": kind.value, "id": id, "cause": CAUSES[kind], "detail": detail, "repaired": repaired}


def all_agrees(found: Found) -> bool:
    return found.all == [] and found.counts == (0, 0, True)


async def test_goods_that_were_not_given_back_in_time_are_given_back(
    service: Service, network: Proxy, catalogue: Catalogue, stock: Stock, own_topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await ordered(service, lamp, own_topic)
    network.blackhole()
    assert (await service.http.delete(f"/api/order/{order_id}")).status_code == 202
    network.heal()
    await own_topic.wait(order_id, "order.cancelled")
    await asyncio.sleep(LATE_SECONDS)
    found = await reconcile(service)
    assert found.all == [named(Kind.RELEASE_DUE, order_id, "the order is cancelled")]
    assert found.counts == (1, 0, True)
    assert await stock.left(lamp) == 3
    assert await exit_status(service) == 1
    mended = await reconcile(service, repair=1)
    assert mended.all == [named(Kind.RELEASE_DUE, order_id, "the order is cancelled; given back", True)]
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
    # The same order under an id of which the topic gets the second event first.
    turned = str(new_id())
    document = await collection(service).find_one({"_id": UUID(well)})
    await collection(service).insert_one({**document, "_id": UUID(turned)})
    assert service.shop is not None
    for type in (events.CANCELLED, events.CREATED):
        entry = Entry(events.event_id(UUID(turned), type), type, service.shop.clock())
        assert await service.shop.store.publish_again(UUID(turned), entry, service.shop.clock())
        await service.shop.relay.step()
        await own_topic.wait(turned, type)
    await asyncio.sleep(1.2)
    assert all_agrees(await reconcile(service))
    found = await reconcile(service, topic=1)
    assert found.all == [named(Kind.EVENT_ORDER, turned, "order.cancelled came first")]
    assert await exit_status(service, "--topic") == 1
    mended = await reconcile(service, repair=1, topic=1)
    assert mended.of(turned) == [("events-in-wrong-order", True)]
    assert mended.counts == (1, 1, True)
    await service.shop.relay.step()
    await until(lambda: len(own_topic.events(turned)) == 3, 10, "sent once more")
    assert [(e.type, e.sequence) for e in own_topic.events(turned)] == [
        ("order.cancelled", 2),
        ("order.created", 1),
        ("order.cancelled", 2),
    ]
    assert own_topic.events(turned)[0].id == own_topic.events(turned)[2].id
    assert len(own_topic.of(well)) == 2
    await until(lambda: sent(service, turned), 10, "cleared")
    assert all_agrees(await reconcile(service, topic=1))
    assert await exit_status(service, "--topic") == 0


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
        assert found.all == [named(Kind.EVENT_STRANGE, gone, "the topic has events of it")]
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
        assert found.all == [named(Kind.NO_STOCK_ROW, lamp, "reservations hold some of it")]
        assert found.counts == (1, 0, True)
    assert await exit_status(service, "--repair") == 1
    await stock.set(lamp, 3)
    assert all_agrees(await reconcile(service))
    assert await exit_status(service) == 0
    assert (await stock.left(lamp), await stock.left(well)) == (3, 3)


def test_the_command_prints_the_difference_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    line = named(Kind.NO_STOCK_ROW, "p", "reservations hold some of it")
    admin._say(msgspec.convert(line, admin.Difference))
    assert capsys.readouterr().out == (
        "reserved-product-without-stock-row p: reservations hold some of it. Likely cause: inventory's table was changed by hand\n"
    )
