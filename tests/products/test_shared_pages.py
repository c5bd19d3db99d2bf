"""Requests for the same page share its reads, and are admitted by the number of products that are read for them."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client import REGISTRY

from market.products.config import ReadAdmission
from tests.products.conftest import FakeInventory, Start, serving
from tests.support.waiting import PATIENCE, until


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


async def test_a_client_that_disconnects_does_not_release_the_weight_of_a_read_that_others_share(
    start: Start, inventory: FakeInventory
) -> None:
    def in_flight() -> float:
        return REGISTRY.get_sample_value("market_admission_in_flight_weight", {"size": "small"}) or 0

    def connections() -> float:
        return REGISTRY.get_sample_value("market_http_connections") or 0

    async with serving(inventory) as port, start(port) as products:
        await products.create()
        await products.redis.flushall()
        gate = inventory.gate = asyncio.Event()
        async with httpx.AsyncClient(base_url=products.http.base_url, timeout=PATIENCE) as leaving:
            first = asyncio.create_task(products.http.get("/api/product"))
            await until(lambda: bool(inventory.checks))
            # It is admitted for the next read, which the third request shares.
            second = asyncio.create_task(leaving.get("/api/product"))
            await until(lambda: in_flight() == 20 + 20)
            third = asyncio.create_task(products.http.get("/api/product"))
            await until(lambda: in_flight() == 20 + 20 + 1)
            connected = connections()
            second.cancel()
            await until(lambda: connections() < connected)
        # Nothing is released a moment later, either.
        await asyncio.sleep(0.05)
        assert in_flight() == 20 + 20 + 1

        gate.set()
        assert [r.status_code for r in await asyncio.gather(first, third)] == [200, 200]
        await until(lambda: in_flight() == 0)


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
