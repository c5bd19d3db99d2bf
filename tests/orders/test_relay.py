"""The relay publishes every event, in sequence per order, and no order blocks another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from market.orders.metrics import RECOVERED
from market.orders.outbox import relay
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import arm, gate_at, gated_service, reached
from .service import NOTHING_OVERDUE, MakeSettings, Service, get_document, make_overdue, on_new_database, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def new_settings(make_settings: MakeSettings, migrated: None) -> MakeSettings:
    """Make configurations with a new database, on which leases expire, but no slow order is rejected."""
    new_settings = await on_new_database(make_settings)
    return lambda **recovery: new_settings(recovery={"reject_after_seconds": 600, **recovery})


async def test_a_relay_slower_than_its_lease_publishes_a_duplicate_with_the_same_id(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    # Only the lease of the slow relay expires, even if Kafka takes long to acknowledge what the other one publishes.
    async with (
        gated_service(new_settings(**NOTHING_OVERDUE), tmp_path) as slow,
        serving(new_settings(**NOTHING_OVERDUE)) as other,
    ):
        publishing = gate_at(slow, "orders.before-publish")
        order = (await slow.place([(lamp, 2)])).json()
        await publishing.wait_until_reached()
        await make_overdue(slow.documents, {"_id": UUID(order["id"])})
        await topic.wait_for(order["id"], "order.created")
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        await topic.wait_for(order["id"], "order.created", "order.cancelled")
        publishing.open()
        await until(lambda: len(topic.events_of(order["id"])) == 3, what="the late duplicate")
    published = topic.events_of(order["id"])
    assert [(e.type, e.sequence) for e in published] == [
        ("order.created", "1"),
        ("order.cancelled", "2"),
        ("order.created", "1"),
    ]
    assert published[0].id == published[2].id != published[1].id
    assert await stock.available(lamp) == 5


async def test_an_event_whose_delivery_result_is_lost_is_sent_again_by_the_same_process(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    settings = new_settings(lease_seconds=2, relay_interval_seconds=0.2)
    async with gated_service(settings, tmp_path, background=True) as service:
        lost = gate_at(service, "orders.after-publish")
        order_id = (await service.place([(lamp, 2)])).json()["id"]
        await lost.wait_until_reached()
        await until(lambda: _is_outbox_empty(service), what="outbox empty")
        lost.open()
        # More if Kafka takes longer than the lease to acknowledge the second one.
        await until(lambda: len(topic.events_of(order_id)) >= 2, what="the duplicate")


async def test_events_that_wait_for_the_next_sending_are_sent_when_the_service_stops(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_SEND_PAUSE_SECONDS", 1000)
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    settings = new_settings(**NOTHING_OVERDUE)
    async with serving(settings, background=False) as service:
        await service.place([(lamp, 1)])
        await until(lambda: service.deps.relay.idle, what="the first event published")
        await service.place([(lamp, 1)])
        await asyncio.sleep(0.05)
        assert service.deps.relay.unsent == 1
    async with serving(settings, background=False) as service:
        assert await _is_outbox_empty(service)


async def test_events_are_sent_before_the_end_of_a_pause_if_too_many_wait(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_SEND_PAUSE_SECONDS", 1000)
    monkeypatch.setattr(relay, "_MAX_UNSENT", 3)
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    async with serving(new_settings(**NOTHING_OVERDUE), background=False) as service:
        await service.place([(lamp, 1)])
        await until(lambda: service.deps.relay.idle, what="the first event published")
        for waiting in (1, 2, 0, 1, 2, 0):
            await service.place([(lamp, 1)])
            assert service.deps.relay.unsent == waiting
        await until(lambda: service.deps.relay.idle, what="all events published")
        assert await _is_outbox_empty(service)


async def test_an_event_carries_the_trace_of_its_request(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    sent = {
        "x-request-id": "abc-1",
        "traceparent": "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "tracestate": "a=1,b=2",
        "baggage": "user=7;p=1,shop=8",
    }
    kept = {**sent, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with gated_service(new_settings(), tmp_path) as service:
        publishing = gate_at(service, "orders.before-publish")
        body = {"user": "ada", "items": [{"product_id": lamp, "quantity": 1}]}
        order_id = (await service.http.post("/api/order", json=body, headers=sent)).json()["id"]
        await publishing.wait_until_reached()
        [entry] = (await get_document(service, UUID(order_id)))["outbox"]
        assert {name: entry[name.removeprefix("x-").replace("-", "_")] for name in kept} == kept
        publishing.open()
        await topic.wait_for(order_id, "order.created")
        without = (await service.place([(lamp, 1)])).json()["id"]
        await topic.wait_for(without, "order.created")
    [message] = topic.messages_of(order_id)
    headers = dict(message.headers())
    assert {name: headers[name].decode() for name in kept} == kept
    assert {name for name, _ in topic.messages_of(without)[0].headers()} == {"content-type", "x-request-id"}


async def test_two_relays_on_one_database_publish_each_event_once(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    # Publishing right after each order fails, so that two relays find all events at the same time.
    async with gated_service(new_settings(), tmp_path / "a") as first:
        order_ids = []
        for _ in range(10):
            arm(first, "orders.before-publish", "fail")
            order_ids.append((await first.place([(lamp, 1)])).json()["id"])
        await make_overdue(first.documents, {})
        assert all(topic.messages_of(order_id) == [] for order_id in order_ids)
    # The relays' own leases do not expire while they wait for a late acknowledgement.
    async with serving(new_settings(**NOTHING_OVERDUE)), serving(new_settings(**NOTHING_OVERDUE)) as one:
        for order_id in order_ids:
            await topic.wait_for(order_id, "order.created")
        await until(lambda: _is_outbox_empty(one), what="outboxes empty")
    assert [len(topic.messages_of(order_id)) for order_id in order_ids] == [1] * 10


async def _is_outbox_empty(service: Service) -> bool:
    return (await service.deps.due.statistics()).unsent == 0


async def test_a_relay_that_fails_after_leasing_publishes_in_a_later_pass(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(new_settings(), tmp_path, background=True) as service:
        arm(service, "orders.before-publish", "fail")
        arm(service, "orders.relay-after-lease", "fail")
        order = (await service.place([(lamp, 1)])).json()
        await topic.wait_for(order["id"], "order.created")
        assert reached(service, "orders.relay-after-lease")
    # More than once if Kafka takes longer than the lease to acknowledge it.
    assert len({e.id for e in topic.events_of(order["id"])}) == 1


async def test_a_cancellation_between_publishing_and_removal_is_published_second_without_delay(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    long: dict[str, Any] = {"lease_seconds": 600, "relay_interval_seconds": 600}
    async with (
        gated_service(new_settings(**long), tmp_path, background=True) as slow,
        serving(new_settings(**long)) as other,
    ):
        published = gate_at(slow, "orders.after-publish")
        order = (await slow.place([(lamp, 2)])).json()
        await topic.wait_for(order["id"], "order.created")
        await published.wait_until_reached()
        assert (await other.http.delete(f"/api/order/{order['id']}")).status_code == 204
        published.open()
        events = await topic.wait_for(order["id"], "order.created", "order.cancelled")
        assert [e.sequence for e in events] == ["1", "2"]


async def test_a_cancellation_just_after_the_removal_is_published_without_delay(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    """The first event is removed from the outbox, but the relay does not know that yet."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(new_settings(), tmp_path) as service:
        removed = gate_at(service, "orders.after-remove")
        order = (await service.place([(lamp, 2)])).json()
        await removed.wait_until_reached()
        assert await _is_outbox_empty(service)
        assert (await service.http.delete(f"/api/order/{order['id']}")).status_code == 204
        removed.open()
        await topic.wait_for(order["id"], "order.created", "order.cancelled")
        await until(lambda: _is_outbox_empty(service), what="outbox empty")
    assert [e.type for e in topic.events_of(order["id"])] == ["order.created", "order.cancelled"]


