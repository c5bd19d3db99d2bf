"""The autoscaler follows the load, and the disruption budget delays an eviction until another pod is ready."""

from __future__ import annotations

import asyncio
import time
import uuid

import aiohttp
import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.test_a_deploy import call


async def test_the_autoscaler_scales_products_under_load_and_back(shop: str, report: Report) -> None:
    hpa = cluster.get("hpa", "product-service")
    minimum = hpa["spec"]["minReplicas"]
    if not any(c["type"] == "ScalingActive" and c["status"] == "True" for c in hpa["status"].get("conditions", [])):
        pytest.skip("no metrics in this cluster")
    stopping = asyncio.Event()

    async def read_lists(session: aiohttp.ClientSession) -> None:
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

    # A small machine has less than half a core per pod, so the target is lowered to a tenth of a core.
    await asyncio.to_thread(target, "100m")
    async with aiohttp.ClientSession() as session:
        readers = [asyncio.create_task(read_lists(session)) for _ in range(24)]
        try:
            up = await asyncio.to_thread(
                cluster.seconds_until, "products has more pods", lambda: count() > minimum, 180
            )
            maximum = count()
        finally:
            stopping.set()
            await asyncio.gather(*readers, return_exceptions=True)
    down = await asyncio.to_thread(
        cluster.seconds_until, "products has its minimum number of pods again", lambda: count() == minimum, 420
    )
    await asyncio.to_thread(target, hpa["spec"]["metrics"][0]["resource"]["target"]["averageValue"])
    report["autoscaler of product-service"] = {"up after": round(up, 1), "to": maximum, "down after": round(down, 1)}


def test_the_disruption_budget_refuses_a_second_eviction_until_another_pod_is_ready(shop: str, report: Report) -> None:
    cluster.wait_until_all_are_ready()
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
    started = time.monotonic()
    cluster.seconds_until("the budget allows the second eviction", lambda: evict(second) == "")
    report["budget of order-service"] = {"delayed the second eviction for": round(time.monotonic() - started, 1)}
    # It did so only after the first pod's replacement was ready.
    assert any(cluster.is_ready(p) for p in cluster.pods(name) if p["metadata"]["name"] not in (first, second))
    cluster.wait_until_all_are_ready()


async def test_notifications_scaled_up_and_back_mails_every_order_once(
    shop: str, products: list[str], report: Report
) -> None:
    """Each change of the number of consumers moves partitions; those that return to a pod must be read on."""
    name, email = "notification-service", f"scaled-{uuid.uuid4().hex}@example.test"
    stopping, orders = asyncio.Event(), []
    body = {"user": "scaled", "email": email, "items": [{"product_id": products[0], "quantity": 1}]}

    async def place_orders() -> None:
        async with aiohttp.ClientSession() as session:
            while not stopping.is_set():
                async with session.post(f"{shop}/api/order", json=body) as response:
                    assert response.status == 201
                    orders.append((await response.json())["id"])
                await asyncio.sleep(0.2)

    def scale(replicas: int) -> None:
        cluster.kubectl("scale", f"deployment/{name}", f"--replicas={replicas}")
        selector = f"app.kubernetes.io/name={name}"
        cluster.seconds_until(
            f"notifications has {replicas} pods",
            lambda: [cluster.is_ready(p) for p in cluster.get("pods", "-l", selector)["items"]] == [True] * replicas,
            180,
        )

    placing = asyncio.create_task(place_orders())
    try:
        for replicas in (4, 2, 4, 2):
            await asyncio.to_thread(scale, replicas)
            await asyncio.sleep(5)
    finally:
        stopping.set()
        await placing

    def mails() -> list[str]:
        found: list[str] = []
        with cluster.forwarded("service/mail", 8025, 28026) as mail:
            while page := call(f"{mail}/api/messages?to={email}&limit=500&offset={len(found)}")["items"]:
                found += [item["message_id"] for item in page]
        return found

    seconds = await asyncio.to_thread(
        cluster.seconds_until, "every order is mailed", lambda: len(set(mails())) >= len(orders), 60
    )
    found = mails()
    report["notifications scaled 2 to 4 and back, twice"] = {
        "orders": len(orders),
        "mails": len(found),
        "mailed after": round(seconds, 1),
    }
    assert len(found) == len(set(found)) == len(orders)
