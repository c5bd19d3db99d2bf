"""Sign-in in the manifests: required in production, open on purpose elsewhere, with an identity for each service."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from market.contracts import access
from market.kit.config import ConfigError
from tests.cluster.sign_in import ADDED, URL, add_sign_in
from tests.deploy.conftest import KUBECTL, ROOT, FakeCommands
from tests.deploy.test_manifests import SERVICES, by_name, check_manifests, loaded, rendered, workloads

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not installed")

CALLERS = {"products": "product-service", "orders": "order-service"}
SERVICE_ACCOUNT = "system:serviceaccount:market"
MOUNT = "/var/run/secrets/market"


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(check_manifests.copy_with_examples(tmp_path_factory.mktemp("deploy")))


def config_text(documents: list[dict[str, Any]], name: str) -> str:
    """Return the text of the service's configuration."""
    maps = by_name(documents, "ConfigMap")
    [text] = [d["data"]["config.yaml"] for key, d in maps.items() if key.startswith(f"{name}-")]
    return str(text)


def projected(documents: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the sources of the service's projected volumes, by the path at which its container has them."""
    spec = by_name(documents, "Deployment")[name]["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"] if m.get("readOnly")}
    return {mounts[v["name"]]: v["projected"]["sources"] for v in spec["volumes"] if "projected" in v}


@pytest.mark.parametrize("overlay", ["base", "overlays/minikube"])
def test_a_test_cluster_is_open_on_purpose(deploy: Path, overlay: str) -> None:
    documents = rendered(deploy, overlay)
    for name, package in SERVICES.items():
        auth = loaded(documents, name, package).auth
        assert (auth.mode, auth.open_on_purpose) == ("open", True), name
        assert projected(documents, name) == {}


def test_production_requires_sign_in_at_the_issuer_of_the_setting(deploy: Path) -> None:
    documents = rendered(deploy, "overlays/production")
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", (deploy / "overlays/production/sign-in.env").read_text()))
    for name, package in SERVICES.items():
        auth = loaded(documents, name, package).auth
        assert (auth.mode, auth.open_on_purpose, auth.insecure_issuer) == ("required", False, False), name
        if name == "inventory-service":
            assert (auth.issuer, auth.audience) == (settings["MARKET_CLUSTER_ISSUER"], "market-inventory")
        else:
            assert auth.issuer == settings["MARKET_ISSUER"]
            assert (auth.audience, auth.roles_claim) == (settings["MARKET_AUDIENCE"], settings["MARKET_ROLES_CLAIM"])


@pytest.mark.parametrize("name", SERVICES)
def test_production_does_not_start_open_without_the_line_that_says_so(deploy: Path, tmp_path: Path, name: str) -> None:
    copy = Path(check_manifests.copy_with_examples(tmp_path))
    path = copy / "overlays/production/config" / f"{name}.yaml"
    path.write_text(path.read_text().replace("mode: required", "mode: open"))
    with pytest.raises(ConfigError, match=r"anybody could change everything.*open_on_purpose"):
        loaded(check_manifests.render(copy, "overlays/production"), name, SERVICES[name])
    path.write_text(path.read_text().replace("mode: open", "mode: open\n  open_on_purpose: true"))
    assert not loaded(check_manifests.render(copy, "overlays/production"), name, SERVICES[name]).auth.is_required


def test_the_callers_of_inventory_are_the_service_accounts_of_those_that_call_it(deploy: Path) -> None:
    documents = rendered(deploy, "overlays/production")
    inventory = loaded(documents, "inventory-service", "inventory").auth
    callers = {service for entry in access.INVENTORY.values() for service in entry.callers}
    deployments = by_name(documents, "Deployment")
    accounts = {
        service: deployments[CALLERS[service]]["spec"]["template"]["spec"]["serviceAccountName"] for service in callers
    }
    assert inventory.callers == {f"{SERVICE_ACCOUNT}:{account}": service for service, account in accounts.items()}
    for service in callers:
        name = CALLERS[service]
        identity = loaded(documents, name, service).service_identity
        # A token for inventory and nothing else, which the kubelet replaces.
        assert projected(documents, name) == {
            MOUNT: [
                {"serviceAccountToken": {"path": "token", "audience": inventory.audience, "expirationSeconds": 3600}}
            ]
        }
        assert identity.token_file == f"{MOUNT}/token"


def test_inventory_reads_the_keys_of_the_clusters_issuer_from_the_api_server(deploy: Path) -> None:
    documents = rendered(deploy, "overlays/production")
    auth = loaded(documents, "inventory-service", "inventory").auth
    assert auth.keys_url == "https://kubernetes.default.svc/openid/v1/jwks"
    [token, authority] = projected(documents, "inventory-service")[MOUNT]
    # Without an audience it is for the API server.
    assert token["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600}
    assert authority["configMap"] == {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert (auth.issuer_token_file, auth.issuer_ca_file) == (f"{MOUNT}/token", f"{MOUNT}/ca.crt")
    [binding] = by_name(documents, "ClusterRoleBinding").values()
    assert binding["roleRef"]["name"] == "system:service-account-issuer-discovery"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "inventory-service", "namespace": "market"}]


