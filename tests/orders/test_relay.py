"""Events: none lost, in order per order, and no order held up by another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service
from .service import NOTHING_OVERDUE, MakeSettings, make_overdue, migrate, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def apart(make_settings: MakeSettings, migrated: None) -> Any:
    """Configurations on a fresh database."""
    name = f"orders_relay_{uuid4().hex[:8]}"
    await migrate(make_settings(database=name))

    def make(*, recovery: dict[str, Any] | None = None) -> dict[str, Any]:
        # Who is slow is not rejected: only claims run out.
        return make_settings(database=name, recovery={"after_seconds": 600, **(recovery or {})})

    return make


async def test_a_relay_slower_than_its_lease_publishes_a_duplicate_with_the_same_id(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(apart(), tmp_path) as slow, serving(apart()) as other:
        publishing = gate_at(slow, "orders.before-publish")
        order = (await slow.place([(lamp, 2)])).json()
        await publishing.wait_until_reached()
        await topic.wait_for(order["id"], "order.created")
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        await topic.wait_for(order["id"], "order.created", "order.cancelled")
        publishing.open()
        await until(lambda: len(topic.events_of(order["id"])) == 3, what="the late repeat")
    found = topic.events_of(order["id"])
    assert [(e.type, e.sequence) for e in found] == [("order.created", 1), ("order.cancelled", 2), ("order.created", 1)]
    assert found[0].id == found[2].id != found[1].id
    assert await stock.available(lamp) == 5


async def test_two_relays_on_one_database_publish_each_event_once(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    # The fast path fails for each; what is left is for both loops at once.
    async with gated_service(apart(), tmp_path / "a") as first:
        made = []
        for _ in range(10):
            (tmp_path / "a" / "orders.before-publish").write_text("fail")
            made.append((await first.place([(lamp, 1)])).json()["id"])
        await make_overdue(first.documents, {})
        assert all(topic.messages_of(id) == [] for id in made)
    # Their own claims last: an acknowledgement may be late, and who waits for it is not dead.
    async with serving(apart(recovery=NOTHING_OVERDUE)), serving(apart(recovery=NOTHING_OVERDUE)) as one:
        for id in made:
            await topic.wait_for(id, "order.created")
        await until(lambda: _none_unsent(one), what="outboxes empty")
    assert [len(topic.messages_of(id)) for id in made] == [1] * 10


async def _none_unsent(service: Any) -> bool:
    return bool((await service.deps.orders.statistics()).unsent == 0)


async def test_a_relay_that_fails_after_leasing_publishes_in_a_later_pass(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(apart(), tmp_path, background=True) as service:
        (tmp_path / "orders.before-publish").write_text("fail")
        (tmp_path / "orders.relay-after-lease").write_text("fail")
        order = (await service.place([(lamp, 1)])).json()
        await topic.wait_for(order["id"], "order.created")
        assert (tmp_path / "orders.relay-after-lease.done").exists()
    assert len(topic.messages_of(order["id"])) == 1


async def test_a_cancellation_between_publishing_and_removal_is_published_second_without_delay(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    long = {"lease_seconds": 600, "relay_interval_seconds": 600}
    async with (
        gated_service(apart(recovery=long), tmp_path, background=True) as slow,
        serving(apart(recovery=long)) as other,
    ):
        published = gate_at(slow, "orders.after-publish")
        order = (await slow.place([(lamp, 2)])).json()
        await topic.wait_for(order["id"], "order.created")
        await published.wait_until_reached()
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        published.open()
        found = await topic.wait_for(order["id"], "order.created", "order.cancelled")
        assert [e.sequence for e in found] == [1, 2]


async def test_a_cancellation_just_after_the_removal_is_published_without_delay(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """The store has forgotten the first event, and its relay has not heard of that yet."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(apart(), tmp_path) as service:
        cleared = gate_at(service, "orders.after-clear")
        order = (await service.place([(lamp, 2)])).json()
        await cleared.wait_until_reached()
        assert await _none_unsent(service)
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
        cleared.open()
        await topic.wait_for(order["id"], "order.created", "order.cancelled")
        await until(lambda: _none_unsent(service), what="outbox empty")
    assert [e.type for e in topic.events_of(order["id"])] == ["order.created", "order.cancelled"]


async def test_an_event_that_kafka_rejects_permanently_is_kept_with_the_reason_and_blocks_no_other(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    many = [catalogue.add(name="n" * 200) for _ in range(10)]
    lamp = catalogue.add()
    for product in (*many, lamp):
        await stock.set(product, 5)
    narrow = apart()
    narrow["kafka"]["options"] = {"message.max.bytes": "2000"}
    async with serving(narrow) as service:
        store = service.deps.orders
        large = (await service.place([(p, 1) for p in many])).json()
        await until(lambda: _stuck(store, 1), what="stuck")
        for _ in range(3):
            small = (await service.place([(lamp, 1)])).json()
            await topic.wait_for(small["id"], "order.created")
        document = await store.collection.documents.find_one({"_id": UUID(large["id"])})
        assert document is not None
        assert "too large" in document["outbox"][0]["refused"].lower()
        assert {"unsent_since", "claimed_at"} & set(document) == set()
        assert topic.messages_of(large["id"]) == []
    async with serving(apart()) as wide:
        # With room for it, it is sent once somebody says so.
        assert await wide.deps.outbox.requeue(UUID(large["id"]), None, wide.deps.clock())
        await topic.wait_for(large["id"], "order.created")
        await until(lambda: _stuck(wide.deps.orders, 0), what="not stuck")


async def _stuck(store: Any, count: int) -> bool:
    return bool((await store.statistics()).stuck == count)


async def test_orders_are_placed_while_kafka_is_unavailable(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    nowhere = apart()
    nowhere["kafka"] = {"bootstrap_servers": "127.0.0.1:1", "partitions": 0, "delivery_seconds": 1}
    async with serving(nowhere) as service:
        order = (await service.place([(lamp, 2)])).json()
        assert order["status"] == "confirmed"
        await asyncio.sleep(1.5)
        figures = await service.deps.orders.statistics()
        assert (figures.unsent, figures.stuck) == (1, 0)
        assert figures.oldest_unsent_seconds > 1
    async with serving(apart()):
        await topic.wait_for(order["id"], "order.created")
