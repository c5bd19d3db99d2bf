"""What the interleavings are made of: pods whose steps a test holds up, and a recovery that comes when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from market.kit.faults import Faults
from market.kit.lifecycle import Process
from market.orders import service as use_cases

from .parts import Service, serving, until

# Only whom the test tells to recovers and relays.
CALM = {"after_seconds": 600, "interval_seconds": 600, "relay_interval_seconds": 600}


@asynccontextmanager
async def pod(given: dict[str, Any], points: Path, *, loops: bool = False) -> AsyncIterator[Service]:
    """A service whose failure points are armed in a folder of its own."""
    points.mkdir(parents=True, exist_ok=True)
    async with serving(given, process=Process(faults=Faults(points)), loops=loops) as made:
        yield made


async def document(service: Service, order_id: Any) -> dict[str, Any]:
    assert service.shop is not None
    found = await service.shop.store._orders.find_one({"_id": UUID(str(order_id))})
    assert found is not None
    return dict(found)


async def intent(service: Service, user: str) -> dict[str, Any]:
    """The user's order, once it is stored."""
    assert service.shop is not None
    collection = service.shop.store._orders
    return dict(await until(lambda: collection.find_one({"user": user}), 10, "intent"))


async def recover_now(service: Service) -> bool:
    """One look of the recovery loop, to which everything that is pending or due is overdue: its clock counts whole seconds."""
    assert service.shop is not None
    return await use_cases.recover(service.shop, after_seconds=-2, retry_seconds=-2)
