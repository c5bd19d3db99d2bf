"""Orders that this version cannot read, or of which a newer version has stored more than it knows, beside good ones.

Each order's error is its own: it stops no other order, and what is unknown is kept as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Timestamp
from prometheus_client import REGISTRY

from market.contracts import events
from market.kit.ids import new_id
from market.orders.domain import Order, OrderLine, OutboxEntry
from market.orders.mongodb.documents import entry_to_document, order_to_document
from market.orders.reconciliation.repairs import RepairRequest, RepairResult, reserve_again
from market.orders.recovery.recover import recover_orders
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .reconciliation import reconcile
from .service import IDLE, MakeSettings, Service, get_document, on_new_database, recover_all, serving
from .stock import Stock
from .topic import Topic

# What makes a document unreadable.
BROKEN: list[dict[str, Any]] = [{"user": 5}, {"items": "none"}, {"total": "12.50"}, {"created_at": "yesterday"}]


@pytest.fixture
async def own_service(make_settings: MakeSettings, migrated: None) -> AsyncIterator[Service]:
    """An instance with a database of its own, and without background tasks."""
    settings = await on_new_database(make_settings)
    async with serving(settings(recovery=IDLE), background=False) as service:
        yield service


async def store(service: Service, product_id: str, **changes: Any) -> str:
    """Store a pending order of one unit with these changes, and return its id."""
    order = Order(
        new_id(),
        "ada",
        None,
        (OrderLine(product_id, "Lamp", 1, Decimal("2.50")),),
        Decimal("2.50"),
        "GBP",
        datetime.now(UTC).replace(microsecond=0),
    )
    await service.documents.insert_one({**order_to_document(order), **changes})
    return str(order.id)


def counter(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def outbox(order_type: str = events.CREATED, *, at: datetime | None = None) -> dict[str, Any]:
    at = at or datetime.now(UTC).replace(microsecond=0)
    return {"outbox": [entry_to_document(OutboxEntry(uuid4(), order_type, at))], "unsent_since": at}


async def test_broken_pending_orders_do_not_stop_the_recovery_of_those_behind_them(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    broken = [await store(own_service, lamp, **change) for change in BROKEN]
    good = [await store(own_service, lamp) for _ in range(3)]
    await stock.reserve(good[0], lamp, 1)
    counted = counter("market_orders_unreadable_total")
    # With pages of two, the first pages have nothing but broken orders.
    while await recover_orders(own_service.deps, reject_after_seconds=-2, retry_seconds=-2, limit=2):
        pass
    assert counter("market_orders_unreadable_total") >= counted + len(BROKEN)
    documents = [await get_document(own_service, order_id) for order_id in good]
    assert [(d["status"], d["reason"], "release_due" in d) for d in documents] == [("rejected", "expired", False)] * 3
    assert await stock.available(lamp) == 5
    for order_id, change in zip(broken, BROKEN, strict=True):
        document = await get_document(own_service, order_id)
        assert (document["status"], {name: document[name] for name in change}) == ("pending", change)


async def test_broken_orders_do_not_stop_the_release_of_the_stock_of_others(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    now = datetime.now(UTC)
    broken = [
        await store(own_service, lamp, status="cancelled", release_due=now - timedelta(seconds=60 - i), **change)
        for i, change in enumerate(BROKEN)
    ]
    # A newer version has stored the reason, which does not matter for the release.
    good = await store(own_service, lamp, status="rejected", reason="fraud", release_due=now - timedelta(seconds=5))
    for order_id in (*broken, good):
        await stock.reserve(order_id, lamp, 1)
    while await recover_orders(own_service.deps, reject_after_seconds=600, retry_seconds=-2, limit=2):
        pass
    document = await get_document(own_service, good)
    assert (document["status"], document["reason"], "release_due" in document) == ("rejected", "fraud", False)
    assert await stock.reservation(good) == ("cancelled", {lamp: 1})
    for order_id in broken:
        assert await stock.reservation(order_id) == ("reserved", {lamp: 1})
        assert "release_due" in await get_document(own_service, order_id)


async def test_an_order_of_a_newer_versions_status_is_shown_as_stored_and_left_alone(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await store(
        own_service,
        lamp,
        status="shipped",
        reason="by-drone",
        release_due=datetime.now(UTC) - timedelta(seconds=60),
        **outbox("order.shipped", at=datetime(2026, 1, 1, tzinfo=UTC)),
    )
    await stock.reserve(order_id, lamp, 1)
    before = await get_document(own_service, order_id)
    shown = await own_service.http.get(f"/api/order/{order_id}")
    assert (shown.status_code, shown.json()["status"], shown.json()["total"]) == (200, "shipped", "2.50")
    cancelled = await own_service.http.delete(f"/api/order/{order_id}")
    assert (cancelled.status_code, cancelled.json()["order_id"]) == (503, order_id)
    assert 'has the status "shipped"' in cancelled.json()["detail"]
    await recover_all(own_service)
    await own_service.deps.relay.run_once()
    assert await get_document(own_service, order_id) == before
    assert await stock.reservation(order_id) == ("reserved", {lamp: 1})
    assert topic.messages_of(order_id) == []


async def test_a_list_shows_unknown_statuses_and_leaves_out_what_is_unreadable(
    own_service: Service, catalogue: FakeCatalogue
) -> None:
    lamp = catalogue.add()
    old = await store(own_service, lamp, status="confirmed")
    for change in BROKEN[1:]:
        await store(own_service, lamp, **change)
    unreadable = await store(own_service, lamp, currency=5)
    shipped = await store(own_service, lamp, status="shipped")
    await store(own_service, lamp, status="rejected", reason="fraud")
    await own_service.documents.update_many({"created_at": {"$type": "date"}}, {"$set": {"user": "eve"}})
    response = await own_service.http.get("/api/order", params={"user": "eve"})
    assert response.status_code == 200
    assert [(o["id"], o["status"]) for o in response.json()["items"]] == [(shipped, "shipped"), (old, "confirmed")]
    response = await own_service.http.get("/api/order", params={"user": "eve", "status": "confirmed"})
    assert [o["id"] for o in response.json()["items"]] == [old]
    single = await own_service.http.get(f"/api/order/{unreadable}")
    assert (single.status_code, single.headers["retry-after"]) == (503, "30")
    assert single.json()["type"] == "urn:market:problem:unreadable-order"
    assert single.json()["order_id"] == unreadable


async def test_an_unreadable_order_does_not_disturb_reads_that_share_its_query(
    own_service: Service, catalogue: FakeCatalogue
) -> None:
    lamp = catalogue.add()
    unreadable = await store(own_service, lamp, currency=5)
    readable = [await store(own_service, lamp) for _ in range(5)]
    responses = await asyncio.gather(
        *(own_service.http.get(f"/api/order/{order_id}") for order_id in [*readable, unreadable, *readable])
    )
    assert [r.status_code for r in responses] == [200] * 5 + [503] + [200] * 5


async def test_a_key_whose_order_has_a_newer_versions_status_places_no_second_order(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, key = catalogue.add(), f"key-{uuid4()}"
    await stock.set(lamp, 5)
    placed = await own_service.place([(lamp, 1)], key=key)
    where = {"_id": UUID(placed.json()["id"])}
    await own_service.documents.update_one(where, {"$set": {"status": "shipped"}})
    repeated = await own_service.place([(lamp, 1)], key=key)
    assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
    assert repeated.json() == {**placed.json(), "status": "shipped"}
    await own_service.documents.update_one(where, {"$set": {"items": "none"}})
    unknown = await own_service.place([(lamp, 1)], key=key)
    assert (unknown.status_code, unknown.json()["order_id"]) == (503, placed.json()["id"])
    assert await own_service.documents.count_documents({}) == 1
    assert await stock.available(lamp) == 4


async def test_the_relay_publishes_the_events_behind_those_of_unreadable_orders(
    own_service: Service, catalogue: FakeCatalogue, topic: Topic
) -> None:
    lamp = catalogue.add()
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    for i, change in enumerate(BROKEN):
        await store(own_service, lamp, status="confirmed", **outbox(at=long_ago + timedelta(seconds=i)), **change)
    newer = [
        await store(own_service, lamp, status="confirmed", **outbox("order.shipped", at=long_ago)),
        await store(own_service, lamp, status="shipped", **outbox(at=long_ago)),
    ]
    both = outbox()
    both["outbox"] += outbox("order.shipped")["outbox"]
    mixed = await store(own_service, lamp, status="confirmed", **both)
    good = await store(own_service, lamp, status="confirmed", **outbox())
    await own_service.deps.relay.run_once()
    await topic.wait_for(good, events.CREATED)
    await topic.wait_for(mixed, events.CREATED)

    async def is_released(order_id: str) -> bool:
        return "claimed_by" not in await get_document(own_service, order_id)

    # The lease on an event of a newer version is not taken, or released again, so that its relay can publish at once.
    for order_id in (*newer, mixed):
        await until(lambda order_id=order_id: is_released(order_id), what="the lease is released")
        assert "outbox" in await get_document(own_service, order_id)
    assert [e["type"] for e in (await get_document(own_service, mixed))["outbox"]] == ["order.shipped"]


async def test_reconciliation_reports_orders_of_unknown_status_and_repairs_nothing_of_them(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    shipped = await store(own_service, lamp, status="shipped", since=Timestamp(1, 1))
    await stock.reserve(shipped, lamp, 1)
    broken = await store(own_service, lamp, items="none")
    before = await get_document(own_service, shipped)
    report = await reconcile(own_service, repair=True)
    assert report.differences_of(shipped) == [("order-of-unknown-status", None)]
    assert report.differences_of(broken) == [("unreadable-order", None)]
    assert report.summary["complete"]
    assert await get_document(own_service, shipped) == before
    assert await stock.reservation(shipped) == ("reserved", {lamp: 1})


async def reserve_again_after(service: Service, order_id: str, change: Callable[[], Awaitable[object]]) -> RepairResult:
    """Return the result of repairing a confirmed order without a reservation, if it changes after it was checked."""
    order = await service.deps.orders.get_latest(UUID(order_id))
    await change()
    return await reserve_again(RepairRequest(service.deps, UUID(order_id), order, "no stock is reserved", None))


async def test_reserving_stock_again_keeps_it_if_only_a_newer_version_knows_whether_it_is_needed(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    order_id = await store(own_service, lamp, status="confirmed")
    key = {"_id": UUID(order_id)}
    result = await reserve_again_after(
        own_service, order_id, lambda: own_service.documents.update_one(key, {"$set": {"status": "shipped"}})
    )
    assert result == RepairResult(False, 'no stock is reserved; reserved again, but the status is now "shipped"')
    assert await stock.reservation(order_id) == ("reserved", {lamp: 1})


async def test_reserving_stock_again_releases_it_if_the_order_was_cancelled_or_deleted_meanwhile(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    cancelled = await store(own_service, lamp, status="confirmed")
    deleted = await store(own_service, lamp, status="confirmed")
    result = await reserve_again_after(
        own_service,
        cancelled,
        lambda: own_service.documents.update_one({"_id": UUID(cancelled)}, {"$set": {"status": "cancelled"}}),
    )
    assert result == RepairResult(False, "no stock is reserved; the order has been cancelled")
    result = await reserve_again_after(
        own_service, deleted, lambda: own_service.documents.delete_one({"_id": UUID(deleted)})
    )
    assert result == RepairResult(False, "no stock is reserved; the order no longer exists")
    assert await stock.reservation(cancelled) == ("cancelled", {lamp: 1})
    assert await stock.reservation(deleted) == ("cancelled", {lamp: 1})
    assert await stock.available(lamp) == 5


async def test_a_product_that_cannot_be_priced_stops_only_the_orders_that_have_it(
    own_service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, broken = catalogue.add(), catalogue.add()
    await stock.set(lamp, 50)
    catalogue.products[broken]["price"] = "12 pounds"
    counted = counter("market_orders_unreadable_products_total")
    # All lookups are in flight together, so most of them share a request.
    responses = await asyncio.gather(
        own_service.place([(lamp, 1), (broken, 1)]), *(own_service.place([(lamp, 1)]) for _ in range(10))
    )
    assert [r.status_code for r in responses] == [503] + [201] * 10
    assert broken in responses[0].json()["detail"]
    assert counter("market_orders_unreadable_products_total") > counted
    assert await stock.available(lamp) == 40
