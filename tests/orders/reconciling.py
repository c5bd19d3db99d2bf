"""What the tests of reconciliation share: a service that nobody heals, and a reconciliation asked for from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from market.orders import app as orders_app
from market.orders.config import Config
from market.orders.reconciliation import command
from tests.support.waiting import PATIENCE

from .parts import Service, serving

# Ids are looked at after a second; what the loops should have done counts as late after 3.3 s.
RECOVERY = {"after_seconds": 1, "interval_seconds": 0.1}
LATE_SECONDS = 3.6


@asynccontextmanager
async def unattended(settings: dict[str, Any], postgres: Any) -> AsyncIterator[Service]:
    """A service on a fresh database, whose loops never come by; inventory holds nothing for others."""
    tables = await asyncpg.connect(postgres.uri("inventory"))
    await tables.execute("TRUNCATE reservations")
    await tables.close()
    assert await orders_app.migrate(msgspec.convert(settings, Config), []) == 0
    async with serving(settings, loops=False) as made:
        yield made


class Found:
    def __init__(self, lines: list[Any]) -> None:
        self.summary = lines[-1]
        assert [line["kind"] for line in lines].count("summary") == 1
        self.all = [line for line in lines if line["kind"] == "difference"]
        self.progress = [line for line in lines if line["kind"] == "progress"]

    def __repr__(self) -> str:
        return f"{self.all} {self.summary}"

    @property
    def counts(self) -> tuple[int, int, bool]:
        """Of the summary: differences, repaired, complete."""
        return self.summary["differences"], self.summary["repaired"], self.summary["complete"]

    def of(self, id: str) -> list[tuple[str, bool | None]]:
        return [(d["difference"], d["repaired"]) for d in self.all if d["id"] == id]


async def reconcile(service: Service, *, repair: int = 0, topic: int = 0) -> Found:
    """Return what the command prints with --json. Start again if a store was unavailable before anything was found."""
    found = await _reconcile(service, repair, topic)
    end = asyncio.get_running_loop().time() + PATIENCE
    while not found.summary["complete"] and not found.all and asyncio.get_running_loop().time() < end:
        found = await _reconcile(service, repair, topic)
    return found


async def _reconcile(service: Service, repair: int, topic: int) -> Found:
    assert service.deps is not None
    lines = command.lines(service.deps, service.config, repair=bool(repair), topic=bool(topic))
    return Found([msgspec.json.decode(msgspec.json.encode(line)) async for line in lines])


def collection(service: Service) -> Any:
    assert service.deps is not None
    return service.deps.orders.collection.documents


async def sent(service: Service, id: str) -> bool:
    """Whether the order's events are all acknowledged and cleared."""
    return "outbox" not in await collection(service).find_one({"_id": UUID(id)})
