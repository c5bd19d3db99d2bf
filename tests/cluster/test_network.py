"""The network policies, tested from pods: connections on the map are allowed, all others are denied."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import Report

ALLOWED = [
    ("storefront-service", "graphql-service", 8080),
    ("storefront-service", "notification-service", 8080),
    ("storefront-service", "order-service", 8080),
    ("graphql-service", "product-service", 8080),
    ("graphql-service", "order-service", 8080),
    ("product-service", "postgresql", 5432),
    ("product-service", "redis", 6379),
    ("product-service", "inventory-service", 50051),
    ("order-service", "mongodb-0.mongodb", 27017),
    ("order-service", "kafka-0.kafka", 9092),
    ("order-service", "inventory-service", 50051),
    ("order-service", "product-service", 8080),
    ("inventory-service", "postgresql", 5432),
    ("notification-service", "kafka-0.kafka", 9092),
    ("notification-service", "mail", 1025),
]
DENIED = [
    ("storefront-service", "product-service", 8080),
    ("storefront-service", "inventory-service", 50051),
    ("storefront-service", "redis", 6379),
    ("graphql-service", "mongodb-0.mongodb", 27017),
    ("graphql-service", "postgresql", 5432),
    ("graphql-service", "redis", 6379),
    ("graphql-service", "inventory-service", 50051),
    ("graphql-service", "kafka-0.kafka", 9092),
    ("graphql-service", "notification-service", 8080),
    ("product-service", "mongodb-0.mongodb", 27017),
    ("product-service", "kafka-0.kafka", 9092),
    ("product-service", "order-service", 8080),
    ("product-service", "mail", 1025),
    ("order-service", "postgresql", 5432),
    ("order-service", "redis", 6379),
    ("order-service", "mail", 1025),
    ("inventory-service", "redis", 6379),
    ("inventory-service", "product-service", 8080),
    ("inventory-service", "mongodb-0.mongodb", 27017),
    ("notification-service", "postgresql", 5432),
    ("notification-service", "mongodb-0.mongodb", 27017),
    ("notification-service", "order-service", 8080),
    ("notification-service", "mail", 8025),
    # Outside: another namespace, and the API server.
    ("product-service", "kubernetes.default", 443),
    ("stranger", "redis", 6379),
    ("stranger", "postgresql", 5432),
    ("stranger", "mongodb-0.mongodb", 27017),
    ("stranger", "kafka-0.kafka", 9092),
    ("stranger", "product-service", 8080),
    ("stranger", "order-service", 8080),
    ("stranger", "notification-service", 8080),
    ("stranger", "storefront-service", 8080),
    ("stranger", "mail", 8025),
]
# Connects to all targets at once. Resolves names first, so that a failure is the network's and not the name server's.
CONNECT = """
import asyncio, json, socket, sys

async def reach(host, port):
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4][0]
    except OSError as e:
        return f"no name: {e}"
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 4)
        writer.close()
        return "open"
    except (OSError, asyncio.TimeoutError):
        return "closed"

async def main():
    targets = json.loads(sys.argv[1])
    print(json.dumps(await asyncio.gather(*(reach(h, p) for h, p in targets))))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def stranger(shop: str) -> Iterator[None]:
    """A pod in the namespace that does not belong to the shop, with an image that the node has."""
    spec = cluster.pods("product-service")[0]["spec"]
    container = spec["containers"][0]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "labels": {"app.kubernetes.io/name": "stranger"}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": spec["securityContext"],
            "containers": [
                {
                    "name": "service",
                    "image": container["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "3600"],
                    "securityContext": container["securityContext"],
                }
            ],
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=60s")
    yield
    cluster.kubectl("delete", "pod", "stranger", "--ignore-not-found")


def connect(source: str, targets: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    pod = source if source == "stranger" else cluster.names(source)[-1]
    output = cluster.kubectl("exec", pod, "-c", "service", "--", "python", "-c", CONNECT, json.dumps(targets))
    return dict(zip(targets, json.loads(output), strict=True))


@pytest.mark.parametrize("source", sorted({a[0] for a in ALLOWED}))
def test_connections_on_the_map_are_allowed(shop: str, source: str) -> None:
    targets = [(host, port) for s, host, port in ALLOWED if s == source]
    assert connect(source, targets) == dict.fromkeys(targets, "open")


@pytest.mark.parametrize("source", sorted({a[0] for a in DENIED}))
def test_all_other_connections_are_denied(shop: str, stranger: None, source: str, report: Report) -> None:
    targets = [(host, port) for s, host, port in DENIED if s == source]
    found = connect(source, targets)
    report[f"denied to {source}"] = [f"{host}:{port}" for host, port in targets if found[host, port] == "closed"]
    assert found == dict.fromkeys(targets, "closed")
