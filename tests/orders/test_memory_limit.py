"""Hostile clients of all kinds at once, on a process that may have no more memory than its pod in Kubernetes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.hostile import requests
from benchmarks.hostile.clients import Targets, attacking, kinds
from benchmarks.memory_limits import MIB
from market.orders.domain import MAX_LINES
from tests.orders.catalogue import FakeCatalogue
from tests.orders.service import MakeSettings
from tests.orders.stock import Stock
from tests.support.memory import memory_limit
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
            assert process.process is not None
            port = settings["http"]["port"]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                for _ in range(11):
                    placed = await http.post("/api/order", json=order(product_ids, requests.USER))
                    assert placed.status_code == 201, placed.text
                page = await http.get("/api/order", params={"user": requests.USER, "limit": 1000})
                assert 7 * MIB < len(page.content) <= 8 * MIB + 1000
                selected = kinds(pause=0.2)
                # 1,030 connections with one byte of a body, and 100 that do not read 8 MiB.
                selected["one byte of a body"] = replace(selected["one byte of a body"], count=1030)
                unread = selected["large pages not read, orders"]
                selected["large pages not read, orders"] = replace(unread, count=100)
                async with attacking(
                    Targets({"orders": port}, product_ids, address=HOSTILE_ADDRESS), selected
                ) as attack:
                    statuses = await honest(http, product_ids[0], time.monotonic() + SECONDS)
                print(f"\n{limit.report(process.process.pid)}; honest: {dict(statuses)}")
                for name, outcomes in attack.outcomes.items():
                    print(f"  {name}: {dict(outcomes)}")
            assert process.process.poll() is None, process.log[-2000:]
            assert limit.peak(process.process.pid) < 0.95 * limit.limit
            # A busy machine may let some exceed a deadline.
            assert statuses[200] + statuses[201] > 0.8 * statuses.total()
            assert all(outcomes.total() for outcomes in attack.outcomes.values())
            assert not [name for name, outcomes in attack.outcomes.items() if outcomes["500"]], process.log[-3000:]
            assert await process.stop() == 0, process.log[-2000:]
        finally:
            process.kill()
