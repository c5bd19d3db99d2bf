"""Events: none lost, in order per order, and no order held up by another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from market.orders import app as orders_app
from market.orders.config import Config
from tests.support.waiting import until

from .parts import Catalogue, Stock, Topic, serving
from .pods import UNHURRIED, hold, overdue, pod


@pytest.fixture
async def apart(given: Any, migrated: None) -> Any:
    """Configurations on a fresh database."""
    name = f"orders_relay_{uuid4().hex[:8]}"
    assert await orders_app.migrate(msgspec.convert(given(database=name), Config), []) == 0

    def make(*, recovery: dict[str, Any] | None = None) -> dict[str, Any]:
        # Who is slow is not rejected: only claims run out.
        return given(database=name, recovery={"after_seconds": 600, **(recovery or {})})

    return make


async def test_a_relay_slower_than_its_claim_repeats_an_event_that_is_recognised(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path) as slow, serving(apart()) as other:
        publishing = hold(slow, "orders.before-publish")
        order = (await slow.order([(lamp, 2)])).json()
        await publishing.reached()
        await topic.wait(order["id"], "order.created")
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        await topic.wait(order["id"], "order.created", "order.cancelled")
        publishing.open()
        await until(lambda: len(topic.events(order["id"])) == 3, what="the late repeat")
    found = topic.events(order["id"])
    assert [(e.type, e.sequence) for e in found] == [("order.created", 1), ("order.cancelled", 2), ("order.created", 1)]
    assert found[0].id == found[2].id != found[1].id
    assert await stock.left(lamp) == 5


async def test_two_relays_at_one_outbox_send_each_event_once(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    # The fast path fails for each; what is left is for both loops at once.
    async with pod(apart(), tmp_path / "a") as first:
        made = []
        for _ in range(10):
            (tmp_path / "a" / "orders.before-publish").write_text("fail")
            made.append((await first.order([(lamp, 1)])).json()["id"])
        assert first.deps is not None
        await overdue(first.deps.orders.collection.documents, {})
        assert all(topic.of(id) == [] for id in made)
    # Their own claims last: an acknowledgement may be late, and who waits for it is not dead.
    async with serving(apart(recovery=UNHURRIED)), serving(apart(recovery=UNHURRIED)) as one:
        for id in made:
            await topic.wait(id, "order.created")
        await until(lambda: _none_unsent(one), what="outboxes cleared")
    assert [len(topic.of(id)) for id in made] == [1] * 10


async def _none_unsent(service: Any) -> bool:
    return bool((await service.deps.orders.statistics()).unsent == 0)


async def test_a_relay_that_dies_after_its_claim_is_followed_by_another(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path, loops=True) as service:
        (tmp_path / "orders.before-publish").write_text("fail")
        (tmp_path / "orders.relay-after-lease").write_text("fail")
        order = (await service.order([(lamp, 1)])).json()
        await topic.wait(order["id"], "order.created")
        assert (tmp_path / "orders.relay-after-lease.done").exists()
    assert len(topic.of(order["id"])) == 1


async def test_a_cancellation_between_publishing_and_clearing_comes_second_without_delay(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    long = {"lease_seconds": 600, "relay_interval_seconds": 600}
    async with pod(apart(recovery=long), tmp_path, loops=True) as slow, serving(apart(recovery=long)) as other:
        published = hold(slow, "orders.after-publish")
        order = (await slow.order([(lamp, 2)])).json()
        await topic.wait(order["id"], "order.created")
        await published.reached()
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        published.open()
        found = await topic.wait(order["id"], "order.created", "order.cancelled")
        assert [e.sequence for e in found] == [1, 2]


async def test_a_cancellation_just_after_the_clearing_is_sent_without_delay(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """The store has forgotten the first event, and its relay has not heard of that yet."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with pod(apart(), tmp_path) as service:
        cleared = hold(service, "orders.after-clear")
        order = (await service.order([(lamp, 2)])).json()
        await cleared.reached()
        assert await _none_unsent(service)
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
        cleared.open()
        await topic.wait(order["id"], "order.created", "order.cancelled")
        await until(lambda: _none_unsent(service), what="cleared again")
    assert [e.type for e in topic.events(order["id"])] == ["order.created", "order.cancelled"]


async def test_an_event_that_kafka_refuses_for_good_stays_with_its_reason_and_holds_up_nobody(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    many = [catalogue.add(name="n" * 200) for _ in range(10)]
    lamp = catalogue.add()
    for product in (*many, lamp):
        await stock.set(product, 5)
    narrow = apart()
    narrow["kafka"]["options"] = {"message.max.bytes": "2000"}
    async with serving(narrow) as service:
        assert service.deps is not None
        store = service.deps.orders
        large = (await service.order([(p, 1) for p in many])).json()
        await until(lambda: _stuck(store, 1), what="stuck")
        for _ in range(3):
            small = (await service.order([(lamp, 1)])).json()
            await topic.wait(small["id"], "order.created")
        document = await store.collection.documents.find_one({"_id": UUID(large["id"])})
        assert document is not None
        assert "too large" in document["outbox"][0]["refused"].lower()
        assert {"unsent_since", "claimed_at"} & set(document) == set()
        assert topic.of(large["id"]) == []
    async with serving(apart()) as wide:
        # With room for it, it is sent once somebody says so.
        assert wide.deps is not None
        assert await wide.deps.outbox.requeue(UUID(large["id"]), None, wide.deps.clock())
        await topic.wait(large["id"], "order.created")
        await until(lambda: _stuck(wide.deps.orders, 0), what="not stuck")


async def _stuck(store: Any, count: int) -> bool:
    return bool((await store.statistics()).stuck == count)


async def test_orders_are_placed_while_kafka_is_away(
    apart: Any, catalogue: Catalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    nowhere = apart()
    nowhere["kafka"] = {"bootstrap_servers": "127.0.0.1:1", "partitions": 0, "delivery_seconds": 1}
    async with serving(nowhere) as service:
        order = (await service.order([(lamp, 2)])).json()
        assert order["status"] == "confirmed"
        await asyncio.sleep(1.5)
        assert service.deps is not None
        figures = await service.deps.orders.statistics()
        assert (figures.unsent, figures.stuck) == (1, 0)
        assert figures.oldest_unsent_seconds > 1
    async with serving(apart()):
        await topic.wait(order["id"], "order.created")
