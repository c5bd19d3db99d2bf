"""Our own rules for the manifests, which no schema knows."""

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
    "storefront-service": "storefront",
}
STORES = ("postgresql", "redis", "mongodb", "kafka", "mail")

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not installed")
_rendered: dict[str, list[dict[str, Any]]] = {}


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(check_manifests.copy_with_examples(tmp_path_factory.mktemp("deploy")))


def rendered(deploy: Path, overlay: str) -> list[dict[str, Any]]:
    if overlay not in _rendered:
        _rendered[overlay] = check_manifests.render(deploy, overlay)
    return _rendered[overlay]


def by_name(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def workloads(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("Deployment", "StatefulSet", "Job"):
        for name, document in by_name(documents, kind).items():
            yield name, document["spec"]["template"]["spec"]
    for name, document in by_name(documents, "CronJob").items():
        yield name, document["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_the_manifests_satisfy_the_schemas_and_an_unknown_field_does_not() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/check_manifests.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}
    assert check_manifests.find_errors(service) == []
    service["spec"] = {"portz": []}
    assert check_manifests.find_errors(service) == [
        f"Kubernetes {version}: spec: Additional properties are not allowed ('portz' was unexpected)"
        for version in check_manifests.VERSIONS
    ]
    unknown = check_manifests.find_errors({"apiVersion": "v1", "kind": "Gadget", "metadata": {"name": "a"}})
    assert [error.partition(" for kubernetes")[0] for error in unknown] == [
        "Couldn't find schema for kind Gadget with api version v1" for _ in check_manifests.VERSIONS
    ]


@pytest.mark.parametrize("overlay", check_manifests.OVERLAYS)
def test_every_container_is_restricted_and_declares_its_resources(deploy: Path, overlay: str) -> None:
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
            assert {"cpu", "memory", "ephemeral-storage"} == container["resources"]["requests"].keys(), where
            assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys(), where
            assert container["imagePullPolicy"] == "IfNotPresent", where
            assert container["command"], where
            assert not container["image"].endswith(":latest"), where
            assert ":" in container["image"], where


@pytest.mark.parametrize("overlay", ["overlays/minikube", "overlays/production"])
def test_no_overlay_has_less_memory_than_the_configured_limits_are_made_for(deploy: Path, overlay: str) -> None:
    def limits(overlay: str) -> dict[str, int]:
        deployments = by_name(rendered(deploy, overlay), "Deployment")
        specs = {name: deployments[name]["spec"]["template"]["spec"] for name in SERVICES}
        texts = {name: spec["containers"][0]["resources"]["limits"]["memory"] for name, spec in specs.items()}
        return {name: int(text.removesuffix("Mi")) for name, text in texts.items()}

    base, own = limits("base"), limits(overlay)
    assert {name: own[name] for name in base if own[name] < base[name]} == {}


@pytest.mark.parametrize("overlay", ["base", "overlays/minikube", "overlays/production"])
def test_every_service_has_probes_a_disruption_budget_and_an_account(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    scaled = by_name(documents, "HorizontalPodAutoscaler")
    for name in SERVICES:
        deployment = by_name(documents, "Deployment")[name]
        spec = deployment["spec"]["template"]["spec"]
        container = spec["containers"][0]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert spec["serviceAccountName"] == name
        assert by_name(documents, "ServiceAccount")[name]["automountServiceAccountToken"] is False
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert 9090 not in [p["port"] for p in by_name(documents, "Service")[name]["spec"].get("ports", [])]
        # The number of pods is the autoscaler's, if there is one.
        assert ("replicas" in deployment["spec"]) == (name not in scaled)
        if overlay != "overlays/minikube":
            budget = by_name(documents, "PodDisruptionBudget")[name]["spec"]
            # A pod that is not ready protects nobody, and must not block the drain of its node.
            assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
            assert (name in scaled) == (name != "notification-service")
            if name in scaled:
                # Relative to what a pod used under heavy load: an absolute target may be out of reach on full nodes.
                [metric] = scaled[name]["spec"]["metrics"]
                assert metric["resource"]["target"] == {"type": "Utilization", "averageUtilization": 60}
    assert set(by_name(documents, "StatefulSet")) == (set() if overlay == "overlays/production" else set(STORES))


@pytest.mark.parametrize("overlay", ["base", "overlays/minikube", "overlays/production"])
def test_a_deleted_pod_serves_until_the_ingress_has_noticed_and_may_finish(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    for name, package in SERVICES.items():
        spec = by_name(documents, "Deployment")[name]["spec"]["template"]["spec"]
        config = loaded(documents, name, package)
        # Unready from the first moment. On busy nodes an ingress controller noticed after 12.5 s (decision 8).
        assert "lifecycle" not in spec["containers"][0]
        assert config.shutdown.drain_seconds >= 20
        assert spec["terminationGracePeriodSeconds"] > config.shutdown.drain_seconds + config.shutdown.grace_seconds
        # The longest deadline is an order's.
        assert config.shutdown.grace_seconds > 10


def loaded(documents: list[dict[str, Any]], name: str, package: str) -> Any:
    """Return the configuration of the service's pods, parsed by the service's own code."""
    spec = by_name(documents, "Deployment")[name]["spec"]["template"]["spec"]
    volume = next(v for v in spec["volumes"] if v["name"] == "config")
    text = by_name(documents, "ConfigMap")[volume["configMap"]["name"]]["data"]["config.yaml"]
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "x")
    # In production, from the examples of the Secrets and of sign-in.env.
    for source in spec["containers"][0].get("envFrom", []):
        if "configMapRef" in source:
            environ |= by_name(documents, "ConfigMap")[source["configMapRef"]["name"]]["data"]
            continue
        data = by_name(documents, "Secret").get(source["secretRef"]["name"], {}).get("data", {})
        environ |= {key: base64.b64decode(value).decode() for key, value in data.items() if value}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(text)
        return kit_config.load(path, importlib.import_module(f"market.{package}.config").Config, environ)


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
@pytest.mark.parametrize("name", SERVICES)
def test_every_service_accepts_its_configuration(deploy: Path, overlay: str, name: str) -> None:
    documents = rendered(deploy, overlay)
    config = loaded(documents, name, SERVICES[name])
    assert (config.admin.port, config.testing, config.faults) == (9090, False, None)
    # Every environment variable in the file is in the pod's Secret, or in the ConfigMap sign-in.
    spec = by_name(documents, "Deployment")[name]["spec"]["template"]["spec"]
    text = next(
        d["data"]["config.yaml"]
        for d in documents
        if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith(name)
    )
    if variables := set(re.findall(r"\$\{(\w+)\}", text)):
        if overlay == "overlays/production":
            found: set[str] = set()
            for source in spec["containers"][0]["envFrom"]:
                kind, reference = ("Secret", "secretRef") if "secretRef" in source else ("ConfigMap", "configMapRef")
                found |= by_name(documents, kind)[source[reference]["name"]]["data"].keys()
            entries = (entry for entry in spec["containers"][0]["env"] if "valueFrom" in entry)
            for entry in entries:
                key = entry["valueFrom"]["secretKeyRef"]
                assert key["key"] in by_name(documents, "Secret")[key["name"]]["data"]
                found.add(entry["name"])
            assert variables <= found
        else:
            assert all(name in (ROOT / "scripts/deploy.sh").read_text() for name in variables)


# Not production: that server is not ours.
@pytest.mark.parametrize("overlay", ["base", "overlays/minikube"])
def test_postgresql_allows_the_connections_of_all_pods(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    connections = 0
    for name, package in (("product-service", "products"), ("inventory-service", "inventory")):
        scaler = by_name(documents, "HorizontalPodAutoscaler").get(name)
        pods = scaler["spec"]["maxReplicas"] if scaler else 1
        connections += (pods + 1) * loaded(documents, name, package).postgres.pool_size
    allowed = re.search(
        r"max_connections = (\d+)", (ROOT / "deploy/base/stores/postgresql/postgresql.conf").read_text()
    )
    assert allowed
    assert connections + 10 <= int(allowed[1])


def test_names_end_in_a_hash_so_that_a_change_restarts_the_pods(deploy: Path) -> None:
    documents = rendered(deploy, "base")
    assert all(re.fullmatch(r"[a-z-]+-[0-9a-z]{10}", name) for name in by_name(documents, "ConfigMap"))
    production = rendered(deploy, "overlays/production")
    assert all(re.fullmatch(r"[a-z-]+-[0-9a-z]{10}", name) for name in by_name(production, "Secret"))


def test_a_changed_secret_rolls_the_pods_that_use_it_and_no_others(deploy: Path, tmp_path: Path) -> None:
    changed = Path(check_manifests.copy_with_examples(tmp_path))
    secret = changed / "overlays/production/secrets/product-service.env"
    secret.write_text(secret.read_text().replace("MARKET_POSTGRES_PASSWORD=", "MARKET_POSTGRES_PASSWORD=new-"))
    before = by_name(rendered(deploy, "overlays/production"), "Deployment")
    after = by_name(check_manifests.render(changed, "overlays/production"), "Deployment")
    assert {name for name in before if before[name]["spec"]["template"] != after[name]["spec"]["template"]} == {
        "product-service"
    }


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
def test_the_ingress_depends_on_no_controller_and_has_a_certificate_in_production(deploy: Path, overlay: str) -> None:
    ingress = by_name(rendered(deploy, overlay), "Ingress")["market"]
    # For ingress-nginx; others ignore them.
    sizes = {"proxy-buffer-size": "16k", "proxy-body-size": "4m"} if overlay == "overlays/production" else {}
    expected = {f"nginx.ingress.kubernetes.io/{name}": size for name, size in sizes.items()}
    assert ingress["metadata"].get("annotations", {}) == expected
    paths = {p["path"]: p["backend"]["service"]["name"] for p in ingress["spec"]["rules"][0]["http"]["paths"]}
    assert paths == {
        "/": "storefront-service",
        "/graphql": "graphql-service",
        "/graphiql": "graphql-service",
        "/api/product": "product-service",
        "/api/order": "order-service",
    }
    assert ("tls" in ingress["spec"]) == (overlay == "overlays/production")


def test_no_file_with_secrets_is_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "deploy"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.split()
    assert not [name for name in tracked if name.endswith(".env")]
