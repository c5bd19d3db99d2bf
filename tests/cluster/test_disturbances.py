"""What clients see while the cluster is disturbed: the failed requests under a steady load through the ingress.

A kill may fail what was in hand. What begins later must not fail by the shop's doing; an ingress controller that goes
on sending to a pod that refuses, and does not try the next one, fails some until it hears of the end
(docs/operations.md). MARKET_CLUSTER_INGRESS_RETRIES=1 says that this one tries the next: then none of these may fail
either.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.load import TIMES, Load

INGRESS_RETRIES = os.environ.get("MARKET_CLUSTER_INGRESS_RETRIES") == "1"


async def disturbed(shop: str, goods: list[str], report: Report, name: str, disturb: Callable[[Load], object]) -> Load:
    """The load of before, while and after the disturbance; its orders must all be there, each once."""
    async with Load(shop, goods) as load:
        await asyncio.sleep(3)
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(disturb, load)
        seconds = asyncio.get_running_loop().time() - began
        await asyncio.sleep(5)
    books = await load.settle()
    report[name] = {
        "failed": len(load.failures),
        "of": load.requests,
        "seconds": round(seconds, 1),
        "slowest": round(load.slowest, 2),
        "asked_again": books.settled,
        "lost": books.lost,
        "doubled": books.doubled,
    } | of_a_kill(load)
    if load.failures:
        print(*map(str, load.failures[:20]), sep="\n")
    assert (books.lost, books.doubled) == (0, 0)
    return load


def of_a_kill(load: Load) -> dict[str, int]:
    """Nothing where nothing was struck."""
    if load.struck[0] == float("inf"):
        return {}
    return {
        "in hand": len(load.in_hand),
        "of these failed": sum(f in load.failures for f in load.in_hand),
        "failed later by the shop": len(load.failed_after_the_strike(ours=True)),
        "failed later at the ingress": len(load.failed_after_the_strike(ours=False)),
    }


def only_what_was_in_hand(load: Load) -> None:
    assert load.failed_after_the_strike(ours=True) == []
    assert len(load.failed_after_the_strike(ours=False)) <= (0 if INGRESS_RETRIES else 10 * max(1, TIMES))
    # And none before, as long as a pod that is to go still serves.
    assert [f for f in load.failures if f.ended < load.struck[0]] == []


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_a_rolling_update_fails_no_request(shop: str, goods: list[str], report: Report, name: str) -> None:
    def update(_: Load) -> None:
        before = set(cluster.names(name))
        cluster.kubectl("rollout", "restart", f"deployment/{name}")
        cluster.rolled_out(name)
        # The old pods serve on for a while, and then end: that is part of it.
        selector = f"app.kubernetes.io/name={name}"
        cluster.seconds_until(
            "the old pods are gone",
            lambda: not before & {p["metadata"]["name"] for p in cluster.get("pods", "-l", selector)["items"]},
        )

    load = await disturbed(shop, goods, report, f"rolling update of {name}", update)
    assert load.failures == []


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_a_pod_deleted_by_force_fails_no_more_than_what_it_had_in_hand(
    shop: str, goods: list[str], report: Report, name: str
) -> None:
    victim: dict[str, Any] = cluster.pods(name)[0]
    pid = cluster.process(victim)

    def delete(load: Load) -> None:
        load.strike(
            lambda: cluster.kubectl("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force"),
            lambda: pid is None or not cluster.is_alive(pid),
        )
        cluster.rolled_out(name)

    load = await disturbed(shop, goods, report, f"pod of {name} deleted by force", delete)
    only_what_was_in_hand(load)


@pytest.mark.parametrize("name", cluster.SERVICES)
async def test_a_process_killed_fails_no_more_than_what_it_had_in_hand(
    shop: str, goods: list[str], report: Report, name: str
) -> None:
    victim: dict[str, Any] = cluster.pods(name)[0]
    pid = cluster.process(victim)
    if pid is None or os.geteuid() != 0:
        pytest.skip("the nodes are not on this machine, or we are not root")
    before = cluster.restarts(victim)

    def kill(load: Load) -> None:
        load.strike(lambda: os.kill(pid, signal.SIGKILL), lambda: not cluster.is_alive(pid))
        cluster.seconds_until(
            f"{name} is back",
            lambda: any(
                p["metadata"]["name"] == victim["metadata"]["name"]
                and cluster.restarts(p) > before
                and cluster.is_ready(p)
                for p in cluster.pods(name)
            ),
        )

    load = await disturbed(shop, goods, report, f"kill -9 of {name}", kill)
    only_what_was_in_hand(load)


async def test_a_node_without_stores_drained_and_back_fails_no_request(
    shop: str, goods: list[str], report: Report
) -> None:
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
            cluster.rolled_out(name, "statefulset")
        cluster.kubectl("uncordon", drained)
        # The services spread over both nodes again.
        for name in cluster.SERVICES:
            cluster.kubectl("rollout", "restart", f"deployment/{name}")
        cluster.all_ready()

        def drain(_: Load) -> None:
            cluster.kubectl("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=280s")
            cluster.all_ready()
            cluster.kubectl("uncordon", drained)

        load = await disturbed(shop, goods, report, "node drained and back", drain)
    finally:
        cluster.kubectl("uncordon", drained)
    assert load.failures == []


@pytest.mark.parametrize("name", [n for n in cluster.SERVICES if n != "notification-service"])
async def test_scaling_up_and_down_fails_no_request(shop: str, goods: list[str], report: Report, name: str) -> None:
    def least(replicas: int) -> None:
        cluster.kubectl(
            "patch",
            "hpa",
            name,
            "--type=merge",
            "-p",
            f'{{"spec": {{"minReplicas": {replicas}, "maxReplicas": {replicas}}}}}',
        )

    def scale(_: Load) -> None:
        least(4)
        cluster.seconds_until(f"{name} has four pods", lambda: sum(map(cluster.is_ready, cluster.pods(name))) == 4)
        least(2)
        cluster.seconds_until(
            f"{name} has two pods",
            lambda: len(cluster.get("pods", "-l", f"app.kubernetes.io/name={name}")["items"]) == 2,
        )

    before = cluster.get("hpa", name)["spec"]["maxReplicas"]
    load = await disturbed(shop, goods, report, f"{name} scaled from 2 to 4 and back", scale)
    cluster.kubectl(
        "patch", "hpa", name, "--type=merge", "-p", f'{{"spec": {{"minReplicas": 2, "maxReplicas": {before}}}}}'
    )
    assert load.failures == []
