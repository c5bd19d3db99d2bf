"""Kafka takes nothing: claims are make_settings back, no order waits for a claim to run out, and order per order is kept."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from market.kit.errors import Unavailable
from market.orders.domain import Order
from market.orders.outbox.relay import Relay
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import MakeSettings, Service, migrate, serving
from .stock import Stock
from .topic import Topic

# Whoever waits for a claim to run out waits for longer than a test does.
CLAIM_SECONDS = 1000.0
RECOVERY = {"after_seconds": 600, "interval_seconds": 600, "lease_seconds": CLAIM_SECONDS}


@pytest.fixture
async def apart(make_settings: MakeSettings, migrated: None) -> Any:
    """Configurations on a fresh database."""
    name = f"orders_silent_{uuid4().hex[:8]}"
    await migrate(make_settings(database=name))
    return lambda **more: make_settings(database=name, recovery={**RECOVERY, **more})


def to_nobody(settings: dict[str, Any], delivery_seconds: float, **options: str) -> dict[str, Any]:
    """A broker's address where nobody listens: each event fails after so many seconds."""
    kafka = {
        "bootstrap_servers": "127.0.0.1:1",
        "partitions": 0,
        "delivery_seconds": delivery_seconds,
        "options": options,
    }
    return {**settings, "kafka": kafka}


def fail(service: Service) -> None:
    """The events under way fail, at the moment that a test chooses."""
    service.deps.relay.producer.fail_pending()


def documents(service: Service) -> Any:
    return service.documents


async def claimed(service: Service) -> dict[UUID, str]:
    """Whose claims the orders with unsent events are under."""
    found = documents(service).find({"claimed_by": {"$exists": True}}, {"claimed_by": 1})
    return {d["_id"]: d["claimed_by"] async for d in found}


async def all_given_back(service: Service) -> bool:
    return not await claimed(service)


async def test_events_of_an_outage_are_published_in_sequence_soon_after_it(
    apart: Any, catalogue: FakeCatalogue, stock: Stock, topic: Topic, kafka: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 50)
    settings = [apart(relay_interval_seconds=0.2) for _ in range(2)]
    for one in settings:
        one["kafka"]["delivery_seconds"] = 1
    async with serving(settings[0]) as first, serving(settings[1]) as second:
        pods = [first, second]
        for pod in pods:
            await topic.wait_for((await pod.place([(lamp, 1)])).json()["id"], "order.created")
        await asyncio.to_thread(kafka.kill)
        try:
            made = [(await pods[n % 2].place([(lamp, 1)])).json()["id"] for n in range(8)]
            gone = made[:3]
            for n, order_id in enumerate(gone):
                assert (await pods[n % 2].http.delete(f"/api/order/{order_id}")).status_code == 204

            async def given_back() -> bool:
                # Each relay tries one order, to find out when Kafka takes events again.
                unsent = await documents(first).count_documents({"unsent_since": {"$exists": True}})
                return unsent == 8 and len(await claimed(first)) <= 2

            await until(given_back, what="claims make_settings back")
            assert not any(topic.messages_of(id) for id in made)
        finally:
            await asyncio.to_thread(kafka.restart)
        back = asyncio.get_running_loop().time()
        for order_id in made:
            types = ["order.created", "order.cancelled"] if order_id in gone else ["order.created"]
            found = await topic.wait_for(order_id, *types, seconds=CLAIM_SECONDS / 5)
            # What Kafka took without its response arriving comes again, never before what it follows.
            assert list(dict.fromkeys(e.type for e in found)) == types
        assert asyncio.get_running_loop().time() - back < CLAIM_SECONDS / 5

        async def cleared() -> bool:
            return not await documents(first).count_documents({"outbox": {"$exists": True}})

        await until(cleared, what="outboxes empty")
    assert await stock.available(lamp) == 50 - 2 - 5


