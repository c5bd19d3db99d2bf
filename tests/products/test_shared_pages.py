"""Requests for the same page share its reads, and are admitted by the number of products that are read for them."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY

from market.products.config import ReadAdmission
from tests.products.conftest import FakeInventory, Start, serving
from tests.support.waiting import until


def _admitted() -> float:
    return REGISTRY.get_sample_value("market_admission_admitted_total", {"size": "small"}) or 0


async def test_a_request_that_shares_a_read_does_not_wait_for_its_own(start: Start, inventory: FakeInventory) -> None:
    # Enough for the read in flight, the next one, and nine requests that share it; a fourth read would have to wait.
    limits = ReadAdmission(max_small_weight=2 * 20 + 9)
    async with serving(inventory) as port, start(port, admission=limits) as products:
        await products.create()
        await products.redis.flushall()
        gate = inventory.gate = asyncio.Event()
        first = asyncio.create_task(products.http.get("/api/product"))
        await until(lambda: bool(inventory.checks))
        admitted = _admitted()

        others = [asyncio.create_task(products.http.get("/api/product")) for _ in range(10)]
        await until(lambda: _admitted() == admitted + 10)

        gate.set()
        responses = await asyncio.gather(first, *others)
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1


async def test_requests_for_different_pages_wait_for_each_other(start: Start, inventory: FakeInventory) -> None:
    limits = ReadAdmission(max_small_weight=20)
    async with serving(inventory) as port, start(port, admission=limits) as products:
        await products.create()
        await products.redis.flushall()
        gate = inventory.gate = asyncio.Event()
        first = asyncio.create_task(products.http.get("/api/product"))
        await until(lambda: bool(inventory.checks))
        admitted = _admitted()

        other = asyncio.create_task(products.http.get("/api/product?sort=price"))
        waiting = {"size": "small"}
        await until(lambda: REGISTRY.get_sample_value("market_admission_waiting_weight", waiting) == 20)
        assert _admitted() == admitted

        gate.set()
        assert [r.status_code for r in await asyncio.gather(first, other)] == [200, 200]
