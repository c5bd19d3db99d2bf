"""How production reaches its stores, and how its autoscalers behave."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import KUBECTL, ROOT
from tests.deploy.test_manifests import SERVICES, by_name, check_manifests, loaded

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not installed")


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the manifests, with a further component in production."""
    deploy = Path(check_manifests.copy_with_examples(tmp_path_factory.mktemp("deploy")))
    overlay = deploy / "overlays/production/kustomization.yaml"
    text = overlay.read_text()
    overlay.write_text(text.replace("\n  - secrets\n", "\n  - secrets\n  - ../../components/public-stores\n"))
    return deploy


@pytest.fixture(scope="module")
def production(deploy: Path) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = check_manifests.render(deploy, "overlays/production")
    return documents


def test_every_connection_to_a_store_is_encrypted_and_verified(production: list[dict[str, Any]]) -> None:
    config = {package: loaded(production, name, package) for name, package in SERVICES.items()}
    assert {config[name].postgres.tls.mode for name in ("products", "inventory")} == {"verify-full"}
    assert config["products"].redis.url.startswith("rediss://")
    assert "tls=true" in config["orders"].mongodb.uri
    assert "Insecure" not in config["orders"].mongodb.uri
    for name in ("orders", "notifications"):
        assert config[name].kafka.options["security.protocol"] == "SASL_SSL"
        # librdkafka verifies the certificate and the host name unless it is told not to.
        assert not any("verif" in key or "identification" in key for key in config[name].kafka.options)
    assert config["notifications"].smtp.tls == "starttls"


def test_the_rules_for_public_stores_cover_each_port_and_no_private_address(
    production: list[dict[str, Any]],
) -> None:
    policies = by_name(production, "NetworkPolicy")
    public = {name: policy for name, policy in policies.items() if name.startswith("public-")}
    assert [error for policy in public.values() for error in check_manifests.find_errors(policy)] == []
    for name, policy in public.items():
        private = policies[f"{name.removeprefix('public-')}-clients"]
        assert policy["spec"]["podSelector"] == private["spec"]["podSelector"]
        port, ports = private["spec"]["egress"][0]["ports"][0]["port"], policy["spec"]["egress"][0]["ports"][0]
        assert ports["port"] <= port <= ports.get("endPort", ports["port"])
        block = policy["spec"]["egress"][0]["to"][0]["ipBlock"]
        excluded = [ipaddress.ip_network(network) for network in block["except"]]
        for address in ("10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"):
            assert any(ipaddress.ip_address(address) in network for network in excluded), address
    assert len(public) == 4


@pytest.mark.parametrize(("overlay", "window"), [("base", 120), ("overlays/production", 300)])
def test_autoscalers_double_in_half_a_minute_and_shrink_pod_by_pod(deploy: Path, overlay: str, window: int) -> None:
    scalers = by_name(check_manifests.render(deploy, overlay), "HorizontalPodAutoscaler")
    assert len(scalers) == 5
    for scaler in scalers.values():
        assert scaler["spec"]["behavior"] == {
            "scaleUp": {
                "stabilizationWindowSeconds": 0,
                "selectPolicy": "Max",
                "policies": [
                    {"type": "Percent", "value": 100, "periodSeconds": 30},
                    {"type": "Pods", "value": 2, "periodSeconds": 30},
                ],
            },
            "scaleDown": {
                "stabilizationWindowSeconds": window,
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}],
            },
        }


def test_the_network_policy_for_a_mesh_is_valid_and_admits_its_traffic_in_both_directions() -> None:
    text = (ROOT / "docs/security.md").read_text().partition("## Encryption inside the cluster")[2]
    policy = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert check_manifests.find_errors(policy) == []
    ports = [
        {port["port"] for rule in policy["spec"][direction] for port in rule["ports"]}
        for direction in ("ingress", "egress")
    ]
    assert ports == [{15008, 9090}, {15008}]
