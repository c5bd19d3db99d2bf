"""How the shop is reached (Ingress, Gateway API, certificates, both IP families), and where its pods run."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.conftest import KUBECTL, FakeCommands
from tests.deploy.test_manifests import SERVICES, STORES, by_name, check_manifests, loaded, workloads

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not installed")
OVERLAYS = ["base", "overlays/production"]


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(check_manifests.copy_with_examples(tmp_path_factory.mktemp("deploy")))


@pytest.fixture(scope="module")
def rendered(deploy: Path) -> dict[str, list[dict[str, Any]]]:
    return {overlay: check_manifests.render(deploy, overlay) for overlay in OVERLAYS}


def production_with(folder: Path, component: str) -> list[dict[str, Any]]:
    """Return the objects of production with a further component, each of them valid."""
    deploy = check_manifests.copy_with_examples(folder)
    overlay = deploy / "overlays/production/kustomization.yaml"
    text = overlay.read_text()
    overlay.write_text(text.replace("\n  - secrets\n", f"\n  - secrets\n  - ../../components/{component}\n"))
    documents: list[dict[str, Any]] = check_manifests.render(deploy, "overlays/production")
    kinds = ("HTTPRoute", "Issuer", "Certificate", "NetworkPolicy")
    checked = [document for document in documents if document["kind"] in kinds]
    assert [error for document in checked for error in check_manifests.find_errors(document)] == []
    return documents


def test_gateway_api_leads_to_the_same_services_as_the_ingress_that_it_replaces(
    deploy: Path, rendered: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    documents = production_with(tmp_path, "gateway")
    assert by_name(documents, "Ingress") == {}
    route = by_name(documents, "HTTPRoute")["market"]
    ingress = by_name(rendered["overlays/production"], "Ingress")["market"]["spec"]["rules"][0]
    assert route["spec"]["hostnames"] == [ingress["host"]]
    backends = {
        match["path"]["value"]: rule["backendRefs"][0]["name"]
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    }
    assert backends == {path["path"]: path["backend"]["service"]["name"] for path in ingress["http"]["paths"]}
    for rule in route["spec"]["rules"]:
        service = by_name(documents, "Service")[rule["backendRefs"][0]["name"]]
        assert rule["backendRefs"][0]["port"] == service["spec"]["ports"][0]["port"]
    # Its example fits.
    example = check_manifests.render(deploy, "examples/gateway")
    assert [error for document in example for error in check_manifests.find_errors(document)] == []
    gateway = by_name(example, "Gateway")["market"]
    parent = route["spec"]["parentRefs"][0]
    assert (parent["name"], parent["namespace"]) == (gateway["metadata"]["name"], gateway["metadata"]["namespace"])
    listener = gateway["spec"]["listeners"][0]
    assert (parent["sectionName"], route["spec"]["hostnames"]) == (listener["name"], [listener["hostname"]])


def test_deploy_with_gateway_api_needs_no_ingress_controller(minikube: FakeCommands, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "scripts").symlink_to(Path(__file__).parents[2] / "scripts")
    deploy = check_manifests.copy_with_examples(root)
    overlay = deploy / "base/kustomization.yaml"
    minikube.results |= {"get ingressclasses": "", "minikube\\.k8s\\.io/name": ""}
    options = ["--overlay", "base", "--registry", "registry.example.com/shop", "--image-tag", "t1"]
    assert minikube.run("deploy.sh", *options, "--check", root=root).returncode == 3
    overlay.write_text(overlay.read_text() + "components:\n  - ../components/gateway\n")
    minikube.results["get httproute market"] = "shop.example.com"
    done = minikube.run("deploy.sh", *options, root=root)
    assert done.returncode == 0, done.stderr
    assert "Shop:      https://shop.example.com/" in done.stdout


def test_the_certificate_is_the_one_that_the_ingress_uses(tmp_path: Path) -> None:
    documents = production_with(tmp_path, "cert-manager")
    certificate = by_name(documents, "Certificate")["shop"]["spec"]
    tls = by_name(documents, "Ingress")["market"]["spec"]["tls"][0]
    assert (certificate["secretName"], certificate["dnsNames"]) == (tls["secretName"], tls["hosts"])
    assert certificate["issuerRef"]["name"] in by_name(documents, "Issuer")
    # The ingress controller must reach the pods of the challenge, too.
    policies = by_name(documents, "NetworkPolicy")
    assert (
        policies["acme-challenge"]["spec"]["ingress"][0]["from"]
        == (policies["ingress-controller"]["spec"]["ingress"][0]["from"])
    )


def test_mutual_tls_gives_inventory_and_its_callers_a_certificate_each(tmp_path: Path) -> None:
    documents = production_with(tmp_path, "mutual-tls")
    certificates = by_name(documents, "Certificate")
    for name in ("product-service", "order-service", "inventory-service"):
        pod = by_name(documents, "Deployment")[name]["spec"]["template"]["spec"]
        assert {"name": "grpc", "mountPath": "/var/run/secrets/grpc", "readOnly": True} in pod["containers"][0][
            "volumeMounts"
        ]
        [volume] = [volume for volume in pod["volumes"] if volume["name"] == "grpc"]
        assert certificates[f"{name}-grpc"]["spec"]["secretName"] == volume["secret"]["secretName"]
        assert certificates[f"{name}-grpc"]["spec"]["issuerRef"]["name"] in by_name(documents, "Issuer")
    # Callers verify the name by which they call.
    target = urlsplit(loaded(documents, "order-service", "orders").inventory.target)
    assert certificates["inventory-service-grpc"]["spec"]["dnsNames"] == [target.path.strip("/").split(":")[0]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_have_an_address_of_each_family_and_listen_on_both(
    rendered: dict[str, list[dict[str, Any]]], overlay: str
) -> None:
    documents = rendered[overlay]
    for name, package in SERVICES.items():
        assert by_name(documents, "Service")[name]["spec"]["ipFamilyPolicy"] == "PreferDualStack"
        config = loaded(documents, name, package)
        listening = [getattr(config, section).host for section in ("admin", "http", "grpc") if hasattr(config, section)]
        assert set(listening) == {"::"}, name
        if hasattr(config, "http"):
            assert {network.version for network in config.http.trusted_networks} == {4, 6}


def test_every_address_range_that_production_may_connect_to_has_one_of_ipv6(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    ranges: dict[int, dict[str, Any]] = {4: {}, 6: {}}
    for name, policy in by_name(rendered["overlays/production"], "NetworkPolicy").items():
        if name == "dns":
            continue
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if block := peer.get("ipBlock"):
                    version = ipaddress.ip_network(block["cidr"]).version
                    found = (policy["spec"]["podSelector"], rule["ports"])
                    ranges[version][name.removesuffix("-ipv6")] = found
    assert len(ranges[4]) == 7
    assert ranges[6] == ranges[4]


@pytest.mark.parametrize("overlay", [*OVERLAYS, "overlays/minikube"])
def test_stores_and_inventory_outlive_the_gateway_when_nodes_run_out_of_room(deploy: Path, overlay: str) -> None:
    documents = check_manifests.render(deploy, overlay)
    classes = by_name(documents, "PriorityClass")
    # In a drain, the shop's pods once evicted the ingress controller, which has no class.
    assert {document["preemptionPolicy"] for document in classes.values()} == {"Never"}
    values = {name: document["value"] for name, document in classes.items()}
    deployed = {**by_name(documents, "Deployment"), **by_name(documents, "StatefulSet")}
    priority = {name: values[spec["priorityClassName"]] for name, spec in workloads(documents) if name in deployed}
    assert priority.keys() == {*SERVICES, *([] if overlay == "overlays/production" else STORES)}
    assert all(priority[store] > priority["inventory-service"] for store in STORES if store in priority)
    assert priority["inventory-service"] > priority["graphql-service"] > 0


def test_the_volumes_of_a_pod_fit_its_limit_of_ephemeral_storage(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    """Otherwise the pod is evicted before a volume is full. Five log files of 10 MiB belong to each container."""
    for name, spec in workloads(rendered["base"]):
        texts = [container["resources"]["limits"]["ephemeral-storage"] for container in spec["containers"]]
        limit = sum(int(text.removesuffix("Mi")) for text in texts)
        directories = [v["emptyDir"] for v in spec.get("volumes", []) if "emptyDir" in v]
        sizes = [d["sizeLimit"] for d in directories if d.get("medium") != "Memory"]
        used = sum(int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]] for text in sizes)
        assert limit >= used + 50 * len(texts), name


def test_production_spreads_strictly_over_nodes_that_take_pods(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for name, deployment in by_name(rendered["overlays/production"], "Deployment").items():
        constraints = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        by_key = {c["topologyKey"]: (c["whenUnsatisfiable"], c.get("nodeTaintsPolicy")) for c in constraints}
        assert len(by_key) == len(constraints), name
        assert by_key == {
            "kubernetes.io/hostname": ("DoNotSchedule", "Honor"),
            "topology.kubernetes.io/zone": ("ScheduleAnyway", None),
        }, name
