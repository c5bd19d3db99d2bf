"""A process crashes at each failure point of an order's lifecycle, and another one completes the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from market.orders.domain import FAILURE_POINTS
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .service import IDLE, NOTHING_OVERDUE, MakeSettings, OrdersProcess, Service, make_overdue, on_new_database, serving
from .stock import Stock
from .topic import Topic

# The failure points by the status in which an order ends after a crash there.
REJECTED = {"orders.after-intent", "orders.before-reserve", "orders.after-reserve", "orders.before-confirm"}
CONFIRMED = {
    "orders.after-confirm",
    "orders.before-response",
    "orders.before-publish",
    "orders.after-publish",
    "orders.after-remove",
}
CANCELLED = {"orders.after-cancel-status", "orders.after-release", "orders.after-release-cleared"}


@dataclass
class Outcome:
    """An order when nothing is due any more. `events`: (type, id) of its messages in the topic."""

    status: str | None
    available: int
    reservation: tuple[str, dict[str, int]] | None
    events: list[tuple[str, str]]
    document: dict[str, Any]


@asynccontextmanager
async def recovering_service(make_settings: MakeSettings) -> AsyncIterator[tuple[Service, MakeSettings]]:
    """Run two instances whose background tasks complete orders, and yield one, with configurations for its database.

    The database is new, since every instance would complete the orders of others on it. Nothing is overdue before
    `make_overdue`: a slow process must not be taken for a crashed one.
    """
    new_settings = await on_new_database(make_settings)
    async with (
        serving(new_settings(recovery=NOTHING_OVERDUE)) as service,
        serving(new_settings(recovery=NOTHING_OVERDUE)),
    ):
        yield service, new_settings


async def wait_for_outcome(service: Service, topic: Topic, order_id: str, stock: Stock, product_id: str) -> Outcome:
    """Wait until nothing is due for the order any more, and its events are in the topic."""

    async def get_completed() -> dict[str, Any] | None:
        document = await service.documents.find_one({"_id": UUID(order_id)})
        due = {"outbox", "release_due"} & set(document or {})
        return None if document is None or due or document["status"] == "pending" else dict(document)

    document: Any = await until(get_completed, what=f"order {order_id} is completed")
    types = ["order.created"] if document.get("confirmed_at") else []
    types += ["order.cancelled"] if types and document["status"] == "cancelled" else []
    published = await topic.wait_for(order_id, *types)
    return Outcome(
        document["status"],
        await stock.available(product_id),
        await stock.reservation(order_id),
        [(e.type, e.id) for e in published],
        document,
    )


async def crash(
    point: str,
    process: OrdersProcess,
    service: Service,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    *,
    cancel: bool = False,
) -> Outcome | None:
    """Order two of five units and crash the process at the point. Return the outcome, None if nothing was stored."""
    lamp, user = catalogue.add(), f"{point} {uuid4()}"
    await stock.set(lamp, 5)
    process.start()
    await process.ready()
    if not cancel:
        process.arm(point)
    # On a busy machine a request may exceed its deadline before it reaches the point; then another is sent.
    async with asyncio.timeout(2 * PATIENCE):
        while not process.reached(point):
            with suppress(httpx.HTTPError):
                response = await process.place([(lamp, 2)], user=user)
                if response.status_code != 201:
                    continue
                if cancel:
                    process.arm(point)
                    # Every order is cancelled before another one is placed.
                    while (await process.http.delete(response.headers["location"])).status_code != 204:
                        await asyncio.sleep(0.1)
                # The point comes after the response.
                await until(lambda: process.reached(point), what=point)
    await process.exited()
    assert process.reached(point)
    await make_overdue(service.documents, {"user": user})
    stored = service.documents.find({"user": user}, {"_id": 1}).sort("created_at", -1)
    order_ids = [document["_id"] async for document in stored]
    if not order_ids:
        assert await stock.available(lamp) == 5
        return None
    outcomes = [await wait_for_outcome(service, topic, str(order_id), stock, lamp) for order_id in order_ids]
    # If there are several orders, the process crashed with the one that got furthest. They all count for the stock.
    furthest = max(outcomes, key=lambda outcome: bool(outcome.document.get("confirmed_at")))
    furthest.available = await stock.available(lamp)
    return furthest


@pytest.fixture(scope="module")
async def outcomes(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Outcome | None]:
    """The outcome of a crash at each point; a few crash concurrently."""
    limit = asyncio.Semaphore(4)

    async def crash_at(point: str) -> tuple[str, Outcome | None]:
        async with limit, recovering_service(make_settings) as (service, new_settings):
            # Its own background tasks must not complete the order before it crashes.
            process = OrdersProcess(new_settings(recovery=IDLE), tmp_path_factory.mktemp(point))
            try:
                return point, await crash(point, process, service, catalogue, stock, topic, cancel=point in CANCELLED)
            finally:
                await process.close()

    points = ["orders.before-intent", *sorted(REJECTED | CONFIRMED | CANCELLED)]
    return dict(await asyncio.gather(*(crash_at(point) for point in points)))


def test_a_crash_before_the_intent_leaves_nothing(outcomes: dict[str, Outcome | None]) -> None:
    assert outcomes["orders.before-intent"] is None


@pytest.mark.parametrize("point", sorted(REJECTED))
def test_a_crash_before_the_confirmation_ends_in_rejection_and_release(
    outcomes: dict[str, Outcome | None], point: str
) -> None:
    outcome = outcomes[point]
    assert outcome is not None
    assert (outcome.status, outcome.available, outcome.events) == ("rejected", 5, [])
    assert outcome.reservation is not None
    assert outcome.reservation[0] == "cancelled"


@pytest.mark.parametrize("point", sorted(CONFIRMED))
def test_a_crash_after_the_confirmation_loses_neither_order_nor_event(
    outcomes: dict[str, Outcome | None], point: str
) -> None:
    outcome = outcomes[point]
    assert outcome is not None
    assert (outcome.status, outcome.available) == ("confirmed", 3)
    assert outcome.reservation is not None
    assert outcome.reservation[0] == "reserved"
    # Published at least once; duplicates have the same id.
    assert len(set(outcome.events)) == 1
    assert outcome.events[0][0] == "order.created"
    if point != "orders.after-publish":
        assert len(outcome.events) == 1


@pytest.mark.parametrize("point", sorted(CANCELLED))
def test_a_crash_during_a_cancellation_releases_the_stock_once(outcomes: dict[str, Outcome | None], point: str) -> None:
    outcome = outcomes[point]
    assert outcome is not None
    assert (outcome.status, outcome.available) == ("cancelled", 5)
    assert outcome.reservation is not None
    assert outcome.reservation[0] == "cancelled"
    assert list(dict.fromkeys(event_type for event_type, _ in outcome.events)) == ["order.created", "order.cancelled"]
    assert len(set(outcome.events)) == 2


async def test_a_rejection_for_a_shortage_survives_a_crash_before_its_release(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path: Path,
) -> None:
    async with recovering_service(make_settings) as (service, new_settings):
        process = OrdersProcess(new_settings(recovery=IDLE), tmp_path)
        lamp, user = catalogue.add(), f"short {uuid4()}"
        await stock.set(lamp, 1)
        try:
            process.start()
            await process.ready()
            process.arm("orders.after-reject-status")
            with pytest.raises(httpx.TransportError):
                await process.place([(lamp, 2)], user=user)
            await process.exited()
        finally:
            await process.close()
        stored = await service.documents.find_one({"user": user})
        assert stored is not None
        outcome = await wait_for_outcome(service, topic, str(stored["_id"]), stock, lamp)
        assert (outcome.status, outcome.available, outcome.events) == ("rejected", 1, [])
        assert outcome.document["reason"] == "out-of-stock"


async def test_a_crashed_recovery_is_continued_by_another_instance(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    documents: Any,
    tmp_path: Path,
) -> None:
    new_settings = await on_new_database(make_settings)
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    process = OrdersProcess(new_settings(recovery=NOTHING_OVERDUE), tmp_path)
    try:
        process.arm("orders.after-reserve", "fail")
        process.arm("orders.recovery-before-reject")
        process.start()
        await process.ready()
        response = await process.place([(lamp, 2)])
        assert response.status_code == 503
        order_id = response.json()["order_id"]
        assert await stock.available(lamp) == 3
        own_documents = documents.database.client[process.config["mongodb"]["database"]].orders
        await make_overdue(own_documents, {"_id": UUID(order_id)})
        await process.exited()
        async with serving(new_settings()) as service:
            outcome = await wait_for_outcome(service, topic, order_id, stock, lamp)
    finally:
        await process.close()
    assert (outcome.status, outcome.available) == ("rejected", 5)


async def test_events_leased_by_a_crashed_relay_are_published_by_another_instance(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    documents: Any,
    tmp_path: Path,
) -> None:
    new_settings = await on_new_database(make_settings)
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    process = OrdersProcess(new_settings(recovery=NOTHING_OVERDUE), tmp_path)
    try:
        # The request's handler fails to publish the event, and the process's own relay leases it.
        process.arm("orders.before-publish", "fail")
        process.arm("orders.relay-after-lease")
        process.start()
        await process.ready()
        response = await process.place([(lamp, 2)])
        assert response.status_code == 201
        order_id = response.json()["id"]
        await until(lambda: process.reached("orders.before-publish"), what="event not published by the handler")
        own_documents = documents.database.client[process.config["mongodb"]["database"]].orders
        await make_overdue(own_documents, {"_id": UUID(order_id)})
        await process.exited()
        assert process.reached("orders.relay-after-lease")
    finally:
        await process.close()
    async with serving(new_settings(), background=False) as idle:
        stored = await idle.documents.find_one({"_id": UUID(order_id)})
        assert stored is not None
        assert stored["claimed_by"] not in (None, idle.deps.orders.instance_id)
        assert topic.messages_of(order_id) == []
    async with serving(new_settings()) as service:
        outcome = await wait_for_outcome(service, topic, order_id, stock, lamp)
    event_types = [event_type for event_type, _ in outcome.events]
    assert (outcome.status, outcome.available, event_types) == ("confirmed", 3, ["order.created"])
    assert {"unsent_since", "claimed_by", "claimed_at"} & outcome.document.keys() == set()


def test_every_failure_point_is_known() -> None:
    background = {"orders.recovery-before-reject", "orders.relay-after-lease"}
    tested = REJECTED | CONFIRMED | CANCELLED | background | {"orders.before-intent", "orders.after-reject-status"}
    # This one is tested in test_interleavings_of_cancellation.py.
    assert set(FAILURE_POINTS) - tested == {"orders.before-cancel-status"}
