"""The probes: a pod stays ready while a store is unavailable, and is restarted only if the process hangs."""

from __future__ import annotations

import signal
import time
import uuid

import httpx
import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report


def ready_pods(name: str) -> int:
    return sum(map(cluster.is_ready, cluster.pods(name)))


def test_orders_responds_itself_without_mongodb_and_is_never_restarted(shop: str, report: Report) -> None:
    before = {p["metadata"]["name"]: cluster.restarts(p) for p in cluster.pods("order-service")}
    url = f"{shop}/api/order/{uuid.uuid4()}"
    assert httpx.get(url, timeout=60).status_code == 404
    cluster.kubectl("scale", "statefulset/mongodb", "--replicas=0")
    try:
        down = cluster.seconds_until("orders is without MongoDB", lambda: httpx.get(url, timeout=60).status_code == 503)
        # Longer than the liveness probe would need to restart a pod.
        for _ in range(35):
            response = httpx.get(url, timeout=60)
            # The shop's own words, not those of the ingress.
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/problem+json"
            assert int(response.headers["retry-after"]) > 0
            time.sleep(1)
        assert ready_pods("order-service") == len(before)
    finally:
        cluster.kubectl("scale", "statefulset/mongodb", "--replicas=1")
    cluster.wait_for_rollout("mongodb", "statefulset")
    up = cluster.seconds_until("orders is available", lambda: httpx.get(url, timeout=60).status_code == 404)
    assert {p["metadata"]["name"]: cluster.restarts(p) for p in cluster.pods("order-service")} == before
    report["MongoDB stopped"] = {"503 after": round(down, 1), "available after MongoDB": round(up, 1), "restarts": 0}


@pytest.mark.parametrize("name", ["product-service", "notification-service"])
def test_a_hanging_service_is_restarted(shop: str, report: Report, name: str) -> None:
    victim = cluster.pods(name)[0]
    before = cluster.restarts(victim)
    if not cluster.send_signal(victim, signal.SIGSTOP):
        pytest.skip("the nodes are not on this machine, or we are not root")

    def restarted() -> bool:
        found = [p for p in cluster.pods(name) if p["metadata"]["name"] == victim["metadata"]["name"]]
        return cluster.restarts(found[0]) > before and cluster.is_ready(found[0])

    seconds = cluster.seconds_until("the pod is restarted and ready", restarted, 180)
    report[f"{name} hangs"] = {"restarted and ready after": round(seconds, 1)}
