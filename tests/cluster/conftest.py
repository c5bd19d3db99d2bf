"""Tests of the manifests and scripts on a real cluster: `make test-cluster`, against kubectl's current context.

They need a cluster that may be changed: they deploy, disturb and remove the shop in namespace `market`, drain nodes
and bring them back. MARKET_CLUSTER_DEPLOY holds the options that deploy.sh needs there (--registry R --image-tag T).
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
    """A deploy is part of whichever test comes first, and takes minutes."""
    for item in items:
        if "cluster" in item.path.parts:
            item.add_marker(pytest.mark.timeout(1800))


class Report:
    """Figures by name, for people: printed at the end, and kept in the file that MARKET_CLUSTER_REPORT names."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def __setitem__(self, name: str, figure: Any) -> None:
        self.figures[name] = figure
        print(f"{name}: {figure}", flush=True)
        if path := os.environ.get("MARKET_CLUSTER_REPORT"):
            known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
            Path(path).write_text(json.dumps(known | self.figures, indent=2) + "\n")


@pytest.fixture(scope="session")
def report() -> Report:
    return Report()


@pytest.fixture(scope="session", autouse=True)
def there_is_a_cluster() -> None:
    done = subprocess.run(
        ["kubectl", "--request-timeout=10s", "get", "--raw", "/version"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(
            f"no cluster: {done.stderr.strip().splitlines()[-1] if done.stderr else 'kubectl has no current context'}"
        )


@pytest.fixture(scope="session")
def shop(there_is_a_cluster: None) -> str:
    """The address of a shop that is deployed and ready. It stays; undeploying is a test of its own."""
    cluster.deploy()
    cluster.all_ready()
    return cluster.address()


@pytest.fixture(scope="session")
def goods(shop: str) -> list[str]:
    """Products with more stock than any test sells."""
    made = []
    for number in range(5):
        body = {"name": f"Load {number}", "description": "", "price": "1.00", "currency": "GBP", "stock": 1_000_000}
        headers = {"content-type": "application/json", "idempotency-key": str(uuid.uuid4())}
        request = urllib.request.Request(f"{shop}/api/product", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            made.append(json.load(answer)["id"])
    return made
