"""What must hold of the manifests beyond their schemas."""

from __future__ import annotations

import base64
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from market.kit import config as kit_config
from tests.deploy.conftest import KUBECTL, ROOT

sys.path.insert(0, str(ROOT / "scripts"))
check_manifests = importlib.import_module("check_manifests")

SERVICES = {
    "product-service": "products",
    "order-service": "orders",
    "inventory-service": "inventory",
    "notification-service": "notifications",
    "graphql-service": "graphql",
}
STORES = ("postgresql", "redis", "mongodb", "kafka", "mail")

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not here")
_rendered: dict[str, list[dict[str, Any]]] = {}


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(check_manifests.with_examples(tmp_path_factory.mktemp("deploy")))


def rendered(deploy: Path, overlay: str) -> list[dict[str, Any]]:
    if overlay not in _rendered:
        _rendered[overlay] = check_manifests.rendered(deploy, overlay)
    return _rendered[overlay]


def of(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def workloads(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("Deployment", "StatefulSet", "Job"):
        for name, document in of(documents, kind).items():
            yield name, document["spec"]["template"]["spec"]


def test_the_schemas_hold_and_a_wrong_field_is_seen() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/check_manifests.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    checker = check_manifests.Checker()
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"portz": []}}
    checker.check(service, "here")
    assert len(checker.errors) == 1
    assert "portz" in checker.errors[0]


@pytest.mark.parametrize("overlay", check_manifests.OVERLAYS)
def test_every_container_is_locked_in_and_says_what_it_needs(deploy: Path, overlay: str) -> None:
    for name, spec in workloads(rendered(deploy, overlay)):
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"] + spec.get("initContainers", []):
            where = f"{name}/{container['name']}"
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, where
            assert security["readOnlyRootFilesystem"] is True, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
            assert "memory" in container["resources"]["limits"], where
            assert container["imagePullPolicy"] == "IfNotPresent", where
            assert container["command"], where
            assert not container["image"].endswith(":latest"), where
            assert ":" in container["image"], where


@pytest.mark.parametrize("overlay", ["base", "overlays/minikube", "overlays/production"])
def test_every_service_has_its_probes_budget_and_account(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    scaled = of(documents, "HorizontalPodAutoscaler")
    for name in SERVICES:
        deployment = of(documents, "Deployment")[name]
        spec = deployment["spec"]["template"]["spec"]
        container = spec["containers"][0]
        assert {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} <= container.keys()
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert spec["serviceAccountName"] == name
        assert of(documents, "ServiceAccount")[name]["automountServiceAccountToken"] is False
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert 9090 not in [p["port"] for p in of(documents, "Service")[name]["spec"].get("ports", [])]
        # An autoscaler's number of pods is its own affair.
        assert ("replicas" in deployment["spec"]) == (name not in scaled)
        if overlay != "overlays/minikube":
            assert of(documents, "PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 1
            assert (name in scaled) == (name != "notification-service")
    assert set(of(documents, "StatefulSet")) == (set() if overlay == "overlays/production" else set(STORES))


@pytest.mark.parametrize("overlay", ["base", "overlays/minikube", "overlays/production"])
def test_the_grace_period_is_longer_than_what_a_service_may_take_to_end(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    for name, package in SERVICES.items():
        spec = of(documents, "Deployment")[name]["spec"]["template"]["spec"]
        config = loaded(documents, name, package)
        pre_stop = float(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        assert (
            spec["terminationGracePeriodSeconds"]
            > pre_stop + config.shutdown.drain_seconds + config.shutdown.grace_seconds
        )
        # The longest deadline is an order's.
        assert config.shutdown.grace_seconds > 10


def loaded(documents: list[dict[str, Any]], name: str, package: str) -> Any:
    """The configuration that the pods of the service get, parsed by the service's own code."""
    spec = of(documents, "Deployment")[name]["spec"]["template"]["spec"]
    volume = next(v for v in spec["volumes"] if v["name"] == "config")
    text = of(documents, "ConfigMap")[volume["configMap"]["name"]]["data"]["config.yaml"]
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "x")
    # In production the examples of the Secrets stand for them.
    for secret in spec["containers"][0].get("envFrom", []):
        data = of(documents, "Secret").get(secret["secretRef"]["name"], {}).get("data", {})
        environ |= {key: base64.b64decode(value).decode() for key, value in data.items() if value}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(text)
        return kit_config.load(path, importlib.import_module(f"market.{package}.config").Config, environ)


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
@pytest.mark.parametrize("name", SERVICES)
def test_each_configuration_is_one_that_its_service_takes(deploy: Path, overlay: str, name: str) -> None:
    documents = rendered(deploy, overlay)
    config = loaded(documents, name, SERVICES[name])
    assert (config.admin.port, config.testing, config.faults) == (9090, False, None)
    # Every name that the file takes from the environment is in the Secret that the pod gets.
    spec = of(documents, "Deployment")[name]["spec"]["template"]["spec"]
    text = next(
        d["data"]["config.yaml"]
        for d in documents
        if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith(name)
    )
    if wanted := set(re.findall(r"\$\{(\w+)\}", text)):
        secrets = [e["secretRef"]["name"] for e in spec["containers"][0]["envFrom"]]
        if overlay == "overlays/production":
            assert wanted <= of(documents, "Secret")[secrets[0]]["data"].keys()
        else:
            assert all(name in (ROOT / "scripts/deploy.sh").read_text() for name in wanted)


# Not production: there the server is not ours.
@pytest.mark.parametrize("overlay", ["base", "overlays/minikube"])
def test_the_connections_of_all_pods_fit_into_postgresql(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    most = 0
    for name, package in (("product-service", "products"), ("inventory-service", "inventory")):
        scaler = of(documents, "HorizontalPodAutoscaler").get(name)
        pods = scaler["spec"]["maxReplicas"] if scaler else 1
        most += (pods + 1) * loaded(documents, name, package).postgres.pool_size
    allowed = re.search(
        r"max_connections = (\d+)", (ROOT / "deploy/base/stores/postgresql/postgresql.conf").read_text()
    )
    assert allowed
    assert most + 10 <= int(allowed[1])


def test_names_end_in_a_hash_so_that_a_change_rolls_the_pods(deploy: Path) -> None:
    documents = rendered(deploy, "base")
    assert all(re.fullmatch(r"[a-z-]+-[0-9a-z]{10}", name) for name in of(documents, "ConfigMap"))
    production = rendered(deploy, "overlays/production")
    assert all(re.fullmatch(r"[a-z-]+-[0-9a-z]{10}", name) for name in of(production, "Secret"))


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
def test_the_ingress_knows_no_controller_and_production_has_a_certificate(deploy: Path, overlay: str) -> None:
    ingress = of(rendered(deploy, overlay), "Ingress")["market"]
    assert "annotations" not in ingress["metadata"]
    paths = {p["path"]: p["backend"]["service"]["name"] for p in ingress["spec"]["rules"][0]["http"]["paths"]}
    assert paths == {
        "/": "graphql-service",
        "/graphql": "graphql-service",
        "/api/product": "product-service",
        "/api/order": "order-service",
    }
    assert ("tls" in ingress["spec"]) == (overlay == "overlays/production")


def test_the_file_of_secrets_is_not_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "deploy"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.split()
    assert not [name for name in tracked if name.endswith(".env")]
