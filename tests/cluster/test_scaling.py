"""The autoscaler follows the load, and the budget holds up a drain until another pod is ready."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report


async def test_the_autoscaler_scales_products_under_load_and_back(shop: str, report: Report) -> None:
    hpa = cluster.get("hpa", "product-service")
    least = hpa["spec"]["minReplicas"]
    if not any(c["type"] == "ScalingActive" and c["status"] == "True" for c in hpa["status"].get("conditions", [])):
        pytest.skip("no metrics in this cluster")
    stopping = asyncio.Event()

    async def push(session: aiohttp.ClientSession) -> None:
        while not stopping.is_set():
            async with session.get(f"{shop}/api/product?limit=100") as response:
                await response.read()

    def count() -> int:
        return int(cluster.get("deployment", "product-service")["status"].get("readyReplicas", 0))

    def target(cpu: str) -> None:
        metric = (
            f'{{"type": "Resource", "resource": {{"name": "cpu", "target": {{"type": "AverageValue", '
            f'"averageValue": "{cpu}"}}}}}}'
        )
        cluster.kubectl(
            "patch", "hpa", "product-service", "--type=merge", "-p", f'{{"spec": {{"metrics": [{metric}]}}}}'
        )

    # A pod's half core is more than a small machine has for each: the autoscaler is told to look at a tenth.
    await asyncio.to_thread(target, "100m")
    async with aiohttp.ClientSession() as session:
        pushing = [asyncio.create_task(push(session)) for _ in range(24)]
        try:
            up = await asyncio.to_thread(cluster.until, "products has more pods", lambda: count() > least, 180)
            most = count()
        finally:
            stopping.set()
            await asyncio.gather(*pushing, return_exceptions=True)
    down = await asyncio.to_thread(cluster.until, "products is back at its least", lambda: count() == least, 420)
    await asyncio.to_thread(target, hpa["spec"]["metrics"][0]["resource"]["target"]["averageValue"])
    report["autoscaler of product-service"] = {"up after": round(up, 1), "to": most, "back after": round(down, 1)}


def test_the_budget_refuses_a_second_eviction_until_another_pod_is_ready(shop: str, report: Report) -> None:
    cluster.all_ready()
    name = "order-service"

    def evict(pod: str) -> str:
        body = (
            f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}", "namespace": "market"}}}}'
        )
        path = f"/api/v1/namespaces/market/pods/{pod}/eviction"
        return cluster.run("kubectl", "create", "--raw", path, "-f", "-", check=False, stdin=body).stderr

    first, second = cluster.names(name)[:2]
    assert evict(first) == ""
    assert "disruption budget" in evict(second)
    began = time.monotonic()
    cluster.seconds_until("the budget lets the second go", lambda: evict(second) == "")
    report["budget of order-service"] = {"held the second eviction up for": round(time.monotonic() - began, 1)}
    # It let go only after the first pod's successor was ready.
    assert any(cluster.is_ready(p) for p in cluster.pods(name) if p["metadata"]["name"] not in (first, second))
    cluster.all_ready()
