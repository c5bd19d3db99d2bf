"""What deploy.sh reports when it fails, and its exit code. (The name makes it run last, because it removes the
shop.)"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.test_a_deploy import copy_project

FAILED, MISSING = 1, 3


def record(report: Report, name: str, done: subprocess.CompletedProcess[str], seconds: float) -> str:
    text = (done.stdout + done.stderr).strip()
    report[name] = {
        "exit": done.returncode,
        "seconds": round(seconds, 1),
        "output": done.stderr.strip().splitlines()[:14],
    }
    return text


def copy_with_change(folder: Path, file: str, change: Callable[[str], str]) -> Path:
    copy = copy_project(folder)
    path = copy / file
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    return copy


def test_deploy_with_a_bad_image_tag_reports_the_pod_and_can_continue(shop: str, report: Report) -> None:
    before = cluster.names("product-service")
    options = ["--registry", "registry.test/none", "--image-tag", "bad"]
    done, seconds = cluster.script("deploy.sh", *options, "--timeout", "120", check=False)
    text = record(report, "a bad image tag", done, seconds)
    assert done.returncode == FAILED
    assert re.search(
        r"FAILED: (statefulset|deployment)/[a-z-]+ is not ready: [a-z0-9-]+ [a-z]+: (ErrImagePull|ImagePullBackOff)",
        text,
    )
    assert "Its last events:" in text
    # The old pods keep serving, and the next run with a correct tag continues from there.
    assert set(before) <= set(cluster.names("product-service"))
    done, seconds = cluster.deploy()
    cluster.wait_until_all_are_ready()
    report["deploy after a bad image tag"] = {"seconds": round(seconds, 1)}


def test_deploy_with_a_missing_secret_reports_its_name(shop: str, report: Report, tmp_path: Path) -> None:
    copy = copy_with_change(
        tmp_path / "copy",
        "deploy/base/services/order-service.yaml",
        lambda text: text.replace("secretRef: {name: order-service}", "secretRef: {name: nowhere}"),
    )
    done, seconds = cluster.deploy(check=False, root=copy)
    text = record(report, "a missing secret", done, seconds)
    assert done.returncode == FAILED
    assert "deployment/order-service is not ready" in text
    assert 'secret "nowhere" not found' in text
    cluster.deploy()
    cluster.wait_until_all_are_ready()


def test_deploy_with_an_unknown_storage_class_reports_the_volume_claim(report: Report, tmp_path: Path) -> None:
    cluster.script("undeploy.sh", "--yes")
    copy = copy_with_change(
        tmp_path / "copy",
        "deploy/base/stores/redis.yaml",
        lambda text: text.replace("spec: {accessModes:", "spec: {storageClassName: nowhere, accessModes:"),
    )
    done, seconds = cluster.deploy("--timeout", "300", check=False, root=copy)
    text = record(report, "an unknown storage class", done, seconds)
    assert done.returncode == FAILED
    assert "statefulset/redis is not ready: redis-0" in text
    assert 'storageclass.storage.k8s.io "nowhere" not found' in text
    cluster.script("undeploy.sh", "--yes")


def test_deploy_without_an_ingress_class_creates_nothing(report: Report) -> None:
    classes = cluster.run("kubectl", "get", "ingressclass", "-o", "json").stdout
    cluster.run("kubectl", "delete", "ingressclass", "--all")
    try:
        done, seconds = cluster.deploy(check=False)
    finally:
        kept = json.loads(classes)
        for item in kept["items"]:
            for name in ("resourceVersion", "uid", "creationTimestamp", "generation"):
                item["metadata"].pop(name, None)
        cluster.run("kubectl", "apply", "-f", "-", stdin=json.dumps(kept))
    text = record(report, "no ingress class", done, seconds)
    assert done.returncode == MISSING
    assert "an ingress controller (no IngressClass)" in text
    assert not cluster.run("kubectl", "get", "namespace", cluster.NAMESPACE, "--ignore-not-found", "-o", "name").stdout


def test_deploy_without_a_cluster_explains_why(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / "kubeconfig"
    dead.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "dead",
                "clusters": [{"name": "dead", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "dead", "user": {"token": "none"}}],
                "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": "dead"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(dead))
    done, seconds = cluster.deploy(check=False)
    text = record(report, "an unreachable cluster", done, seconds)
    assert (done.returncode, "the cluster of context dead does not respond" in text) == (MISSING, True)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done, seconds = cluster.deploy(check=False)
    text = record(report, "no cluster", done, seconds)
    assert (done.returncode, "no cluster: kubectl has no current context" in text) == (MISSING, True)
