"""The scripts, with fakes of the programs that they call: their calls, output and exit codes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT, FakeCommands

SCRIPTS = ("deploy.sh", "undeploy.sh", "restart.sh")
IMAGES = ("products", "orders", "inventory", "notifications", "graphql", "storefront", "testbed")


def builds(commands: FakeCommands) -> list[str]:
    return [call for call in commands.calls() if "image build" in call or call.startswith("docker build")]


def images(text: str) -> set[str]:
    return set(re.findall(r"image: (\S+)", text))


def test_deploy_to_minikube_builds_the_images_there_and_uses_its_overlay(minikube: FakeCommands) -> None:
    done = minikube.run("deploy.sh")
    assert done.returncode == 0, done.stderr
    tags = {call.split(" -t ")[1].split()[0] for call in builds(minikube)}
    tag = next(iter(tags)).rpartition(":")[2]
    assert tags == {f"market/{name}:{tag}" for name in IMAGES}
    # The argument is in the Dockerfile, and only what the build needs is in the context.
    assert "\nARG SERVICE=orders\n" in (minikube.folder / "Dockerfile-orders").read_text()
    sent = (minikube.folder / "context").read_text().splitlines()
    assert {path.split("/")[0] for path in sent} == {"Dockerfile", "requirements", "deploy", "dev", "src"}
    assert {i for i in images(minikube.applied()) if "market/" in i} == tags
    documents = list(yaml.safe_load_all(minikube.applied()))
    assert (
        next(d for d in documents if d["kind"] == "Service" and d["metadata"]["name"] == "graphql-service")["spec"][
            "type"
        ]
        == "NodePort"
    )
    assert "overlay minikube" in done.stdout
    assert "minikube service graphql-service -n market" in done.stdout
    assert "http://192.168.49.2/graphql" in done.stdout


def test_images_that_minikube_has_are_rebuilt_only_on_request(minikube: FakeCommands) -> None:
    assert minikube.run("deploy.sh", "--image-tag", "t1").returncode == 0
    assert len(builds(minikube)) == len(IMAGES)
    assert minikube.run("deploy.sh", "--image-tag", "t1").returncode == 0
    assert len(builds(minikube)) == len(IMAGES)
    assert minikube.run("deploy.sh", "--image-tag", "t1", "--build").returncode == 0
    assert len(builds(minikube)) == 2 * len(IMAGES)


def test_deploy_fails_if_minikube_reports_success_but_built_no_image(minikube: FakeCommands) -> None:
    minikube.results = {"image ls": ""} | minikube.results
    program = minikube.folder / "bin" / "minikube"
    program.write_text(program.read_text().replace('if "minikube" == name and "build" in args:', "if False:"))
    done = minikube.run("deploy.sh")
    assert done.returncode == 1
    assert "building the image products in minikube failed" in done.stderr
    assert not [call for call in minikube.calls() if "apply" in call]


def test_deploy_uses_the_minikube_profile_of_the_context(minikube: FakeCommands) -> None:
    minikube.results["minikube\\.k8s\\.io/name"] = "second"
    assert minikube.run("deploy.sh").returncode == 0
    assert all(call.startswith("minikube -p second ") for call in minikube.calls() if call.startswith("minikube"))


def test_every_call_names_the_context_and_none_switches_the_current_one(minikube: FakeCommands) -> None:
    minikube.results["get namespace -l"] = "namespace/market"
    for script in SCRIPTS:
        assert minikube.run(script, "--context", "elsewhere", "--timeout", "5").returncode in (0, 1)
    calls = [call for call in minikube.calls() if call.startswith("kubectl")]
    allowed = ("kubectl kustomize", "kubectl config get-contexts")
    assert [call for call in calls if "--context elsewhere" not in call and not call.startswith(allowed)] == []
    assert not [call for call in calls if "use-context" in call or "set-context" in call]
    # Nothing is changed in another namespace.
    changing = [call for call in calls if re.search(r" (apply|create|delete|scale|patch|label) ", call)]
    assert changing
    for call in changing:
        assert (
            "--namespace market" in call or "namespace market" in call or "apply -f" in call or "label --local" in call
        ), call


def test_deploy_to_another_cluster_requires_a_registry(minikube: FakeCommands) -> None:
    minikube.results = {"config current-context": "cloud"} | {
        k: v for k, v in minikube.results.items() if "minikube" not in str(v)
    }
    done = minikube.run("deploy.sh")
    assert done.returncode == 3
    assert "a registry: name the one" in done.stderr
    done = minikube.run("deploy.sh", "--registry", "registry.example.com/shop/", "--image-tag", "t1", "--build")
    assert done.returncode == 0, done.stderr
    assert [c for c in minikube.calls() if c.startswith("docker push")] == [
        f"docker push --quiet registry.example.com/shop/{name}:t1" for name in IMAGES
    ]
    assert {i for i in images(minikube.applied()) if "shop/" in i} == {
        f"registry.example.com/shop/{name}:t1" for name in IMAGES
    }
    assert "overlay base" in done.stdout


def test_deploy_to_kind_loads_the_images(minikube: FakeCommands) -> None:
    minikube.results = {"config current-context": "kind-shop"} | {
        k: v for k, v in minikube.results.items() if "minikube" not in str(v)
    }
    done = minikube.run("deploy.sh", "--build", "--image-tag", "t1")
    assert done.returncode == 0, done.stderr
    assert [c for c in minikube.calls() if c.startswith("kind")] == [
        f"kind load docker-image --name shop market/{name}:t1" for name in IMAGES
    ]


def test_deploy_reports_all_missing_prerequisites_at_once(minikube: FakeCommands) -> None:
    minikube.results |= {"get ingressclasses": "", "get storageclasses": "slow <no value>\n"}
    done = minikube.run("deploy.sh")
    assert done.returncode == 3
    assert "minikube addons enable ingress" in done.stderr
    assert "a default storage class" in done.stderr
    assert not [call for call in minikube.calls() if "apply" in call]


def test_deploy_uses_the_only_ingress_class_but_does_not_choose_among_several(minikube: FakeCommands) -> None:
    minikube.results["get ingressclasses"] = "traefik <no value>\n"
    assert minikube.run("deploy.sh").returncode == 0
    assert "ingressClassName: traefik" in minikube.applied()
    minikube.results["get ingressclasses"] = "traefik <no value>\nnginx <no value>\n"
    done = minikube.run("deploy.sh")
    assert (done.returncode, "a default ingress class" in done.stderr) == (3, True)


def test_deploy_to_production_requires_the_secrets(minikube: FakeCommands) -> None:
    done = minikube.run("deploy.sh", "--overlay", "production")
    assert done.returncode == 3
    assert "deploy/overlays/production/secrets/order-service.env: copy order-service.env.example" in done.stderr


def test_passwords_are_generated_once_and_never_on_a_command_line(minikube: FakeCommands) -> None:
    assert minikube.run("deploy.sh").returncode == 0
    secrets = [d for d in yaml.safe_load_all(minikube.applied()) if d["kind"] == "Secret"]
    assert sorted(s["metadata"]["name"].rpartition("-")[0] for s in secrets) == [
        "inventory-service",
        "mongodb",
        "order-service",
        "postgresql",
        "product-service",
        "redis",
        "storefront-service",
    ]
    line = "\n".join(minikube.calls())
    for secret in secrets:
        for value in secret["data"].values():
            assert value not in line
    kept = "".join(
        f"{name} {'c2VjcmV0'}\n"
        for name in (
            "postgresql_products",
            "postgresql_inventory",
            "redis",
            "mongodb_root",
            "mongodb_orders",
            "mongodb_keyfile",
            "storefront_cookies",
        )
    )
    (minikube.folder / "calls").unlink()
    minikube.results = {"get secret passwords": kept} | minikube.results
    assert minikube.run("deploy.sh").returncode == 0
    assert not [call for call in minikube.calls() if "create secret" in call]


def test_deploy_scales_services_without_pods_to_their_minimum(minikube: FakeCommands) -> None:
    minikube.results |= {"get hpa": "order-service 2\nproduct-service 2\n", "get deployments -l": "order-service 2\n"}
    minikube.results |= {"get deployment order-service -o jsonpath={.spec.replicas}": "0"}
    minikube.results |= {"get deployment product-service -o jsonpath={.spec.replicas}": "3"}
    done = minikube.run("deploy.sh")
    assert done.returncode == 0, done.stderr
    assert [call.partition("market scale ")[2] for call in minikube.calls() if " scale " in call] == [
        "deployment/order-service --replicas=2"
    ]
    assert "order-service was scaled to 0 pods: scaled to its minimum of 2" in done.stdout


def test_deploy_is_not_ready_while_a_service_has_no_ready_pod(minikube: FakeCommands) -> None:
    minikube.results |= {"get deployments -l": "product-service 1\norder-service \n"}
    minikube.results |= {"get deployment order-service -o jsonpath={.spec.replicas}": "0"}
    done = minikube.run("deploy.sh", "--timeout", "3")
    assert done.returncode == 1
    assert (
        "FAILED: deployment/order-service is not ready: no pod: it has no ready pod, and its replicas are 0"
        in done.stderr
    )
    assert "ready\n" not in done.stdout.replace("is ready", "")


def test_undeploy_outside_minikube_and_kind_requires_yes(minikube: FakeCommands) -> None:
    minikube.results = {
        "config current-context": "cloud",
        "minikube\\.k8s\\.io/name": "",
        "get namespace -l": "namespace/market",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("undeploy.sh")
    assert (done.returncode, "--yes" in done.stderr) == (3, True)
    assert "cloud" in done.stdout
    assert not [call for call in minikube.calls() if " delete " in call]


def test_undeploy_removes_the_objects_outside_of_the_namespace(minikube: FakeCommands) -> None:
    minikube.results |= {
        "get namespace -l": "namespace/market",
        "get namespace market --ignore-not-found": "namespace/market",
        "get priorityclasses": "priorityclass.scheduling.k8s.io/market-core",
    }
    minikube.run("undeploy.sh", "--yes", "--timeout", "3")
    deletions = [call.partition(" delete ")[2] for call in minikube.calls() if " delete " in call]
    assert deletions[0] == "priorityclasses.scheduling.k8s.io -l app.kubernetes.io/part-of=market --ignore-not-found"


@pytest.mark.parametrize("known", [True, False])
def test_undeploy_that_keeps_the_data_removes_routes_and_certificates_where_there_are_any(
    minikube: FakeCommands, known: bool
) -> None:
    kinds = ["httproutes.gateway.networking.k8s.io", "certificates.cert-manager.io", "issuers.cert-manager.io"]
    minikube.results |= {
        "get namespace -l": "namespace/market",
        "get namespace market --ignore-not-found": "namespace/market",
        "api-resources": "\n".join(["pods", *kinds] if known else ["pods"]) + "\n",
    }
    done = minikube.run("undeploy.sh", "--yes", "--keep-data", "--timeout", "3")
    assert done.returncode == 0, done.stderr
    deleted = {kind for call in minikube.calls() if " delete " in call for kind in call.split()[6].split(",")}
    assert deleted & set(kinds) == (set(kinds) if known else set())
    assert "deployments.apps" in deleted


def test_undeploy_does_not_touch_a_namespace_that_deploy_did_not_create(minikube: FakeCommands) -> None:
    minikube.results = {
        "config current-context": "minikube",
        "get namespace -l": "",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("undeploy.sh", "--yes")
    assert (done.returncode, "was not created by deploy.sh" in done.stderr) == (3, True)


def test_restart_removes_nothing_if_it_could_not_create_it_again(minikube: FakeCommands) -> None:
    minikube.results |= {
        "get ingressclasses": "",
        "get namespace -l": "namespace/market",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("restart.sh")
    assert done.returncode == 3
    assert not [call for call in minikube.calls() if " delete " in call]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_usage_have_their_exit_codes(fake_commands: FakeCommands, script: str) -> None:
    done = fake_commands.run(script, "--help")
    assert (done.returncode, done.stdout.startswith(f"scripts/{script}")) == (0, True)
    for options in (["--nonsense"], ["--timeout"], ["--timeout", "soon"], ["--context"]):
        assert fake_commands.run(script, *options).returncode == 2
    assert fake_commands.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_kubectl_the_scripts_explain_how_to_get_it(
    fake_commands: FakeCommands, script: str, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "dirname", "env", "cat", "git", "sha256sum", "cut"):
        (bare / name).symlink_to(str(shutil.which(name)))
    done = fake_commands.run(script, "--yes" if script != "deploy.sh" else "--build", path=str(bare))
    assert (done.returncode, "kubectl is missing. Get it:" in done.stderr) == (3, True)


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    shellcheck = shutil.which("shellcheck") or str(ROOT / ".venv/bin/shellcheck")
    if not Path(shellcheck).exists():
        pytest.skip("shellcheck is not installed")
    names = (*SCRIPTS, "backup.sh", "restore.sh")
    scripts = [ROOT / "scripts" / name for name in names] + sorted((ROOT / "deploy").rglob("*.sh"))
    done = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