async def test_a_relay_slower_than_its_lease_does_not_release_the_lease_of_another(
    apart: Any, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with serving(to_nobody(apart(), 300), background=False) as slow, serving(apart(), background=False) as other:
        lost = UUID((await slow.place([(lamp, 1)])).json()["id"])
        kept = UUID((await slow.place([(lamp, 1)])).json()["id"])
        ours, theirs = slow.deps.orders.instance_id, other.deps.orders.instance_id
        assert await claimed(slow) == {lost: ours, kept: ours}
        # One claim runs out before the event fails, and another relay takes it.
        await documents(slow).update_one({"_id": lost}, {"$unset": {"claimed_at": 1}})
        assert await other.deps.outbox.lease(lost, CLAIM_SECONDS, await other.deps.outbox.server_time()) is not None

        fail(slow)

        async def failed() -> bool:
            return kept not in await claimed(slow)

        await until(failed, what="the event fails")
        await asyncio.sleep(0.3)
        assert await claimed(slow) == {lost: theirs}
        assert (
            await documents(slow).count_documents({"outbox.0.type": "order.created", "unsent_since": {"$exists": True}})
            == 2
        )


async def test_the_lease_of_an_event_that_a_full_producer_rejects_is_released_at_once(
    apart: Any, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    narrow = to_nobody(apart(), 300, **{"queue.buffering.max.messages": "1"})
    async with serving(narrow, background=False) as service:
        waiting, turned_away = [UUID((await service.place([(lamp, 1)])).json()["id"]) for _ in range(2)]

        async def one_left() -> bool:
            return set(await claimed(service)) == {waiting}

        # While the first event is under way yet.
        await until(one_left, what="no room for the second")
        document = await documents(service).find_one({"_id": turned_away})
        assert (document["status"], len(document["outbox"])) == ("confirmed", 1)
        fail(service)


async def test_a_failing_relay_tries_each_order_in_turn(apart: Any, catalogue: FakeCatalogue, stock: Stock) -> None:
    """Of several partitions one may be away: its orders must not stand before the others."""
    lamp = catalogue.add()
    await stock.set(lamp, 9)
    async with serving(to_nobody(apart(), 0.5), background=False) as service:
        made = [UUID((await service.place([(lamp, 1)])).json()["id"]) for _ in range(3)]
        relay = service.deps.relay
        await until(lambda: all_given_back(service), what="claims make_settings back")
        await until(lambda: relay.idle, what="their relay knows")
        tried: list[UUID] = []

        class Recording(Relay):
            def publish(self, order: Order) -> None:
                tried.append(order.id)
                super().publish(order)

        recording = Recording(service.config, service.deps.outbox, service.deps.clock, None)
        try:
            # Like the service's own relay it knows from a failure that Kafka is away.
            assert await recording.run_once() > 0
            tried.clear()
            for _ in range(4):
                assert await recording.run_once() > 0
                assert await all_given_back(service)
            assert tried == [*made, made[0]]
        finally:
            await recording.close(0)


async def test_outbox_changes_that_the_store_does_not_apply_raise_unavailable(
    apart: Any, catalogue: FakeCatalogue, stock: Stock
) -> None:
    """As in the moment in which another server becomes the primary: the caller repeats them, or waits."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with serving(to_nobody(apart(), 300), background=False) as service:
        order_id = UUID((await service.place([(lamp, 1)])).json()["id"])
        outbox = service.deps.outbox
        orders = documents(service)
        before = await orders.find_one({"_id": order_id})
        # No update of the order is taken.
        await orders.database.command("collMod", orders.name, validator={"never": True})
        try:
            with pytest.raises(Unavailable):
                await outbox.release_lease([order_id])
            with pytest.raises(Unavailable):
                await outbox.remove_published([(order_id, before["outbox"][0]["id"])])
        finally:
            await orders.database.command("collMod", orders.name, validator={})
        assert await orders.find_one({"_id": order_id}) == before
        await outbox.release_lease([order_id])
        assert await claimed(service) == {}
        fail(service)
