"""Kafka accepts no events: leases are released instead of expiring, and the sequence of each order's events is kept."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from market.kit.errors import Unavailable
from market.orders.domain import Order
from market.orders.outbox.relay import Relay
from tests.support.kafka import cause_fatal_error
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import MakeSettings, Service, Settings, get_document, on_new_database, serving
from .stock import Stock
from .topic import Topic

# Longer than any test: no event may have to wait for a lease to expire.
LEASE_SECONDS = 1000.0
RECOVERY = {"reject_after_seconds": 600, "interval_seconds": 600, "lease_seconds": LEASE_SECONDS}


@pytest.fixture
async def new_settings(make_settings: MakeSettings, migrated: None) -> MakeSettings:
    """Make configurations with a new database, `new_settings(relay_interval_seconds=...)`."""
    new_settings = await on_new_database(make_settings)
    return lambda **recovery: new_settings(recovery={**RECOVERY, **recovery})


def without_kafka(settings: Settings, delivery_seconds: float, **options: str) -> Settings:
    """Return the configuration with a broker that does not exist: each event fails after `delivery_seconds`."""
    kafka = {
        "bootstrap_servers": "127.0.0.1:1",
        "partitions": 0,
        "delivery_seconds": delivery_seconds,
        "options": options,
    }
    return {**settings, "kafka": kafka}


async def fail_in_flight(service: Service) -> None:
    """Let the events in flight fail, once the producer has all of them."""
    relay = service.deps.relay
    await until(lambda: not relay.unsent, what="all events sent")
    relay.producer.fail_pending()


async def lease_owners(service: Service) -> dict[UUID, str]:
    """Return the owner of each outbox lease, by order id."""
    leased = service.documents.find({"claimed_by": {"$exists": True}}, {"claimed_by": 1})
    return {d["_id"]: d["claimed_by"] async for d in leased}


async def are_all_released(service: Service) -> bool:
    return not await lease_owners(service)


async def test_events_of_an_outage_are_published_in_sequence_soon_after_it(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, kafka: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    settings = [new_settings(relay_interval_seconds=0.2) for _ in range(2)]
    for s in settings:
        s["kafka"]["delivery_seconds"] = 1
    async with serving(settings[0]) as first, serving(settings[1]) as second:
        instances = [first, second]
        for instance in instances:
            await topic.wait_for((await instance.place([(lamp, 1)])).json()["id"], "order.created")
        await asyncio.to_thread(kafka.kill)
        try:
            order_ids = [(await instances[n % 2].place([(lamp, 1)])).json()["id"] for n in range(8)]
            cancelled = order_ids[:3]
            for n, order_id in enumerate(cancelled):
                assert (await instances[n % 2].http.delete(f"/api/order/{order_id}")).status_code == 204

            async def are_released() -> bool:
                # Each relay keeps trying one order, to detect when Kafka accepts events again.
                unsent = await first.documents.count_documents({"unsent_since": {"$exists": True}})
                return unsent == 8 and len(await lease_owners(first)) <= 2

            await until(are_released, what="leases released")
            assert not any(topic.messages_of(order_id) for order_id in order_ids)
        finally:
            await asyncio.to_thread(kafka.restart)
        restarted = asyncio.get_running_loop().time()
        for order_id in order_ids:
            types = ["order.created", "order.cancelled"] if order_id in cancelled else ["order.created"]
            published = await topic.wait_for(order_id, *types, seconds=LEASE_SECONDS / 5)
            # An event whose acknowledgement was lost is published again, but never before an earlier event.
            assert list(dict.fromkeys(e.type for e in published)) == types
        assert asyncio.get_running_loop().time() - restarted < LEASE_SECONDS / 5

        async def are_outboxes_empty() -> bool:
            return not await first.documents.count_documents({"outbox": {"$exists": True}})

        await until(are_outboxes_empty, what="outboxes empty")
    assert await stock.available(lamp) == 50 - 2 - 5


async def test_events_in_flight_at_a_fatal_error_are_published_by_the_same_process_within_the_lease(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, kafka: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    settings = new_settings(relay_interval_seconds=0.2)
    settings["kafka"]["delivery_seconds"] = 300
    async with serving(settings) as service:
        await topic.wait_for((await service.place([(lamp, 1)])).json()["id"], "order.created")
        kafka.pause()
        try:
            responses = await asyncio.gather(*(service.place([(lamp, 1)]) for _ in range(50)))
            order_ids = [response.json()["id"] for response in responses]
            await until(lambda: service.deps.relay.producer.pending == len(order_ids), what="all events sent")
            cause_fatal_error(service.deps.relay.producer)

            async def are_released() -> bool:
                # The relay keeps trying one order, to detect when Kafka accepts events again.
                return len(await lease_owners(service)) <= 1

            await until(are_released, what="leases released")
        finally:
            kafka.resume()
        for order_id in order_ids:
            await topic.wait_for(order_id, "order.created", seconds=LEASE_SECONDS / 5)

        async def are_outboxes_empty() -> bool:
            return not await service.documents.count_documents({"outbox": {"$exists": True}})

        await until(are_outboxes_empty, what="outboxes empty")
        await until(lambda: service.deps.relay.idle, what="relay idle")


async def test_a_relay_slower_than_its_lease_does_not_release_the_lease_of_another(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with (
        serving(without_kafka(new_settings(), 300), background=False) as slow,
        serving(new_settings(), background=False) as other,
    ):
        expired = UUID((await slow.place([(lamp, 1)])).json()["id"])
        kept = UUID((await slow.place([(lamp, 1)])).json()["id"])
        slow_id, other_id = slow.deps.orders.instance_id, other.deps.orders.instance_id
        assert await lease_owners(slow) == {expired: slow_id, kept: slow_id}
        # One lease expires before the event fails, and another relay takes it.
        await slow.documents.update_one({"_id": expired}, {"$unset": {"claimed_at": 1}})
        assert (
            await other.deps.relay.outbox.lease(expired, LEASE_SECONDS, await other.deps.relay.outbox.server_time())
            is not None
        )

        await fail_in_flight(slow)

        async def is_released() -> bool:
            return kept not in await lease_owners(slow)

        await until(is_released, what="lease released")
        await asyncio.sleep(0.3)
        assert await lease_owners(slow) == {expired: other_id}
        unsent = {"outbox.0.type": "order.created", "unsent_since": {"$exists": True}}
        assert await slow.documents.count_documents(unsent) == 2


async def test_the_lease_of_an_event_that_a_full_producer_rejects_is_released_at_once(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    narrow = without_kafka(new_settings(), 300, **{"queue.buffering.max.messages": "1"})
    async with serving(narrow, background=False) as service:
        queued, rejected = [UUID((await service.place([(lamp, 1)])).json()["id"]) for _ in range(2)]

        async def is_released() -> bool:
            return set(await lease_owners(service)) == {queued}

        # While the first event is still in flight.
        await until(is_released, what="lease of the second order released")
        document = await get_document(service, rejected)
        assert (document["status"], len(document["outbox"])) == ("confirmed", 1)
        await fail_in_flight(service)


async def test_a_failing_relay_tries_each_order_in_turn(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock
) -> None:
    """One of several partitions may be unavailable: its orders must not block the others."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    async with serving(without_kafka(new_settings(), 0.5), background=False) as service:
        order_ids = [UUID((await service.place([(lamp, 1)])).json()["id"]) for _ in range(3)]
        relay = service.deps.relay
        await until(lambda: are_all_released(service), what="leases released")
        await until(lambda: relay.idle, what="relay idle")
        published: list[UUID] = []

        class RecordingRelay(Relay):
            def publish(self, order: Order) -> None:
                published.append(order.id)
                super().publish(order)

        recording = RecordingRelay(service.config, relay.outbox, service.deps.clock, None, relay.topics)
        try:
            # A first failure tells it that Kafka is unavailable, which the service's own relay already knows.
            assert await recording.run_once() > 0
            published.clear()
            for _ in range(4):
                assert await recording.run_once() > 0
                assert await are_all_released(service)
            assert published == [*order_ids, order_ids[0]]
        finally:
            await recording.close(0)


async def test_outbox_changes_that_the_store_does_not_apply_raise_unavailable(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock
) -> None:
    """This happens while the primary changes. The outcome is unknown; the caller may repeat the change."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with serving(without_kafka(new_settings(), 300), background=False) as service:
        order_id = UUID((await service.place([(lamp, 1)])).json()["id"])
        outbox = service.deps.relay.outbox
        documents = service.documents
        before = await documents.find_one({"_id": order_id})
        # The store rejects every update.
        await documents.database.command("collMod", documents.name, validator={"never": True})
        try:
            with pytest.raises(Unavailable):
                await outbox.release_leases([order_id])
            with pytest.raises(Unavailable):
                await outbox.remove_published([(order_id, before["outbox"][0]["id"])])
        finally:
            await documents.database.command("collMod", documents.name, validator={})
        assert await documents.find_one({"_id": order_id}) == before
        await outbox.release_leases([order_id])
        assert await lease_owners(service) == {}
        await fail_in_flight(service)
