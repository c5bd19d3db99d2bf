"""What clients see while the cluster is disturbed: the failed requests under a steady load through the ingress.

A kill may fail requests in flight. The shop must not fail any request that starts later. An ingress controller that
does not try the next pod when a connection is refused fails some until the endpoints have changed
(docs/operations.md). With MARKET_CLUSTER_INGRESS_RETRIES=1 the controller does try the next pod, and none may fail.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.disturbance import run_load
from tests.cluster.load import FACTOR, Load

INGRESS_RETRIES = os.environ.get("MARKET_CLUSTER_INGRESS_RETRIES") == "1"


def assert_only_requests_in_flight_failed(load: Load) -> None:
    assert load.failed_after_the_kill(by_shop=True) == []
    assert len(load.failed_after_the_kill(by_shop=False)) <= (0 if INGRESS_RETRIES else 10 * max(1, FACTOR))
    # And none earlier: a terminating pod still serves.
    assert [f for f in load.failures if f.ended < load.killed[0]] == []


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_a_rolling_update_fails_no_request(shop: str, products: list[str], report: Report, name: str) -> None:
    def update(_: Load) -> None:
        before = set(cluster.names(name))
        cluster.kubectl("rollout", "restart", f"deployment/{name}")
        cluster.wait_for_rollout(name)
        # Until the old pods have drained and exited, which is part of the disturbance.
        selector = f"app.kubernetes.io/name={name}"
        cluster.seconds_until(
            "the old pods are gone",
            lambda: not before & {p["metadata"]["name"] for p in cluster.get("pods", "-l", selector)["items"]},
        )

    load = await run_load(shop, products, report, f"rolling update of {name}", update)
    assert load.failures == []


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_force_deleting_a_pod_fails_at_most_the_requests_in_flight(
    shop: str, products: list[str], report: Report, name: str
) -> None:
    victim: dict[str, Any] = cluster.pods(name)[0]
    pid = cluster.process(victim)

    def delete(load: Load) -> None:
        load.kill(
            lambda: cluster.kubectl("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force"),
            lambda: pid is None or not cluster.is_alive(pid),
        )
        cluster.wait_for_rollout(name)

    load = await run_load(shop, products, report, f"pod of {name} force-deleted", delete)
    assert_only_requests_in_flight_failed(load)


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_killing_a_process_fails_at_most_the_requests_in_flight(
    shop: str, products: list[str], report: Report, name: str
) -> None:
    victim: dict[str, Any] = cluster.pods(name)[0]
    pid = cluster.process(victim)
    if pid is None or os.geteuid() != 0:
        pytest.skip("the nodes are not on this machine, or we are not root")
    before = cluster.restarts(victim)

    def kill(load: Load) -> None:
        load.kill(lambda: os.kill(pid, signal.SIGKILL), lambda: not cluster.is_alive(pid))
        cluster.seconds_until(
            f"{name} is ready again",
            lambda: any(
                p["metadata"]["name"] == victim["metadata"]["name"]
                and cluster.restarts(p) > before
                and cluster.is_ready(p)
                for p in cluster.pods(name)
            ),
        )

    load = await run_load(shop, products, report, f"kill -9 of {name}", kill)
    assert_only_requests_in_flight_failed(load)


async def test_draining_a_node_without_stores_fails_no_request(shop: str, products: list[str], report: Report) -> None:
    nodes = [n["metadata"]["name"] for n in cluster.get("nodes")["items"]]
    if len(nodes) < 2:
        pytest.skip("one node cannot be drained")
    drained = nodes[-1]
    stores = ("postgresql", "redis", "mongodb", "kafka", "mail")
    cluster.kubectl("cordon", drained)
    try:
        for name in stores:
            if cluster.pods(name)[0]["spec"]["nodeName"] == drained:
                cluster.kubectl("delete", "pod", f"{name}-0")
            cluster.wait_for_rollout(name, "statefulset")
        cluster.kubectl("uncordon", drained)
        # Spread the services over both nodes again.
        for name in cluster.SERVICES:
            cluster.kubectl("rollout", "restart", f"deployment/{name}")
        cluster.wait_until_all_are_ready()

        def drain(_: Load) -> None:
            cluster.kubectl("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=280s")
            cluster.wait_until_all_are_ready()
            cluster.kubectl("uncordon", drained)

        load = await run_load(shop, products, report, "node drained and uncordoned", drain)
    finally:
        cluster.kubectl("uncordon", drained)
    assert load.failures == []


@pytest.mark.parametrize("name", [n for n in cluster.SERVICES if n != "notification-service"])
async def test_scaling_up_and_down_fails_no_request(shop: str, products: list[str], report: Report, name: str) -> None:
    def set_replicas(replicas: int) -> None:
        cluster.kubectl(
            "patch",
            "hpa",
            name,
            "--type=merge",
            "-p",
            f'{{"spec": {{"minReplicas": {replicas}, "maxReplicas": {replicas}}}}}',
        )

    def scale(_: Load) -> None:
        set_replicas(4)
        cluster.seconds_until(f"{name} has four pods", lambda: sum(map(cluster.is_ready, cluster.pods(name))) == 4)
        set_replicas(2)
        cluster.seconds_until(
            f"{name} has two pods",
            lambda: len(cluster.get("pods", "-l", f"app.kubernetes.io/name={name}")["items"]) == 2,
        )

    before = cluster.get("hpa", name)["spec"]["maxReplicas"]
    load = await run_load(shop, products, report, f"{name} scaled from 2 to 4 and back", scale)
    cluster.kubectl(
        "patch", "hpa", name, "--type=merge", "-p", f'{{"spec": {{"minReplicas": 2, "maxReplicas": {before}}}}}'
    )
    assert load.failures == []
