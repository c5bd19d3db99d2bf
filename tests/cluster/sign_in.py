"""The test cluster's manifests with sign-in: the component of production, and an issuer as a pod."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster import ROOT
from tests.cluster.issuer_program import PORT, STOREFRONT, URL

# Who can sign in, by subject, with their roles. They are clients, too, so that most tests need no browser.
PEOPLE = {"ann": [], "ben": [], "mia": ["merchant"], "olga": ["operator"]}

_PORTS = """
def free_port() -> int:
    raise NotImplementedError
"""
_LABELS = {"app.kubernetes.io/part-of": "market"}
_CALLERS = ("product-service", "order-service", "notification-service", "graphql-service", "storefront-service")


def add_sign_in(deploy: Path, cluster_issuer: str) -> None:
    """Change a copy of deploy/, so that its overlay `base` requires sign-in."""
    base = deploy / "base"
    for name in (*_CALLERS, "inventory-service"):
        _require_sign_in(base / f"services/config/{name}.yaml", deploy / f"overlays/production/config/{name}.yaml")
    _copy_issuer(base / "issuer")
    (base / "issuer.yaml").write_text(yaml.safe_dump_all(_issuer()))
    kustomization = yaml.safe_load((base / "kustomization.yaml").read_text())
    settings = {
        "MARKET_ISSUER": URL,
        "MARKET_AUDIENCE": "market",
        "MARKET_ROLES_CLAIM": "roles",
        "MARKET_CLUSTER_ISSUER": cluster_issuer,
        "MARKET_STOREFRONT_CLIENT_ID": STOREFRONT,
    }
    kustomization["resources"].append("issuer.yaml")
    kustomization["components"] = ["../components/sign-in"]
    kustomization["configMapGenerator"] = [
        {"name": "sign-in", "literals": [f"{name}={value}" for name, value in settings.items()]},
        {
            "name": "issuer",
            "files": [f"issuer/{name}" for name in ("program.py", "issuer.py", "ports.py", "people.json")],
        },
    ]
    kustomization["generatorOptions"] = {"labels": _LABELS}
    (base / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


def _require_sign_in(path: Path, production: Path) -> None:
    """Give the service of a test cluster the section `auth` of production."""
    config, required = yaml.safe_load(path.read_text()), yaml.safe_load(production.read_text())
    config["auth"] = required["auth"]
    if "service_identity" in required:
        config["service_identity"] = required["service_identity"]
    if "sign_in" in required:
        # A public client: the pod has no secret for it.
        config["sign_in"] = {"client_id": required["sign_in"]["client_id"]}
    if config["auth"]["issuer"] == "${MARKET_ISSUER}":
        # The pod has no certificate.
        config["auth"]["insecure_issuer"] = True
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def _copy_issuer(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(ROOT / "tests/support/issuer.py", folder)
    (folder / "ports.py").write_text(_PORTS)
    shutil.copy(ROOT / "tests/cluster/issuer_program.py", folder / "program.py")
    (folder / "people.json").write_text(json.dumps(PEOPLE))


def _issuer() -> list[dict[str, Any]]:
    """Return the pod of the issuer with its Service, and the arrows to it."""
    container = {
        "name": "issuer",
        # It has Python and the package cryptography.
        "image": "market/products:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/srv/program.py"],
        "env": [{"name": "PYTHONPATH", "value": "/srv:/opt/market/packages"}],
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "25m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "program", "mountPath": "/srv", "readOnly": True}],
    }
    files = {
        "program.py": "program.py",
        "people.json": "people.json",
        "issuer.py": "tests/support/issuer.py",
        "ports.py": "tests/support/ports.py",
    }
    program = {"name": "issuer", "items": [{"key": key, "path": path} for key, path in files.items()]}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "program", "configMap": program}],
    }
    labels = {"app.kubernetes.io/name": "issuer", **_LABELS}
    selector = {"matchLabels": {"app.kubernetes.io/name": "issuer"}}
    callers = {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "In", "values": list(_CALLERS)}]}
    ports = [{"protocol": "TCP", "port": PORT}]

    def document(kind: str, version: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": _LABELS}, "spec": spec}

    return [
        # The services' own settings for every Deployment are not applied to a pod.
        document(
            "StatefulSet",
            "apps/v1",
            "issuer",
            {
                "serviceName": "issuer",
                "selector": selector,
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        ),
        document(
            "Service",
            "v1",
            "issuer",
            {
                "selector": selector["matchLabels"],
                "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
            },
        ),
        document(
            "NetworkPolicy",
            "networking.k8s.io/v1",
            "issuer",
            {
                "podSelector": selector,
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": callers}], "ports": ports}],
            },
        ),
        document(
            "NetworkPolicy",
            "networking.k8s.io/v1",
            "to-issuer",
            {
                "podSelector": callers,
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": selector}], "ports": ports}],
            },
        ),
    ]


# What add_sign_in adds to the cluster, besides ConfigMaps, which deploy.sh prunes.
ADDED = (
    "statefulset/issuer",
    "service/issuer",
    "networkpolicy/issuer",
    "networkpolicy/to-issuer",
    "networkpolicy/issuer-clients",
    "networkpolicy/cluster-issuer-clients",
    "clusterrolebinding/market-inventory-issuer-discovery",
)
