"""A process of the service dies between any two steps of an order's life; another one, whose loops run, makes it
whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from market.orders.domain import POINTS
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .service import IDLE, NOTHING_OVERDUE, MakeSettings, OrdersProcess, Service, make_overdue, migrate, serving
from .stock import Stock
from .topic import Topic

# What must hold afterwards: the status, and how often each event may be in the topic at least.
REJECTED = {
    "orders.after-intent",
    "orders.before-reserve",
    "orders.after-reserve",
    "orders.before-confirm",
}
CONFIRMED = {
    "orders.after-confirm",
    "orders.before-response",
    "orders.before-publish",
    "orders.after-publish",
    "orders.after-clear",
}
CANCELLED = {
    "orders.after-cancel-status",
    "orders.after-release",
    "orders.after-release-cleared",
}


@dataclass
class Whole:
    """An order after the crash and the recovery."""

    status: str | None
    left: int
    reservation: tuple[str, dict[str, int]] | None
    events: list[tuple[str, str]]
    document: dict[str, Any] | None


@asynccontextmanager
async def healing(make_settings: MakeSettings) -> AsyncIterator[tuple[Service, Callable[..., dict[str, Any]]]]:
    """Two services whose loops finish what others left (recovery runs in every pod), and configurations on their database,
    which is nobody else's: the loops of a process that only begins would take up what another one has left.

    They must not take a slow process for a dead one, so what a death leaves is `overdue` only once the test has seen
    it.
    """
    name = f"orders_crash_{uuid4().hex[:8]}"

    def apart(recovery: dict[str, Any]) -> dict[str, Any]:
        return dict(make_settings(database=name, recovery=recovery))

    await migrate(apart(NOTHING_OVERDUE))
    async with serving(apart(NOTHING_OVERDUE)) as first, serving(apart(NOTHING_OVERDUE)):
        yield first, apart


async def settled(healer: Service, topic: Topic, order_id: str, stock: Stock, product: str) -> Whole:
    """The order once nothing is due any more."""
    collection = healer.documents

    async def done() -> Any:
        document = await collection.find_one({"_id": UUID(order_id)})
        owing = {"outbox", "release_due"} & set(document or {})
        return None if document is None or owing or document["status"] == "pending" else document

    document = await until(done, PATIENCE, f"order {order_id} is whole")
    types = ["order.created"] if document.get("confirmed_at") else []
    types += ["order.cancelled"] if types and document["status"] == "cancelled" else []
    found = await topic.wait_for(order_id, *types)
    return Whole(
        document["status"],
        await stock.available(product),
        await stock.reservation(order_id),
        [(e.type, e.id) for e in found],
        document,
    )


async def crash(
    point: str,
    process: OrdersProcess,
    healer: Service,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    *,
    cancel: bool = False,
) -> Whole | None:
    """Five lamps, an order for two, a death at the point; None: no order was stored."""
    lamp, user = catalogue.add(), f"{point} {uuid4()}"
    await stock.set(lamp, 5)
    process.start()
    await process.ready()
    if not cancel:
        process.arm(point)
    # On a busy machine a request may run out of time before it comes to the point: then another is sent.
    async with asyncio.timeout(2 * PATIENCE):
        while not process.reached(point):
            with suppress(httpx.HTTPError):
                response = await process.place([(lamp, 2)], user=user)
                if response.status_code != 201:
                    continue
                if cancel:
                    process.arm(point)
                    # None is left uncancelled when another is placed.
                    while (await process.http.delete(response.headers["location"])).status_code != 204:
                        await asyncio.sleep(0.1)
                else:
                    # It was answered, and what comes after the response is still to come.
                    await until(lambda: process.reached(point), PATIENCE, point)
    await process.exited()
    assert process.reached(point)
    orders = healer.documents
    await make_overdue(orders, {"user": user})
    stored = [document["_id"] async for document in orders.find({"user": user}, {"_id": 1}).sort("created_at", -1)]
    if not stored:
        assert await stock.available(lamp) == 5
        return None
    wholes = [await settled(healer, topic, str(id), stock, lamp) for id in stored]
    # Of several, the one that came furthest is the one that the process died of; the stock left counts all of them.
    furthest = max(wholes, key=lambda whole: bool(whole.document and whole.document.get("confirmed_at")))
    furthest.left = await stock.available(lamp)
    return furthest


@pytest.fixture(scope="module")
async def crashes(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Whole | None]:
    """Every point, a few at a time, and how each order ended."""
    at_once = asyncio.Semaphore(4)

    async def one(point: str) -> tuple[str, Whole | None]:
        async with at_once, healing(make_settings) as (healer, apart):
            # Only the healer recovers.
            process = OrdersProcess(apart(IDLE), tmp_path_factory.mktemp(point))
            try:
                return point, await crash(point, process, healer, catalogue, stock, topic, cancel=point in CANCELLED)
            finally:
                await process.close()

    return dict(
        await asyncio.gather(*(one(p) for p in ["orders.before-intent", *sorted(REJECTED | CONFIRMED | CANCELLED)]))
    )


def test_a_crash_before_the_intent_leaves_nothing(crashes: dict[str, Whole | None]) -> None:
    assert crashes["orders.before-intent"] is None


@pytest.mark.parametrize("point", sorted(REJECTED))
def test_a_crash_before_the_confirmation_ends_in_rejection_and_release(
    crashes: dict[str, Whole | None], point: str
) -> None:
    whole = crashes[point]
    assert whole is not None
    assert (whole.status, whole.left, whole.events) == ("rejected", 5, [])
    assert whole.reservation is not None
    assert whole.reservation[0] == "cancelled"


@pytest.mark.parametrize("point", sorted(CONFIRMED))
def test_a_crash_after_the_confirmation_loses_neither_order_nor_event(
    crashes: dict[str, Whole | None], point: str
) -> None:
    whole = crashes[point]
    assert whole is not None
    assert (whole.status, whole.left) == ("confirmed", 3)
    assert whole.reservation is not None
    assert whole.reservation[0] == "reserved"
    # At least once, and repeats have the same id.
    assert len(set(whole.events)) == 1
    assert whole.events[0][0] == "order.created"
    if point not in ("orders.after-publish",):
        assert len(whole.events) == 1


@pytest.mark.parametrize("point", sorted(CANCELLED))
def test_a_crash_during_a_cancellation_releases_the_stock_once(crashes: dict[str, Whole | None], point: str) -> None:
    whole = crashes[point]
    assert whole is not None
    assert (whole.status, whole.left) == ("cancelled", 5)
    assert whole.reservation is not None
    assert whole.reservation[0] == "cancelled"
    assert list(dict.fromkeys(type for type, _ in whole.events)) == ["order.created", "order.cancelled"]
    assert len(set(whole.events)) == 2


async def test_a_rejection_for_a_shortage_survives_a_crash_before_its_release(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock, topic: Topic, tmp_path: Any
) -> None:
    async with healing(make_settings) as (healer, apart):
        process = OrdersProcess(apart(IDLE), tmp_path)
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
        stored = await healer.documents.find_one({"user": user})
        assert stored is not None
        whole = await settled(healer, topic, str(stored["_id"]), stock, lamp)
        assert (whole.status, whole.left, whole.events) == ("rejected", 1, [])
        assert whole.document is not None
        assert whole.document["reason"] == "out-of-stock"


async def test_a_crashed_recovery_is_continued_by_another_instance(
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path: Any,
    make_settings: MakeSettings,
    documents: Any,
) -> None:
    # A database where nobody else recovers.
    name = f"orders_takeover_{uuid4().hex[:8]}"
    await migrate(make_settings(database=name))
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    first = OrdersProcess(make_settings(database=name, recovery=NOTHING_OVERDUE), tmp_path / "first")
    try:
        first.arm("orders.after-reserve", "fail")
        first.arm("orders.recovery-before-reject")
        first.start()
        await first.ready()
        response = await first.place([(lamp, 2)])
        assert response.status_code == 503
        order_id = response.json()["order_id"]
        assert await stock.available(lamp) == 3
        await make_overdue(documents.database.client[name].orders, {"_id": UUID(order_id)})
        await first.exited()
        async with serving(make_settings(database=name)) as second:
            whole = await settled(second, topic, order_id, stock, lamp)
    finally:
        await first.close()
    assert (whole.status, whole.left) == ("rejected", 5)


async def test_events_leased_by_a_crashed_relay_are_published_by_another_instance(
    make_settings: MakeSettings,
    migrated: None,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    tmp_path: Any,
    documents: Any,
) -> None:
    # A database where nobody else relays.
    name = f"orders_relay_{uuid4().hex[:8]}"
    await migrate(make_settings(database=name))
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    first = OrdersProcess(make_settings(database=name, recovery=NOTHING_OVERDUE), tmp_path / "first")
    try:
        # What the handler leaves unsent its own loop claims.
        first.arm("orders.before-publish", "fail")
        first.arm("orders.relay-after-lease")
        first.start()
        await first.ready()
        response = await first.place([(lamp, 2)])
        assert response.status_code == 201
        order_id = response.json()["id"]
        await until(lambda: first.reached("orders.before-publish"), PATIENCE, "left unsent")
        await make_overdue(documents.database.client[name].orders, {"_id": UUID(order_id)})
        await first.exited()
        assert first.reached("orders.relay-after-lease")
    finally:
        await first.close()
    async with serving(make_settings(database=name), background=False) as idle:
        left = await idle.documents.find_one({"_id": UUID(order_id)})
        assert left is not None
        assert left["claimed_by"] not in (None, idle.deps.orders.instance_id)
        assert topic.messages_of(order_id) == []
    async with serving(make_settings(database=name)) as second:
        whole = await settled(second, topic, order_id, stock, lamp)
    assert (whole.status, whole.left, [type for type, _ in whole.events]) == ("confirmed", 3, ["order.created"])
    assert whole.document is not None
    assert {"unsent_since", "claimed_by", "claimed_at"} & whole.document.keys() == set()


def test_every_failure_point_is_known() -> None:
    loops = {"orders.recovery-before-reject", "orders.relay-after-lease"}
    tried = REJECTED | CONFIRMED | CANCELLED | loops | {"orders.before-intent", "orders.after-reject-status"}
    # Tried in test_interleavings_of_cancelling.py.
    assert set(POINTS) - tried == {"orders.before-cancel-status"}
