"""deploy.sh, undeploy.sh and restart.sh, from an empty cluster and back. (The name makes it run first.)"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.cluster import cluster
from tests.cluster.conftest import Report


def namespace_exists() -> bool:
    return bool(
        cluster.run("kubectl", "get", "namespace", cluster.NAMESPACE, "--ignore-not-found", "-o", "name").stdout
    )


def cluster_objects() -> set[str]:
    """Return the names of all namespaces, and of all objects outside of namespaces."""
    kinds = (
        "namespaces,persistentvolumes,clusterroles,clusterrolebindings,storageclasses,ingressclasses,priorityclasses"
    )
    kinds += ",customresourcedefinitions,validatingwebhookconfigurations,mutatingwebhookconfigurations"
    return set(cluster.run("kubectl", "get", kinds, "-o", "name").stdout.split())


def copy_project(folder: Path) -> Path:
    for name in ("scripts", "deploy"):
        shutil.copytree(cluster.ROOT / name, folder / name)
    return folder


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"content-type": "application/json"}), timeout=15
    ) as response:
        return json.load(response)


def place_an_order(shop: str, email: str) -> str:
    product = call(f"{shop}/api/product?limit=1")["items"][0]["id"]
    order = call(
        f"{shop}/api/order", {"user": "ada", "email": email, "items": [{"product_id": product, "quantity": 1}]}
    )
    assert order["status"] == "confirmed"
    return str(order["id"])


def mails_to(email: str) -> list[Any]:
    with cluster.forwarded("service/mail", 8025, 28025) as mail:
        deadline = time.monotonic() + 20
        while not (items := call(f"{mail}/api/messages?to={email}")["items"]) and time.monotonic() < deadline:
            time.sleep(0.2)
    return list(items)


def test_deploy_restart_and_undeploy_from_an_empty_cluster_and_back(report: Report, tmp_path: Path) -> None:
    cluster.script("undeploy.sh", "--yes")
    assert not namespace_exists()
    before = cluster_objects()

    # Deploy to an empty cluster.
    done, seconds = cluster.deploy()
    report["first deploy"] = {"seconds": round(seconds, 1)}
    print(done.stdout)
    shop = cluster.address()
    order = place_an_order(shop, "ada@example.test")
    report["deploy, order and mail"] = {"order": order, "mails": len(mails_to("ada@example.test"))}
    assert len(mails_to("ada@example.test")) == 1
    # The command that deploy.sh printed places an order, too.
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("curl -s"))
    assert json.loads(cluster.run("bash", "-c", line.strip()).stdout)["status"] == "confirmed"
    cluster.wait_until_all_are_ready()

    # Deploying again changes nothing.
    pods = {n: cluster.names(n) for n in cluster.SERVICES}
    done, seconds = cluster.deploy()
    report["deploy again"] = {"seconds": round(seconds, 1)}
    assert "0 created, 0 changed" in done.stdout
    assert {n: cluster.names(n) for n in cluster.SERVICES} == pods

    # A changed configuration restarts that service only.
    copy = copy_project(tmp_path / "changed")
    path = copy / "deploy/base/services/config/order-service.yaml"
    path.write_text(path.read_text().replace("level: info", "level: warning"))
    done, seconds = cluster.deploy(root=copy)
    cluster.wait_until_all_are_ready()
    after = {n: cluster.names(n) for n in cluster.SERVICES}
    report["deploy with one changed configuration"] = {
        "seconds": round(seconds, 1),
        "restarted": [n for n in pods if pods[n] != after[n]],
    }
    assert [n for n in pods if pods[n] != after[n]] == ["order-service"]
    assert not set(pods["order-service"]) & set(after["order-service"])

    # Restart with the data: the order exists, and the passwords are the same.
    secret = cluster.kubectl("get", "secret", "passwords", "-o", "jsonpath={.data}")
    done, seconds = cluster.script("restart.sh", "--yes", "--keep-data", *cluster.DEPLOY)
    report["restart with the data"] = {"seconds": round(seconds, 1)}
    assert call(f"{cluster.address()}/api/order/{order}")["status"] == "confirmed"
    assert cluster.kubectl("get", "secret", "passwords", "-o", "jsonpath={.data}") == secret
    assert call(f"{cluster.address()}/api/product")["total"] == 40
    place_an_order(cluster.address(), "bob@example.test")
    assert len(mails_to("bob@example.test")) == 1

    # Restart without the data: an empty shop with the demo catalogue.
    done, seconds = cluster.script("restart.sh", "--yes", *cluster.DEPLOY)
    report["restart"] = {"seconds": round(seconds, 1)}
    assert call(f"{cluster.address()}/api/order?user=ada")["total"] == 0

    # Undeploy leaves nothing behind.
    done, seconds = cluster.script("undeploy.sh", "--yes")
    report["undeploy"] = {"seconds": round(seconds, 1), "output": done.stdout.strip().splitlines()[-2:]}
    assert cluster_objects() == before
    done, seconds = cluster.script("undeploy.sh", "--yes")
    report["undeploy again"] = {"seconds": round(seconds, 1), "output": done.stdout.strip()}
    assert "Nothing to remove" in done.stdout


def test_deploy_starts_services_that_were_scaled_to_zero(report: Report) -> None:
    cluster.deploy()
    scaled = [name for name in cluster.SERVICES if name != "notification-service"]
    for name in cluster.SERVICES:
        cluster.kubectl("scale", f"deployment/{name}", "--replicas=0")
    for name in cluster.SERVICES:
        cluster.seconds_until(f"{name} has no pod", lambda name=name: not cluster.pods(name))
    done, seconds = cluster.deploy()
    report["deploy with all services at 0 replicas"] = {"seconds": round(seconds, 1)}
    for name in scaled:
        assert f"{name} was scaled to 0 pods: scaled to its minimum of 2" in done.stdout
    assert {name: sum(map(cluster.is_ready, cluster.pods(name))) for name in cluster.SERVICES} == dict.fromkeys(
        cluster.SERVICES, 2
    )
    place_an_order(cluster.address(), "zero@example.test")


def test_undeploy_keeps_objects_that_deploy_did_not_create(report: Report) -> None:
    cluster.deploy()
    cluster.kubectl("create", "configmap", "not-ours", "--from-literal=a=b")
    try:
        done, _ = cluster.script("undeploy.sh", "--yes")
        assert "ConfigMap/not-ours" in done.stdout
        assert cluster.kubectl("get", "configmap", "not-ours", "-o", "name") == "configmap/not-ours"
        assert cluster.kubectl("get", "all,secrets,pvc,networkpolicies,ingress", "-o", "name") == ""
    finally:
        cluster.kubectl("delete", "configmap", "not-ours")
    cluster.script("undeploy.sh", "--yes")
    assert not namespace_exists()