async def test_an_event_that_kafka_rejects_permanently_is_kept_with_the_reason_and_blocks_no_other(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    long_named = [catalogue.add(name="n" * 200) for _ in range(10)]
    lamp = catalogue.add()
    for product in (*long_named, lamp):
        await stock.set(product, 5)
    narrow = new_settings()
    narrow["kafka"]["options"] = {"message.max.bytes": "2000"}
    async with serving(narrow) as service:
        large = (await service.place([(p, 1) for p in long_named])).json()
        await until(lambda: _has_stuck(service, 1), what="stuck event")
        for _ in range(3):
            small = (await service.place([(lamp, 1)])).json()
            await topic.wait_for(small["id"], "order.created")
        stored = await get_document(service, large["id"])
        assert "too large" in stored["outbox"][0]["refused"].lower()
        assert {"unsent_since", "claimed_at"} & set(stored) == set()
        assert topic.messages_of(large["id"]) == []
    async with serving(new_settings()) as wide:
        # A producer with a larger limit publishes the event when it is queued again.
        assert await wide.deps.relay.outbox.requeue(UUID(large["id"]), None, wide.deps.clock())
        await topic.wait_for(large["id"], "order.created")
        await until(lambda: _has_stuck(wide, 0), what="no stuck event")


async def _has_stuck(service: Service, count: int) -> bool:
    return (await service.deps.due.statistics()).with_stuck_events == count


async def test_orders_are_placed_while_kafka_is_unavailable(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    settings = new_settings()
    settings["kafka"] = {"bootstrap_servers": "127.0.0.1:1", "partitions": 0, "delivery_seconds": 1}
    published = RECOVERED.labels("published")
    published_before = published._value.get()
    async with serving(settings) as service:
        order = (await service.place([(lamp, 2)])).json()
        assert order["status"] == "confirmed"
        await asyncio.sleep(1.5)
        statistics = await service.deps.due.statistics()
        assert (statistics.unsent, statistics.with_stuck_events) == (1, 0)
        assert statistics.oldest_unsent_seconds > 1
        # The relay has tried it, but Kafka has not acknowledged it.
        await until(lambda: bool(service.deps.relay._retried), what="retried")
        assert published._value.get() == published_before
    async with serving(new_settings()):
        await topic.wait_for(order["id"], "order.created")
        await until(lambda: published._value.get() > published_before, what="counted")
