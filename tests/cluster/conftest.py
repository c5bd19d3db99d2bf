"""Tests of the manifests and scripts on a real cluster: `make test-cluster`, against kubectl's current context.

They change the cluster: they deploy, disturb and remove the shop in namespace `market`, and drain and uncordon nodes.
MARKET_CLUSTER_DEPLOY has the options that deploy.sh needs there (--registry R --image-tag T).
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cluster

if os.environ.get("MARKET_CLUSTER") != "1":
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow half an hour: the first test includes a deploy, which takes minutes."""
    for item in items:
        if "cluster" in item.path.parts:
            item.add_marker(pytest.mark.timeout(1800))


class Report:
    """Measurements by name: printed, and written to the file that MARKET_CLUSTER_REPORT names."""

    def __init__(self) -> None:
        self.measurements: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.measurements[name] = value
        print(f"{name}: {value}", flush=True)
        if path := os.environ.get("MARKET_CLUSTER_REPORT"):
            known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
            Path(path).write_text(json.dumps(known | self.measurements, indent=2) + "\n")


@pytest.fixture(scope="session")
def report() -> Report:
    return Report()


@pytest.fixture(scope="session", autouse=True)
def reachable_cluster() -> None:
    """Skip all tests without a cluster."""
    done = subprocess.run(
        ["kubectl", "--request-timeout=10s", "get", "--raw", "/version"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(
            f"no cluster: {done.stderr.strip().splitlines()[-1] if done.stderr else 'kubectl has no current context'}"
        )


@pytest.fixture(scope="session")
def shop(reachable_cluster: None) -> str:
    """The URL of a deployed shop. It is not removed at the end; undeploying has tests of its own."""
    cluster.deploy()
    cluster.wait_until_all_are_ready()
    return cluster.address()


@pytest.fixture(scope="session")
def products(shop: str) -> list[str]:
    """Ids of products with more stock than any test sells."""
    created = []
    for number in range(5):
        body = {"name": f"Load {number}", "description": "", "price": "1.00", "currency": "GBP", "stock": 1_000_000}
        headers = {"content-type": "application/json", "idempotency-key": str(uuid.uuid4())}
        request = urllib.request.Request(f"{shop}/api/product", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            created.append(json.load(response)["id"])
    return created
