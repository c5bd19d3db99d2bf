"""The probes: unready while the service's own store is unavailable, restarted only if the process hangs."""

from __future__ import annotations

import signal

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report


def ready_pods(name: str) -> int:
    return sum(map(cluster.is_ready, cluster.pods(name)))


def test_orders_is_unready_without_mongodb_and_becomes_ready_automatically(shop: str, report: Report) -> None:
    before = {p["metadata"]["name"]: cluster.restarts(p) for p in cluster.pods("order-service")}
    others = {n: cluster.names(n) for n in cluster.SERVICES if n != "order-service"}
    cluster.kubectl("scale", "statefulset/mongodb", "--replicas=0")
    try:
        down = cluster.seconds_until("orders is unready", lambda: ready_pods("order-service") == 0)
        # Longer than the liveness probe would need to restart a pod.
        cluster.seconds_until("35 s have passed", iter([False] * 70 + [True]).__next__, 60)
        assert ready_pods("order-service") == 0
        # An unready upstream does not matter: the other services stay ready.
        assert {n: cluster.names(n) for n in others} == others
        assert all(ready_pods(n) == len(others[n]) for n in others)
    finally:
        cluster.kubectl("scale", "statefulset/mongodb", "--replicas=1")
    cluster.wait_for_rollout("mongodb", "statefulset")
    up = cluster.seconds_until("orders is ready", lambda: ready_pods("order-service") == len(before))
    assert {p["metadata"]["name"]: cluster.restarts(p) for p in cluster.pods("order-service")} == before
    report["MongoDB stopped"] = {"unready after": round(down, 1), "ready after MongoDB": round(up, 1), "restarts": 0}


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
