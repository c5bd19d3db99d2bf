"""What the interleavings are made of: pods whose steps a test holds up, and a recovery that comes when it is told
to."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from bson import Timestamp

from market.kit.faults import Faults
from market.kit.process.lifecycle import Process
from market.orders import service as use_cases
from tests.support.waiting import PATIENCE, until

from .parts import Service, serving

# Only whom the test tells to recovers and relays.
CALM = {"after_seconds": 600, "interval_seconds": 600, "lease_seconds": 600, "relay_interval_seconds": 600}
# The loops come by, and nothing is overdue before a test makes it so: not even where the machine stands still for a
# moment.
UNHURRIED = {"after_seconds": 600, "lease_seconds": 600}


class Gate:
    """A failure point at which whoever comes first stands until the test opens it."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def stand(self) -> None:
        self._reached.set()
        await self._opened.wait()


class Gates(Faults):
    """Failure points that can be held as well: a pause of so many seconds says nothing of what others do meanwhile."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory)
        self._gates: dict[str, Gate] = {}

    def hold(self, name: str) -> Gate:
        self._gates[name] = gate = Gate()
        return gate

    async def reach(self, name: str) -> None:
        if gate := self._gates.pop(name, None):
            await gate.stand()
        else:
            await super().reach(name)


def hold(service: Service, point: str) -> Gate:
    """The next who comes to the point in this pod stands there."""
    assert isinstance(service.process.faults, Gates)
    return service.process.faults.hold(point)


async def together(gates: Sequence[Gate]) -> None:
    """All of them go on once all of them stand there."""
    for gate in gates:
        await gate.reached()
    for gate in gates:
        gate.open()


@asynccontextmanager
async def pod(given: dict[str, Any], points: Path, *, loops: bool = False) -> AsyncIterator[Service]:
    """A service whose failure points are armed in a folder of its own, or held."""
    async with serving(given, process=Process(faults=Gates(points)), loops=loops) as made:
        yield made


async def overdue(orders: Any, where: dict[str, Any]) -> None:
    """Time goes by for these orders: they are pending for ever, and the claims on their events have run out."""
    for claimed_or_pending, past in (
        ({"status": "pending"}, {"since": Timestamp(1, 1)}),
        ({"claimed_at": {"$exists": True}}, {"claimed_at": datetime(2000, 1, 1, tzinfo=UTC)}),
    ):
        done = orders.update_many({**where, **claimed_or_pending}, {"$set": past})
        if inspect.isawaitable(done):
            await done


async def document(service: Service, order_id: Any) -> dict[str, Any]:
    assert service.deps is not None
    found = await service.deps.orders.collection.documents.find_one({"_id": UUID(str(order_id))})
    assert found is not None
    return dict(found)


async def intent(service: Service, user: str) -> dict[str, Any]:
    """The user's order, once it is stored."""
    assert service.deps is not None
    collection = service.deps.orders.collection.documents
    return dict(await until(lambda: collection.find_one({"user": user}), PATIENCE, "intent"))


async def recover_now(service: Service) -> bool:
    """One look of the recovery loop, to which everything that is pending or due is overdue: its clock counts whole
    seconds."""
    assert service.deps is not None
    return await use_cases.recover(service.deps, after_seconds=-2, retry_seconds=-2)
