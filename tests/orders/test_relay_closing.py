"""Events that are due when the relay is closed: none is sent without its acknowledgement, or waits for a lease."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .gates import gate_at, gated_service
from .service import NOTHING_OVERDUE, MakeSettings, Service, get_document, on_new_database, serving
from .stock import Stock
from .topic import Topic


@pytest.fixture
async def new_settings(make_settings: MakeSettings, migrated: None) -> MakeSettings:
    """Make configurations with a new database, on which no lease expires during a test."""
    new_settings = await on_new_database(make_settings)
    return lambda: new_settings(recovery=NOTHING_OVERDUE)


async def test_an_event_that_follows_the_one_in_flight_is_published_before_the_relay_is_closed(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with gated_service(new_settings(), tmp_path) as service:
        acknowledged = gate_at(service, "orders.after-publish")
        order_id = (await service.place([(lamp, 2)])).json()["id"]
        await acknowledged.wait_until_reached()
        assert (await service.http.delete(f"/api/order/{order_id}")).status_code == 204
        second = gate_at(service, "orders.before-publish")
        closing = asyncio.create_task(service.deps.relay.close(PATIENCE))
        acknowledged.open()
        await second.wait_until_reached()
        # The first event is settled, and the second one is not with the producer yet.
        assert service.deps.relay.producer.pending == 0
        second.open()
        await closing
        assert "outbox" not in await get_document(service, UUID(order_id))
    await topic.wait_for(order_id, "order.created", "order.cancelled")
    assert [e.type for e in topic.events_of(order_id)] == ["order.created", "order.cancelled"]


async def test_a_closed_relay_sends_nothing_and_leaves_events_to_other_relays(
    new_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    async with serving(new_settings(), background=False) as closed:
        await closed.deps.relay.close(PATIENCE)
        placed = await closed.place([(lamp, 2)])
        assert placed.status_code == 201
        order_id = placed.json()["id"]
        await until(lambda: _is_unleased(closed, order_id), what="the lease is released")
        assert [e["type"] for e in (await get_document(closed, UUID(order_id)))["outbox"]] == ["order.created"]
        await until(lambda: closed.deps.relay.idle, what="the order is settled")
        assert closed.deps.relay.producer.pending == 0
        async with serving(new_settings()) as other:
            await until(lambda: _has_no_outbox(other, order_id), what="published by the other relay")
    assert [e.type for e in await topic.wait_for(order_id, "order.created")] == ["order.created"]


async def _is_unleased(service: Service, order_id: str) -> bool:
    return "claimed_by" not in await get_document(service, UUID(order_id))


async def _has_no_outbox(service: Service, order_id: str) -> bool:
    return "outbox" not in await get_document(service, UUID(order_id))
