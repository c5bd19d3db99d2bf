"""Run reconciliation on an instance without background tasks, so that differences stay until they are repaired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from market.orders.reconciliation import command
from tests.support.waiting import PATIENCE

from .service import Service, Settings, migrate, serving

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
    lines = command.lines(service.deps, service.config, repair=repair, topic=topic)
    return Report([msgspec.json.decode(msgspec.json.encode(line)) async for line in lines])


async def is_published(service: Service, order_id: str) -> bool:
    """Return whether all events of the order are acknowledged and removed from its outbox."""
    return "outbox" not in await service.documents.find_one({"_id": UUID(order_id)})