def test_no_other_pod_has_a_token(deploy: Path) -> None:
    for overlay in check_manifests.OVERLAYS:
        documents = rendered(deploy, overlay)
        for name, spec in workloads(documents):
            assert spec["automountServiceAccountToken"] is False, name
            tokens = [v for v in spec.get("volumes", []) if "serviceAccountToken" in str(v.get("projected"))]
            expected = overlay == "overlays/production" and name in (*CALLERS.values(), "inventory-service")
            assert len(tokens) == expected, (overlay, name)


def egress(documents: list[dict[str, Any]], name: str) -> set[int]:
    """Return the ports at addresses outside of the namespace to which the service's pods may connect."""
    ports = set()
    for policy in by_name(documents, "NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        labels = selector.get("matchLabels", {}).get("app.kubernetes.io/name")
        names = [labels] if labels else [v for e in selector.get("matchExpressions", []) for v in e["values"]]
        for rule in policy["spec"].get("egress", []) if name in names else []:
            if any("ipBlock" in to for to in rule["to"]):
                ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_the_network_lets_each_service_reach_its_issuer(deploy: Path) -> None:
    production, base = rendered(deploy, "overlays/production"), rendered(deploy, "base")
    for name in ("product-service", "order-service", "notification-service", "graphql-service", "storefront-service"):
        assert 443 in egress(production, name)
    assert {443, 6443} <= egress(production, "inventory-service")
    assert all(egress(base, name) == set() for name in SERVICES)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project whose production overlay has all secrets, and the example's sign-in."""
    shutil.copytree(ROOT / "scripts", tmp_path / "project/scripts")
    check_manifests.copy_with_examples(tmp_path / "project")
    return tmp_path / "project"


CLUSTER = '{"issuer":"https://oidc.cluster.example.net/1","jwks_uri":"https://10.0.0.1:6443/openid/v1/jwks"}'


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (None, "deploy/overlays/production/sign-in.env: copy sign-in.env.example"),
        ({}, "MARKET_ISSUER in deploy/overlays/production/sign-in.env is still that of the example"),
        ({"MARKET_ISSUER": "http://id.shop.test"}, "must be an https URL, got 'http://id.shop.test'"),
        ({"MARKET_ISSUER": ""}, "must be an https URL, got ''"),
        ({"MARKET_ISSUER": "https://id.shop.test", "MARKET_AUDIENCE": ""}, "MARKET_AUDIENCE"),
        (
            {"MARKET_ISSUER": "https://id.shop.test"},
            "must be https://oidc.cluster.example.net/1, got 'https://kubernetes.default.svc.cluster.local'",
        ),
        (
            {
                "MARKET_ISSUER": "https://id.shop.test",
                "MARKET_CLUSTER_ISSUER": "https://oidc.cluster.example.net/1",
            },
            None,
        ),
    ],
)
def test_deploy_checks_the_issuer_before_it_changes_anything(
    minikube: FakeCommands, project: Path, settings: dict[str, str] | None, missing: str | None
) -> None:
    path = project / "deploy/overlays/production/sign-in.env"
    if settings is None:
        path.unlink()
    for name, value in (settings or {}).items():
        path.write_text(re.sub(rf"(?m)^{name}=.*$", f"{name}={value}", path.read_text()))
    minikube.results["get --raw /.well-known/openid-configuration"] = CLUSTER
    done = minikube.run("deploy.sh", "--overlay", "production", "--image-tag", "t1", "--check", root=project)
    assert done.returncode == (3 if missing else 0), done.stderr
    assert (missing or "") in done.stderr
    assert not [call for call in minikube.calls() if "apply" in call]


def test_undeploy_removes_the_binding_outside_of_the_namespace(minikube: FakeCommands) -> None:
    binding = "clusterrolebinding.rbac.authorization.k8s.io/market-inventory-issuer-discovery"
    minikube.results |= {
        "get namespace market --ignore-not-found": "namespace/market",
        "get namespace -l": "namespace/market",
        "get clusterrolebindings": binding,
    }
    minikube.run("undeploy.sh", "--yes", "--timeout", "3")
    assert [call for call in minikube.calls() if "delete clusterrolebindings" in call]


def test_the_manifests_of_the_cluster_test_are_valid_and_require_sign_in(tmp_path: Path) -> None:
    """The cluster test itself runs on a cluster only (tests/cluster/test_sign_in.py)."""
    copy = Path(check_manifests.copy_with_examples(tmp_path))
    add_sign_in(copy, "https://kubernetes.default.svc.cluster.local")
    documents = check_manifests.render(copy, "base")
    assert [error for document in documents for error in check_manifests.find_errors(document)] == []
    for name, package in SERVICES.items():
        auth = loaded(documents, name, package).auth
        assert auth.is_required
        assert auth.issuer == ("https://kubernetes.default.svc.cluster.local" if package == "inventory" else URL)
    names = {f"{d['kind'].lower()}/{d['metadata']['name']}" for d in documents}
    assert set(ADDED) <= names
