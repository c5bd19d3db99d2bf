"""The manifests as files for a GitOps repository, and how Secrets get into a cluster without the script."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import KUBECTL, ROOT, FakeCommands
from tests.deploy.test_manifests import by_name, check_manifests

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which renders the manifests, is not installed")
PRODUCTION_SECRETS = [
    "inventory-service",
    "notification-service",
    "order-service",
    "product-service",
    "storefront-service",
]
# As sops 3.11 writes it, without the keys of the file.
ENCRYPTED = "ENC[AES256_GCM,data:rpDFSF4=,iv:bG585BrEJ8+gHs82/734CwAz/0+aGo+Y1v0gQtzIcAQ=,tag:CJpwSHE=,type:str]"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the project, with the settings that production requires but without its Secrets."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    deploy = check_manifests.copy_with_examples(root)
    secrets = deploy / "overlays/production/secrets"
    for file in (*secrets.glob("*.env"), secrets / "cookie-secrets"):
        file.unlink()
    sign_in = deploy / "overlays/production/sign-in.env"
    sign_in.write_text(sign_in.read_text().replace("id.example.com", "id.shop.test"))
    return root


def read(directory: Path) -> list[dict[str, Any]]:
    """Return the objects that the rendered kustomization.yaml lists, which are all files of the directory."""
    names = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
    assert sorted([*names, "kustomization.yaml"]) == sorted(path.name for path in directory.iterdir())
    return [yaml.safe_load((directory / name).read_text()) for name in names]


def secrets_used(documents: list[dict[str, Any]]) -> set[str]:
    """Return the names of the Secrets that the services' containers use."""
    specs = [d["spec"]["template"]["spec"] for d in by_name(documents, "Deployment").values()]
    sources = [s for spec in specs for container in spec["containers"] for s in container.get("envFrom", [])]
    volumes = [volume for spec in specs for volume in spec.get("volumes", [])]
    return {
        *(source["secretRef"]["name"] for source in sources if "secretRef" in source),
        *(volume["secret"]["secretName"] for volume in volumes if "secret" in volume),
    }


@pytest.mark.parametrize(
    ("options", "kind", "needed"),
    [
        ([], None, "inventory-service, mongodb, order-service, postgresql, product-service, redis, storefront-service"),
        (
            ["--overlay", "minikube"],
            None,
            "inventory-service, mongodb, order-service, postgresql, product-service, redis, storefront-service",
        ),
        (["--overlay", "production"], None, ", ".join(sorted([*PRODUCTION_SECRETS, "shop-tls"]))),
        (["--overlay", "production", "--secrets", "external-secrets"], "ExternalSecret", "shop-tls"),
        (["--overlay", "production", "--secrets", "sealed-secrets"], "SealedSecret", "shop-tls"),
    ],
)
def test_rendered_manifests_are_valid_and_have_no_secret_and_no_cluster_is_contacted(
    fake_commands: FakeCommands, project: Path, tmp_path: Path, options: list[str], kind: str | None, needed: str
) -> None:
    registry = ["--registry", "registry.example.com/shop", "--image-tag", "t1"]
    done = fake_commands.run("deploy.sh", "--render", str(tmp_path / "out"), *registry, *options, root=project)
    assert done.returncode == 0, done.stderr
    documents = read(tmp_path / "out")
    assert [error for document in documents for error in check_manifests.find_errors(document)] == []
    assert by_name(documents, "Secret") == {}
    assert done.stdout.splitlines()[1:] == [f"Something else must create these Secrets: {needed}"]
    assert [call for call in fake_commands.calls() if not call.startswith("kubectl kustomize ")] == []
    deployments = by_name(documents, "Deployment")
    images = {d["spec"]["template"]["spec"]["containers"][0]["image"] for d in deployments.values()}
    assert "registry.example.com/shop/orders:t1" in images
    assert all(image.startswith("registry.example.com/shop/") and image.endswith(":t1") for image in images)
    if kind:
        created = by_name(documents, kind)
        assert sorted(created) == PRODUCTION_SECRETS == sorted(secrets_used(documents))
        for name, document in created.items():
            spec = document["spec"]
            keys = spec["encryptedData"] if kind == "SealedSecret" else [entry["secretKey"] for entry in spec["data"]]
            example = ROOT / f"deploy/overlays/production/secrets/{name}.env.example"
            lines = [line for line in example.read_text().splitlines() if not line.startswith("#")]
            files = ["cookie-secrets"] if name == "storefront-service" else []
            assert sorted(keys) == sorted([line.partition("=")[0] for line in lines] + files)
            # The name stays the same when the value changes, so something must restart the pods.
            assert deployments[name]["metadata"]["annotations"] == {"reloader.stakater.com/auto": "true"}


def test_files_that_still_have_the_names_of_the_example_are_listed(
    fake_commands: FakeCommands, project: Path, tmp_path: Path
) -> None:
    overlay = project / "deploy/overlays/production"
    changed = [path for path in sorted(overlay.glob("config/*.yaml")) if path.stem != "order-service"]
    for path in (*changed, overlay / "ingress.yaml"):
        path.write_text(path.read_text().replace("example.com", "example.net"))
    options = ["--render", str(tmp_path / "out"), "--overlay", "production"]
    done = fake_commands.run("deploy.sh", *options, root=project)
    assert done.returncode == 0
    assert done.stderr == (
        "note: these files in deploy/overlays/production still have names of the example, below example.com: "
        "config/order-service.yaml\n"
    )
    path = overlay / "config/order-service.yaml"
    path.write_text(path.read_text().replace("example.com", "example.net"))
    assert fake_commands.run("deploy.sh", *options, root=project).stderr == ""


