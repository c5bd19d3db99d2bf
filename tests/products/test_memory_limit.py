"""Hostile clients of all kinds at once, on a process that may have no more memory than its pod in Kubernetes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx
import msgspec
import pytest

from benchmarks.hostile.clients import Targets, attacking
from benchmarks.memory_limits import MIB
from market.kit.config import GrpcUpstream, Http, Listen, Postgres
from market.products.config import Config, Redis
from tests.products.conftest import LAMP, FakeInventory, serving
from tests.support.memory import assert_unharmed, hostile_kinds, memory_limit
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.servers import UriHandle

SECONDS = 20
HOSTILE_ADDRESS = "127.0.0.9"


async def honest(http: httpx.AsyncClient, product_id: str, end: float) -> Counter[int]:
    """Read and create products; return the number of responses by status."""
    statuses: Counter[int] = Counter()
    while time.monotonic() < end:
        for response in (
            await http.get(f"/api/product/{product_id}"),
            await http.post("/api/product", json=LAMP),
            await http.get("/api/product", params={"limit": 20}),
        ):
            statuses[response.status_code] += 1
        await asyncio.sleep(0.1)
    return statuses


@pytest.mark.timeout(300)
async def test_hostile_clients_of_all_kinds_leave_products_below_its_memory_limit(
    migrated_database: Postgres,
    redis_server: UriHandle,
    tmp_path: Path,
) -> None:
    async with serving(FakeInventory()) as inventory_port:
        await check(migrated_database, redis_server, inventory_port, tmp_path)


async def check(database: Postgres, redis_server: UriHandle, inventory_port: int, tmp_path: Path) -> None:
    config = Config(
        admin=Listen(port=free_port()),
        http=Http(port=free_port()),
        postgres=database,
        redis=Redis(url=redis_server.uri),
        inventory=GrpcUpstream(target=f"dns:///127.0.0.1:{inventory_port}"),
        # Longer than in production, so that more requests are in flight.
        request_seconds=30,
    )
    with memory_limit("products") as limit:
        process = ServiceProcess(
            "products", msgspec.to_builtins(config), tmp_path, command=limit.command, env=limit.environment
        )
        process.start()
        try:
            await process.ready()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.http.port}", timeout=120) as http:
                # As wide as the contract allows: 4 MiB for a page of 100.
                wide = {**LAMP, "name": "🜁" * 200, "description": "🜁" * 10_000}
                ids = [(await http.post("/api/product", json=wide)).json()["id"] for _ in range(100)]
                page = await http.get("/api/product", params={"ids": ",".join(ids)})
                assert 3.5 * MIB < len(page.content) < 5 * MIB
                targets = Targets({"products": config.http.port}, ids, ids, HOSTILE_ADDRESS)
                async with attacking(targets, hostile_kinds("products")) as attack:
                    statuses = await honest(http, ids[0], time.monotonic() + SECONDS)
            await assert_unharmed(process, limit, attack, statuses)
        finally:
            process.kill()
