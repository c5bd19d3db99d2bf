"""Run reconciliation on an instance without background tasks, so that differences stay until they are repaired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from market.contracts import events
from market.kit.ids import new_id
from market.orders.domain import OutboxEntry
from market.orders.reconciliation import command
from market.orders.reconciliation.differences import CAUSES, DifferenceType
from tests.support.waiting import PATIENCE, until

from .service import Service, Settings, get_document, is_release_recorded, migrate, serving
from .topic import Topic

# Orders older than a second are compared; work that background tasks should have done is overdue after 3.3 s.
RECOVERY = {"reject_after_seconds": 1, "interval_seconds": 0.1}
OVERDUE_SECONDS = 3.6


@asynccontextmanager
async def isolated_service(settings: Settings, postgres: Any) -> AsyncIterator[Service]:
    """Run orders without background tasks on its own new database; inventory holds no other reservations."""
    connection = await asyncpg.connect(postgres.uri("inventory"))
    await connection.execute("TRUNCATE reservations")
    await connection.close()
    await migrate(settings)
    async with serving(settings, background=False) as service:
        yield service


class Report:
    """What one run of reconciliation printed."""

    def __init__(self, lines: list[Any]) -> None:
        self.summary = lines[-1]
        assert [line["kind"] for line in lines].count("summary") == 1
        self.differences = [line for line in lines if line["kind"] == "difference"]
        self.progress = [line for line in lines if line["kind"] == "progress"]

    def __repr__(self) -> str:
        return f"{self.differences} {self.summary}"

    @property
    def counts(self) -> tuple[int, int, bool]:
        """Of the summary: differences, repaired, complete."""
        return self.summary["differences"], self.summary["repaired"], self.summary["complete"]

    def differences_of(self, order_id: str) -> list[tuple[str, bool | None]]:
        """Return (difference, repaired) for each difference with this id."""
        return [(d["difference"], d["repaired"]) for d in self.differences if d["id"] == order_id]


async def reconcile(service: Service, *, repair: bool = False, topic: bool = False) -> Report:
    """Return what the command prints with --json. Start again if a store was unavailable before anything was found."""
    report = await _reconcile(service, repair, topic)
    end = asyncio.get_running_loop().time() + PATIENCE
    while not report.summary["complete"] and not report.differences and asyncio.get_running_loop().time() < end:
        report = await _reconcile(service, repair, topic)
    return report


async def _reconcile(service: Service, repair: bool, topic: bool) -> Report:
    records = command.records(service.deps, service.config, repair=repair, topic=topic)
    return Report([msgspec.json.decode(msgspec.json.encode(record)) async for record in records])


async def is_published(service: Service, order_id: str) -> bool:
    """Return whether all events of the order are acknowledged and removed from its outbox."""
    return "outbox" not in await service.documents.find_one({"_id": UUID(order_id)})


async def exit_status(service: Service, *options: str) -> int:
    """Return the exit status of `python -m market.orders reconcile`; repeat it while it could not complete (2)."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while (status := await command.run(service.config, list(options))) == 2 and asyncio.get_running_loop().time() < end:
        pass
    return status


async def place_and_publish(service: Service, product_id: str, topic: Topic, *, cancelled: bool = False) -> str:
    """Place an order for two units, wait until its events are in the topic, and return its id."""
    response = await service.place([(product_id, 2)])
    assert response.status_code == 201
    order_id = str(response.json()["id"])
    types = [events.CREATED]
    if cancelled:
        assert (await service.http.delete(f"/api/order/{order_id}")).status_code == 204
        await until(lambda: is_release_recorded(service, order_id), what="release is recorded")
        types.append(events.CANCELLED)
    await topic.wait_for(order_id, *types)
    await until(lambda: is_published(service, order_id), what="published")
    return order_id


async def copy_order(service: Service, order_id: str) -> str:
    """Copy the order to a new id, which has no events in the topic, and return that id."""
    copy_id = new_id()
    document = await get_document(service, order_id)
    await service.documents.insert_one({**document, "_id": copy_id})
    return str(copy_id)


async def publish(service: Service, topic: Topic, order_id: str, *types: str) -> None:
    """Publish events of these types for the order, one after another."""
    for event_type in types:
        entry = OutboxEntry(events.event_id(UUID(order_id), event_type), event_type, service.deps.clock())
        assert await service.deps.relay.outbox.requeue(UUID(order_id), entry, service.deps.clock())
        await service.deps.relay.run_once()
        await topic.wait_for(order_id, event_type)
        await until(lambda: is_published(service, order_id), what="published")


def difference(kind: DifferenceType, subject_id: str, detail: str, repaired: bool | None = None) -> dict[str, Any]:
    """Return the difference as the command prints it with --json."""
    return {
        "kind": "difference",
        "difference": kind.value,
        "id": subject_id,
        "cause": CAUSES[kind],
        "detail": detail,
        "repaired": repaired,
    }


def no_differences(report: Report) -> bool:
    return report.differences == [] and report.counts == (0, 0, True)