def test_the_certificate_of_cert_manager_is_not_among_the_secrets_that_something_else_must_create(
    fake_commands: FakeCommands, project: Path, tmp_path: Path
) -> None:
    overlay = project / "deploy/overlays/production/kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("  - secrets\n", "  - secrets\n  - ../../components/cert-manager\n"))
    options = ["--render", str(tmp_path / "out"), "--overlay", "production"]
    done = fake_commands.run("deploy.sh", *options, root=project)
    assert done.stdout.splitlines()[1:] == [
        f"Something else must create these Secrets: {', '.join(PRODUCTION_SECRETS)}"
    ]


def test_rendering_again_replaces_the_files_and_another_folder_is_left_alone(
    fake_commands: FakeCommands, project: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert fake_commands.run("deploy.sh", "--render", str(out), root=project).returncode == 0
    before = {path.name for path in out.iterdir()}
    config = project / "deploy/base/services/config/graphql-service.yaml"
    config.write_text(config.read_text() + "# changed\n")
    (out / "README.md").write_text("of the operator")
    assert fake_commands.run("deploy.sh", "--render", str(out), root=project).returncode == 0
    after = {path.name for path in out.iterdir()} - {"README.md"}
    # The name ends in a hash of the content.
    assert {name.rpartition("-")[0] for name in before ^ after} == {"v1_configmap_graphql-service"}
    assert len(before - after) == len(after - before) == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("x")
    done = fake_commands.run("deploy.sh", "--render", str(mine), root=project)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {mine} is not empty, and was not rendered by this script\n",
    )
    assert [path.name for path in mine.iterdir()] == ["notes"]


def test_rendering_refuses_an_overlay_with_a_secret_in_plain_text(
    fake_commands: FakeCommands, project: Path, tmp_path: Path
) -> None:
    overlay = project / "deploy/overlays/production/kustomization.yaml"
    overlay.write_text(overlay.read_text() + "secretGenerator: [{name: own, literals: [PASSWORD=plain]}]\n")
    options = ["--render", str(tmp_path / "out"), "--overlay", "production"]
    done = fake_commands.run("deploy.sh", *options, root=project)
    assert done.returncode == 1
    assert "the overlay has a Secret, which must not be in plain text in a repository" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--render", "/nowhere", "--build"],
        ["--secrets", "external-secrets", "--overlay", "production"],
        ["--render", "/nowhere", "--secrets", "external-secrets"],
        ["--render", "/nowhere", "--secrets", "files", "--overlay", "production"],
        ["--render"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(fake_commands: FakeCommands, options: list[str]) -> None:
    assert fake_commands.run("deploy.sh", *options).returncode == 2
    assert fake_commands.calls() == []


def render_with_passwords(folder: Path, password: str) -> dict[str, Any]:
    """Return the pod templates of minikube with generated Secrets, by name, as plain kustomize renders them."""
    deploy = check_manifests.copy_with_examples(folder)
    (deploy / "components/secrets/passwords/password.conf").write_text(f"requirepass {password}\n")
    overlay = deploy / "overlays/own"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "namespace: market\nresources: [../minikube]\ncomponents: [../../components/secrets/passwords]\n"
    )
    documents = check_manifests.render(deploy, "overlays/own")
    assert [error for d in by_name(documents, "Secret").values() for error in check_manifests.find_errors(d)] == []
    assert sorted(name.rpartition("-")[0] for name in by_name(documents, "Secret")) == [
        "inventory-service",
        "mongodb",
        "order-service",
        "postgresql",
        "product-service",
        "redis",
        "storefront-service",
    ]
    workloads = by_name(documents, "Deployment") | by_name(documents, "StatefulSet")
    return {name: workload["spec"]["template"] for name, workload in workloads.items()}


def test_without_the_script_too_a_changed_password_restarts_the_pods_that_use_it(tmp_path: Path) -> None:
    before = render_with_passwords(tmp_path / "before", "first")
    after = render_with_passwords(tmp_path / "after", "second")
    assert {name for name in before if before[name] != after[name]} == {"redis"}


def test_secrets_encrypted_by_sops_render_with_hashed_names(project: Path) -> None:
    deploy = project / "deploy"
    for name in PRODUCTION_SECRETS:
        text = f"MARKET_POSTGRES_PASSWORD={ENCRYPTED}\nsops_mac={ENCRYPTED}\nsops_version=3.11.0\n"
        (deploy / f"overlays/production/secrets/{name}.env").write_text(text)
    (deploy / "overlays/production/secrets/cookie-secrets").write_text(f'{{"data": "{ENCRYPTED}"}}')
    documents = check_manifests.render(deploy, "overlays/production")
    assert [error for document in documents for error in check_manifests.find_errors(document)] == []
    assert secrets_used(documents) == set(by_name(documents, "Secret"))
    assert sorted(name.rpartition("-")[0] for name in secrets_used(documents)) == PRODUCTION_SECRETS


def test_the_example_for_flux_is_valid_and_names_every_image(project: Path) -> None:
    (flux,) = check_manifests.render(project / "deploy", "examples/flux-sops")
    assert check_manifests.find_errors(flux) == []
    documents = check_manifests.render(project / "deploy", "base/services")
    pods = [d["spec"]["template"]["spec"] for d in by_name(documents, "Deployment").values()]
    used = {pod["containers"][0]["image"].removesuffix(":dev") for pod in pods}
    assert {image["name"] for image in flux["spec"]["images"]} == used
    flux["spec"]["decryption"] = {"provider": "sopz"}
    assert check_manifests.find_errors(flux) == [
        "kustomization-kustomize.toolkit.fluxcd.io-v1: spec.decryption.provider: 'sopz' is not one of ['sops']"
    ]
