"""Mutual TLS between inventory and its callers, on a cluster that enforces the network policies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.disturbance import run_load
from tests.cluster.load import Load
from tests.cluster.test_a_deploy import copy_project
from tests.support.certificates import make_authority, make_certificate

SIDES = ("product-service", "order-service", "inventory-service")
FILES = {
    "ca_file": "/var/run/secrets/grpc/ca.crt",
    "cert_file": "/var/run/secrets/grpc/tls.crt",
    "key_file": "/var/run/secrets/grpc/tls.key",
}
# Prints the name of the authority that has signed the certificate that inventory shows to this pod.
SHOWN = """
import socket, ssl, sys
folder = "/var/run/secrets/grpc/"
context = ssl.create_default_context(cafile=folder + "ca.crt")
context.load_cert_chain(folder + "tls.crt", folder + "tls.key")
context.set_alpn_protocols(["h2"])
with socket.create_connection(("inventory-service", 50051), 10) as plain:
    with context.wrap_socket(plain, server_hostname="inventory-service") as tls:
        print(dict(pair for (pair,) in tls.getpeercert()["issuer"])["commonName"])
"""
# Prints what a call without TLS gets.
UNENCRYPTED = """
import grpc
from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryStub
try:
    InventoryStub(grpc.insecure_channel("inventory-service:50051")).GetStock(pb.GetStockRequest(), timeout=10)
    print("OK")
except grpc.RpcError as e:
    print(e.code().name)
"""


class Authorities:
    """Two authorities that every side trusts. `sign`: gives each side a certificate of one of them, as a Secret."""

    def __init__(self, folder: Path) -> None:
        self._files = {}
        for name in ("first", "second"):
            (folder / name).mkdir()
            self._files[name] = make_authority(folder / name, name)
        self._trusted = folder / "ca.crt"
        self._trusted.write_text("".join(file.read_text() for file in self._files.values()))

    def sign(self, authority: str) -> None:
        for side in SIDES:
            certificate, key = make_certificate(self._files[authority], side)
            files = {"ca.crt": self._trusted, "tls.crt": certificate, "tls.key": key}
            arguments = [f"--from-file={name}={file}" for name, file in files.items()]
            secret = cluster.kubectl(
                "create", "secret", "generic", f"{side}-grpc", *arguments, "--dry-run=client", "-o", "yaml"
            )
            cluster.kubectl("apply", "-f", "-", stdin=secret)


def run_in(name: str, program: str) -> str:
    pod = cluster.names(name)[-1]
    return cluster.kubectl("exec", pod, "-c", "service", "--", "python", "-c", program)


@pytest.fixture(scope="module")
def authorities(shop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authorities]:
    """The shop with mutual TLS; afterwards it is without."""
    folder = tmp_path_factory.mktemp("mutual-tls")
    authorities = Authorities(folder)
    authorities.sign("first")
    deploy = copy_project(folder / "project") / "deploy"
    # There is no cert-manager in the test cluster.
    component = deploy / "components/mutual-tls/kustomization.yaml"
    component.write_text(component.read_text().replace("resources: [certificates.yaml]\n", ""))
    kustomization = deploy / "base/kustomization.yaml"
    kustomization.write_text(kustomization.read_text() + "components: [../components/mutual-tls]\n")
    for name in SIDES:
        path = deploy / f"base/services/config/{name}.yaml"
        config = yaml.safe_load(path.read_text())
        config["grpc" if name == "inventory-service" else "inventory"]["tls"] = FILES
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        cluster.deploy(root=deploy.parent)
        cluster.wait_until_all_are_ready()
        yield authorities
    finally:
        cluster.deploy()
        cluster.kubectl("delete", "secret", "--ignore-not-found", *(f"{side}-grpc" for side in SIDES))
        cluster.wait_until_all_are_ready()


def test_inventory_is_reached_over_tls_only(authorities: Authorities) -> None:
    for name in ("product-service", "order-service"):
        assert run_in(name, SHOWN) == "first"
        assert run_in(name, UNENCRYPTED) == "UNAVAILABLE"


async def test_certificates_that_are_replaced_are_used_without_a_restart_and_fail_no_request(
    authorities: Authorities, shop: str, products: list[str], report: Report
) -> None:
    before = {name: cluster.names(name) for name in SIDES}

    def replace(_: Load) -> None:
        authorities.sign("second")
        # The kubelet replaces the files of a pod within a minute or two.
        seconds = cluster.seconds_until(
            "inventory shows the new certificate", lambda: run_in("order-service", SHOWN) == "second", 300
        )
        report["certificates of gRPC are in use after"] = round(seconds, 1)

    load = await run_load(shop, products, report, "certificates of gRPC replaced", replace)
    assert load.failures == []
    assert {name: cluster.names(name) for name in SIDES} == before
