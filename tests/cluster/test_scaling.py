"""The autoscaler follows the load, and the disruption budget delays an eviction until another pod is ready."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.cluster import books, cluster
from tests.cluster.conftest import Report
from tests.cluster.load import Load


@dataclass
class Autoscalers:
    """What the autoscalers measured and wanted: the highest value of each since the first `look`."""

    used: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)

    def look(self) -> list[dict[str, Any]]:
        autoscalers = cluster.get("hpa")["items"]
        for hpa in autoscalers:
            name, status = hpa["metadata"]["name"], hpa["status"]
            current = (status.get("currentMetrics") or [{}])[0].get("resource", {}).get("current", {})
            self.used[name] = max(self.used.get(name, 0), current.get("averageUtilization", 0))
            self.wanted[name] = max(self.wanted.get(name, 0), status.get("desiredReplicas", 0))
        return list(autoscalers)


async def test_the_autoscalers_follow_180_requests_per_second_and_back(
    shop: str, products: list[str], report: Report
) -> None:
    autoscalers = cluster.get("hpa")["items"]
    minimums = {hpa["spec"]["scaleTargetRef"]["name"]: hpa["spec"]["minReplicas"] for hpa in autoscalers}
    if not any(c["type"] == "ScalingActive" and c["status"] == "True" for c in autoscalers[0]["status"]["conditions"]):
        pytest.skip("no metrics in this cluster")

    def pods() -> dict[str, int]:
        deployments = {d["metadata"]["name"]: d["status"] for d in cluster.get("deployments")["items"]}
        return {name: int(deployments[name].get("readyReplicas", 0)) for name in minimums}

    seen = Autoscalers()

    def have_more() -> bool:
        seen.look()
        return bool(sum(pods().values()) > sum(minimums.values()))

    cluster.seconds_until("all services have their minimum", lambda: pods() == minimums, 420)
    async with Load(shop, products, factor=12) as load:
        try:
            up = await asyncio.to_thread(cluster.seconds_until, "a service has more pods", have_more, 240)
        except AssertionError as e:
            # On a busy machine neither the load nor the shop may get enough of the processors to exceed a target.
            sent = round(load.requests / load.now())
            raise AssertionError(
                f"{e}; of their CPU requests, the pods used {seen.used} percent at most, by {sent} requests/s; the "
                f"autoscalers wanted {seen.wanted} pods"
            ) from None
        # The next steps up.
        await asyncio.sleep(60)
        most = await asyncio.to_thread(pods)
        await asyncio.to_thread(seen.look)
    down = await asyncio.to_thread(
        cluster.seconds_until, "all services have their minimum again", lambda: pods() == minimums, 600
    )
    report["autoscalers at 180 requests/s"] = {
        "up after": round(up, 1),
        "pods after another minute": most,
        "percent of the CPU request": seen.used,
        "failed": len(load.failures),
        "of": load.requests,
        "down after": round(down, 1),
    }


# Targets that 30 requests per second exceed, in millicores per pod: a page costs less than the other requests.
TARGETS = {
    "product-service": 8,
    "order-service": 8,
    "inventory-service": 6,
    "graphql-service": 5,
    "storefront-service": 3,
}
SCALED = tuple(TARGETS)
# Prints the requests that a pod has handled, without those of probes.
HANDLED = """
import urllib.request
text = urllib.request.urlopen("http://localhost:9090/metrics").read().decode()
counters = ("market_http_requests_total{", "market_grpc_requests_total{")
lines = [line for line in text.splitlines() if line.startswith(counters) and "Health" not in line]
print(sum(float(line.rsplit(" ", 1)[1]) for line in lines))
"""


def have_two_pods() -> bool:
    pods = {name: cluster.get("pods", "-l", f"app.kubernetes.io/name={name}")["items"] for name in SCALED}
    return all(len(found) == 2 for found in pods.values())


@pytest.fixture
def eager_autoscalers(shop: str) -> Iterator[None]:
    """Autoscalers at two pods each, whose targets this load exceeds, while the nodes have room for more pods."""
    for name in SCALED:
        # What an earlier load has added leaves at once.
        bounds = {"minReplicas": 2, "maxReplicas": 2, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
        cluster.kubectl("patch", "hpa", name, "--type=merge", "-p", json.dumps({"spec": bounds}))
    cluster.seconds_until("all have two pods", have_two_pods, 300)
    for name in SCALED:
        target = {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": f"{TARGETS[name]}m"}},
        }
        behavior = {
            "scaleDown": {
                "stabilizationWindowSeconds": 15,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}],
            }
        }
        patch = {"spec": {"maxReplicas": 4, "metrics": [target], "behavior": behavior}}
        cluster.kubectl("patch", "hpa", name, "--type=merge", "-p", json.dumps(patch))
    yield
    cluster.deploy()
    cluster.wait_until_all_are_ready()


async def test_pods_that_the_autoscalers_add_and_remove_fail_no_request(
    shop: str, products: list[str], report: Report, eager_autoscalers: None
) -> None:
    before = {name: set(cluster.names(name)) for name in SCALED}

    def ready(name: str) -> set[str]:
        return {p["metadata"]["name"] for p in cluster.pods(name) if cluster.is_ready(p)}

    def handled(pod: str) -> float:
        return float(cluster.kubectl("exec", pod, "-c", "service", "--", "python", "-c", HANDLED))

    def all_have_more_pods_with_requests() -> bool:
        added = {name: ready(name) - before[name] for name in SCALED}
        return all(any(handled(pod) > 0 for pod in pods) for pods in added.values()) and all(added.values())

    def relax() -> None:
        """Give the autoscalers back a target that the load does not reach."""
        for name in SCALED:
            patch = [{"op": "replace", "path": "/spec/metrics/0/resource/target/averageValue", "value": "2"}]
            cluster.kubectl("patch", "hpa", name, "--type=json", "-p", json.dumps(patch))

    async with Load(shop, products, factor=2) as load:
        up = await asyncio.to_thread(
            cluster.seconds_until, "new pods of all services handle requests", all_have_more_pods_with_requests, 300
        )
        most = {name: len(await asyncio.to_thread(ready, name)) for name in SCALED}
        await asyncio.to_thread(relax)
        down = await asyncio.to_thread(cluster.seconds_until, "all have two pods again", have_two_pods, 600)
    audit = await load.audit()
    report["autoscalers with targets that 30 requests/s exceed"] = {
        "new pods handle requests after": round(up, 1),
        "pods": most,
        "back at two pods after": round(down, 1),
        "failed": len(load.failures),
        "of": load.requests,
        "lost": audit.lost,
    }
    print(*map(str, load.failures[:20]), sep="\n")
    assert load.failures == []
    assert (audit.lost, audit.duplicated) == (0, 0)


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

    seconds = await asyncio.to_thread(
        cluster.seconds_until, "every order is mailed", lambda: len(set(books.mails_to(email))) >= len(orders), 60
    )
    found = books.mails_to(email)
    report["notifications scaled 2 to 4 and back, twice"] = {
        "orders": len(orders),
        "mails": len(found),
        "mailed after": round(seconds, 1),
    }
    assert len(found) == len(set(found)) == len(orders)
