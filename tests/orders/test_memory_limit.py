"""Hostile clients of all kinds at once, on a process that may have no more memory than its pod in Kubernetes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.hostile import requests
from benchmarks.hostile.clients import Targets, attacking
from benchmarks.memory_limits import MIB
from market.orders.domain import MAX_LINES
from tests.orders.catalogue import FakeCatalogue
from tests.orders.service import MakeSettings
from tests.orders.stock import Stock
from tests.support.memory import assert_unharmed, hostile_kinds, memory_limit
from tests.support.processes import ServiceProcess

SECONDS = 20
# A customer who is not hostile, and an address of the hostile ones.
USER, HOSTILE_ADDRESS = "honest", "127.0.0.9"


def order(product_ids: list[str], user: str) -> dict[str, Any]:
    return {"user": user, "items": [{"product_id": product_id, "quantity": 1} for product_id in product_ids]}


async def honest(http: httpx.AsyncClient, product_id: str, end: float) -> Counter[int]:
    """Place small orders and list them; return the number of responses by status."""
    statuses: Counter[int] = Counter()
    while time.monotonic() < end:
        for response in (
            await http.post("/api/order", json=order([product_id], USER)),
            await http.get("/api/order", params={"user": USER, "limit": 10}),
        ):
            statuses[response.status_code] += 1
        await asyncio.sleep(0.1)
    return statuses


@pytest.mark.timeout(300)
async def test_hostile_clients_of_all_kinds_leave_orders_below_its_memory_limit(
    isolated_settings: MakeSettings, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    # As wide as the contract allows: 0.8 MiB for an order of 1,000 lines, and 8 MiB for a page of ten of them.
    product_ids = [catalogue.add(name="🜁" * 200) for _ in range(MAX_LINES)]
    await asyncio.gather(*(stock.set(product_id, 1_000_000) for product_id in product_ids))
    settings = isolated_settings()
    with memory_limit("orders") as limit:
        process = ServiceProcess("orders", settings, tmp_path, command=limit.command, env=limit.environment)
        process.start()
        try:
            await process.ready()
            port = settings["http"]["port"]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                for _ in range(11):
                    placed = await http.post("/api/order", json=order(product_ids, requests.USER))
                    assert placed.status_code == 201, placed.text
                page = await http.get("/api/order", params={"user": requests.USER, "limit": 1000})
                assert 7 * MIB < len(page.content) <= 8 * MIB + 1000
                targets = Targets({"orders": port}, product_ids, address=HOSTILE_ADDRESS)
                async with attacking(targets, hostile_kinds("orders")) as attack:
                    statuses = await honest(http, product_ids[0], time.monotonic() + SECONDS)
            await assert_unharmed(process, limit, attack, statuses)
        finally:
            process.kill()
