"""The scripts, with stand-ins for the programs they call: what they call, what they say, and their exit codes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT, StandIns

SCRIPTS = ("deploy.sh", "undeploy.sh", "restart.sh")
IMAGES = ("products", "orders", "inventory", "notifications", "graphql", "testbed")


def builds(shop: StandIns) -> list[str]:
    return [call for call in shop.calls() if "image build" in call or call.startswith("docker build")]


def images(text: str) -> set[str]:
    return set(re.findall(r"image: (\S+)", text))


def test_on_minikube_without_options_the_images_are_built_there_and_the_overlay_is_its_own(minikube: StandIns) -> None:
    done = minikube.run("deploy.sh")
    assert done.returncode == 0, done.stderr
    tags = {call.split(" -t ")[1].split()[0] for call in builds(minikube)}
    tag = next(iter(tags)).rpartition(":")[2]
    assert tags == {f"market/{name}:{tag}" for name in IMAGES}
    # The argument is in the Dockerfile, and only what the build needs is sent.
    assert "\nARG SERVICE=orders\n" in (minikube.folder / "Dockerfile-orders").read_text()
    sent = (minikube.folder / "context").read_text().splitlines()
    assert {path.split("/")[0] for path in sent} == {"Dockerfile", "requirements", "deploy", "src"}
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


def test_images_that_minikube_has_are_built_again_only_when_asked(minikube: StandIns) -> None:
    assert minikube.run("deploy.sh", "--image-tag", "t1").returncode == 0
    assert len(builds(minikube)) == 6
    assert minikube.run("deploy.sh", "--image-tag", "t1").returncode == 0
    assert len(builds(minikube)) == 6
    assert minikube.run("deploy.sh", "--image-tag", "t1", "--build").returncode == 0
    assert len(builds(minikube)) == 12


def test_a_build_that_minikube_calls_a_success_but_left_no_image_is_a_failure(minikube: StandIns) -> None:
    minikube.answers = {"image ls": ""} | minikube.answers
    program = minikube.folder / "bin" / "minikube"
    program.write_text(program.read_text().replace('if "minikube" == name and "build" in args:', "if False:"))
    done = minikube.run("deploy.sh")
    assert done.returncode == 1
    assert "the image products could not be built in minikube" in done.stderr
    assert not [call for call in minikube.calls() if "apply" in call]


def test_the_profile_of_minikube_is_the_one_of_the_context(minikube: StandIns) -> None:
    minikube.answers["minikube\\.k8s\\.io/name"] = "second"
    assert minikube.run("deploy.sh").returncode == 0
    assert all(call.startswith("minikube -p second ") for call in minikube.calls() if call.startswith("minikube"))


def test_every_call_names_the_context_and_the_current_one_is_never_switched(minikube: StandIns) -> None:
    minikube.answers["get namespace -l"] = "namespace/market"
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


def test_elsewhere_a_registry_is_wanted(minikube: StandIns) -> None:
    minikube.answers = {"config current-context": "cloud"} | {
        k: v for k, v in minikube.answers.items() if "minikube" not in str(v)
    }
    done = minikube.run("deploy.sh")
    assert done.returncode == 3
    assert "a registry: --registry R" in done.stderr
    done = minikube.run("deploy.sh", "--registry", "registry.example.com/shop/", "--image-tag", "t1", "--build")
    assert done.returncode == 0, done.stderr
    assert [c for c in minikube.calls() if c.startswith("docker push")] == [
        f"docker push --quiet registry.example.com/shop/{name}:t1" for name in IMAGES
    ]
    assert {i for i in images(minikube.applied()) if "shop/" in i} == {
        f"registry.example.com/shop/{name}:t1" for name in IMAGES
    }
    assert "overlay base" in done.stdout


def test_on_kind_images_are_loaded(minikube: StandIns) -> None:
    minikube.answers = {"config current-context": "kind-shop"} | {
        k: v for k, v in minikube.answers.items() if "minikube" not in str(v)
    }
    done = minikube.run("deploy.sh", "--build", "--image-tag", "t1")
    assert done.returncode == 0, done.stderr
    assert [c for c in minikube.calls() if c.startswith("kind")] == [
        f"kind load docker-image --name shop market/{name}:t1" for name in IMAGES
    ]


def test_all_that_is_missing_is_said_at_once(minikube: StandIns) -> None:
    minikube.answers |= {"get ingressclasses": "", "get storageclasses": "slow <no value>\n"}
    done = minikube.run("deploy.sh")
    assert done.returncode == 3
    assert "minikube addons enable ingress" in done.stderr
    assert "a default storage class" in done.stderr
    assert not [call for call in minikube.calls() if "apply" in call]


def test_the_only_ingress_class_is_taken_and_of_several_without_default_none(minikube: StandIns) -> None:
    minikube.answers["get ingressclasses"] = "traefik <no value>\n"
    assert minikube.run("deploy.sh").returncode == 0
    assert "ingressClassName: traefik" in minikube.applied()
    minikube.answers["get ingressclasses"] = "traefik <no value>\nnginx <no value>\n"
    done = minikube.run("deploy.sh")
    assert (done.returncode, "a default ingress class" in done.stderr) == (3, True)


def test_production_wants_its_secrets_first_and_brings_no_store(minikube: StandIns) -> None:
    done = minikube.run("deploy.sh", "--overlay", "production")
    assert done.returncode == 3
    assert "deploy/overlays/production/secrets/order-service.env: copy order-service.env.example" in done.stderr


def test_passwords_are_made_once_and_never_on_a_command_line(minikube: StandIns) -> None:
    assert minikube.run("deploy.sh").returncode == 0
    secrets = [d for d in yaml.safe_load_all(minikube.applied()) if d["kind"] == "Secret"]
    assert sorted(s["metadata"]["name"].rpartition("-")[0] for s in secrets) == [
        "inventory-service",
        "mongodb",
        "order-service",
        "postgresql",
        "product-service",
        "redis",
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
        )
    )
    (minikube.folder / "calls").unlink()
    minikube.answers = {"get secret passwords": kept} | minikube.answers
    assert minikube.run("deploy.sh").returncode == 0
    assert not [call for call in minikube.calls() if "create secret" in call]


def test_outside_minikube_and_kind_undeploy_wants_a_yes(minikube: StandIns) -> None:
    minikube.answers = {
        "config current-context": "cloud",
        "minikube\\.k8s\\.io/name": "",
        "get namespace -l": "namespace/market",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("undeploy.sh")
    assert (done.returncode, "--yes" in done.stderr) == (3, True)
    assert "cloud" in done.stdout
    assert not [call for call in minikube.calls() if " delete " in call]


def test_undeploy_leaves_a_namespace_alone_that_deploy_has_not_made(minikube: StandIns) -> None:
    minikube.answers = {
        "config current-context": "minikube",
        "get namespace -l": "",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("undeploy.sh", "--yes")
    assert (done.returncode, "was not made by deploy.sh" in done.stderr) == (3, True)


def test_restart_removes_nothing_that_it_could_not_create_again(minikube: StandIns) -> None:
    minikube.answers |= {
        "get ingressclasses": "",
        "get namespace -l": "namespace/market",
        "get namespace market": "namespace/market",
    }
    done = minikube.run("restart.sh")
    assert done.returncode == 3
    assert not [call for call in minikube.calls() if " delete " in call]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_usage(stand_ins: StandIns, script: str) -> None:
    done = stand_ins.run(script, "--help")
    assert (done.returncode, done.stdout.startswith(f"scripts/{script}")) == (0, True)
    for options in (["--nonsense"], ["--timeout"], ["--timeout", "soon"], ["--context"]):
        assert stand_ins.run(script, *options).returncode == 2
    assert stand_ins.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_kubectl_the_scripts_say_how_to_get_it(stand_ins: StandIns, script: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "dirname", "env", "cat", "git", "sha256sum", "cut"):
        (bare / name).symlink_to(str(shutil.which(name)))
    done = stand_ins.run(script, "--yes" if script != "deploy.sh" else "--build", path=str(bare))
    assert (done.returncode, "kubectl is missing. Get it:" in done.stderr) == (3, True)


def test_the_scripts_are_clean_to_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck") or str(ROOT / ".venv/bin/shellcheck")
    if not Path(shellcheck).exists():
        pytest.skip("shellcheck is not here")
    scripts = [ROOT / "scripts" / name for name in SCRIPTS] + sorted((ROOT / "deploy").rglob("*.sh"))
    done = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
