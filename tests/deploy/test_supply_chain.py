"""What the images are built from: digests, processors, SBOMs. Fakes of docker and uv record how they are called."""

from __future__ import annotations

import re
import shutil
import signal
import tomllib
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT, FakeCommands

OTHERS = {"python:3.11-slim-bookworm", "postgres:18", "valkey/valkey:9.1", "mongo:8.0", "apache/kafka:4.4.0"}
IMAGES = sorted(path.stem for path in (ROOT / "requirements").glob("*.lock") if path.stem != "bench")
PUSHED = r"""
if "--metadata-file" in args:
    digest = "sha256:" + format(len((folder / "calls").read_text()), "064x")
    Path(args[args.index("--metadata-file") + 1]).write_text(json.dumps({"containerimage.digest": digest}, indent=2))
for pattern, result"""
DESCRIBED = r"""
if "--pyproject" in args:
    text = Path(args[args.index("--pyproject") + 1]).read_text()
    (folder / Path(args[-1]).with_suffix(".toml").name).write_text(text)
for pattern, result"""
# Asked for the last digest, docker fails, or the script is killed: the topmost of its processes, which are subshells.
INTERRUPTED = r"""
if "imagetools inspect valkey/" in line:
    def command(pid):
        return Path(f"/proc/{pid}/cmdline").read_text()
    def parent(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    script = os.getppid()
    while "images.sh" in command(parent(script)):
        script = parent(script)
    if SIGNAL:
        os.kill(script, SIGNAL)
    sys.exit(1)
for pattern, result"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the files that name images."""
    root = tmp_path / "project"
    for folder in ("scripts", "deploy", "requirements"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.env"))
    for name in ("Dockerfile", "compose.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    return root


def named(root: Path) -> dict[str, set[str]]:
    """Return the images of others in all files, without and with their digests."""
    names: dict[str, set[str]] = {}
    for path in (root / "Dockerfile", root / "compose.yaml", *sorted((root / "deploy").rglob("*.yaml"))):
        for name in re.findall(r"^(?:ARG PYTHON_IMAGE=| +(?:- )?image: )([\w./@:-]+)$", path.read_text(), re.MULTILINE):
            if not name.startswith("market/"):
                names.setdefault(name.partition("@")[0], set()).add(name)
    return names


def test_pin_writes_the_digest_of_every_image_and_brings_it_up_to_date(
    fake_commands: FakeCommands, project: Path
) -> None:
    assert named(project).keys() == OTHERS
    before = {path: path.read_text() for path in project.rglob("*.yaml")}
    for digest in ("sha256:" + "a" * 64, "sha256:" + "b" * 64):
        # Without `json` in its template, buildx prints this table instead (docker/buildx issue 1175).
        table = f"Name: postgres:18\nMediaType: application/vnd.oci.image.index.v1+json\nDigest: {digest}\n"
        fake_commands.results = {"--format {{json .Manifest.Digest}}": f'"{digest}"', "imagetools inspect": table}
        done = fake_commands.run("images.sh", "pin", root=project)
        assert done.returncode == 0, done.stderr
        assert named(project) == {name: {f"{name}@{digest}"} for name in OTHERS}
        assert set(done.stdout.split()) == {f"{name}@{digest}" for name in OTHERS}
    # Nothing else has changed.
    for path, text in before.items():
        assert re.sub(r"@sha256:b{64}", "", path.read_text()) == re.sub(r"@sha256:[0-9a-f]{64}", "", text)
    assert list(project.rglob("*.before")) == []


@pytest.mark.parametrize("result", [(1, "no such host"), "latest\n"])
def test_pin_fails_if_a_registry_gives_no_digest(
    fake_commands: FakeCommands, project: Path, result: str | tuple[int, str]
) -> None:
    fake_commands.results = {"imagetools inspect": result}
    done = fake_commands.run("images.sh", "pin", root=project)
    assert (done.returncode, "error: the " in done.stderr) == (1, True)
    assert named(project) == named(ROOT)


@pytest.mark.parametrize(("signum", "status"), [(0, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_pin_that_is_interrupted_has_changed_nothing_and_leaves_no_files(
    fake_commands: FakeCommands, project: Path, signum: int, status: int
) -> None:
    files = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    fake_commands.results = {"imagetools inspect": '"sha256:' + "a" * 64 + '"'}
    docker = fake_commands.folder / "bin/docker"
    interrupted = INTERRUPTED.replace("SIGNAL", str(int(signum)))
    docker.write_text(docker.read_text().replace("\nfor pattern, result", interrupted, 1))
    done = fake_commands.run("images.sh", "pin", root=project)
    assert done.returncode == status, done.stderr
    assert len([call for call in fake_commands.calls() if "imagetools inspect" in call]) == len(OTHERS)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("action", [["pin"], ["push", "--registry", "r.example.com/shop"]])
def test_without_buildx_it_says_so_and_changes_nothing(
    fake_commands: FakeCommands, project: Path, action: list[str]
) -> None:
    fake_commands.results = {"buildx version": (1, "docker: unknown command: docker buildx")}
    done = fake_commands.run("images.sh", *action, root=project)
    assert (done.returncode, "docker's plug-in buildx is missing" in done.stderr) == (3, True)
    assert named(project) == named(ROOT)


def test_push_builds_each_image_for_both_processors_and_prints_its_digest(
    fake_commands: FakeCommands, project: Path
) -> None:
    docker = fake_commands.folder / "bin/docker"
    docker.write_text(docker.read_text().replace("\nfor pattern, result", PUSHED, 1))
    done = fake_commands.run(
        "images.sh", "push", "--registry", "r.example.com/shop/", "--image-tag", "t1", root=project
    )
    assert done.returncode == 0, done.stderr
    calls = [call for call in fake_commands.calls() if "buildx version" not in call]
    assert [call.partition("SERVICE=")[2].split()[0] for call in calls] == IMAGES
    for call in calls:
        assert "--platform linux/amd64,linux/arm64 --provenance=mode=max --sbom=true --push" in call
    lines = done.stdout.splitlines()
    assert [line.partition("@")[0] for line in lines] == [f"r.example.com/shop/{name}" for name in IMAGES]
    assert all(re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", line) for line in lines)


def test_an_sbom_is_made_of_the_lock_of_each_image(fake_commands: FakeCommands, project: Path, tmp_path: Path) -> None:
    program = (fake_commands.folder / "bin/docker").read_text()
    uv = fake_commands.folder / "bin/uv"
    uv.write_text(program.replace("\nfor pattern, result", DESCRIBED, 1))
    uv.chmod(0o755)
    to = tmp_path / "sboms"
    done = fake_commands.run("images.sh", "sbom", "--to", str(to), "--image-tag", "t1", root=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{to}/{name}.cdx.json" for name in IMAGES]
    for name, call in zip(IMAGES, fake_commands.calls(), strict=True):
        assert call.endswith(f"--output-file {to}/{name}.cdx.json {project}/requirements/{name}.lock")
        described = tomllib.loads((fake_commands.folder / f"{name}.toml").read_text())["project"]
        assert (described["name"], described["version"]) == (f"market-{name}", "t1")


@pytest.mark.parametrize(
    "options", [[], ["build"], ["push"], ["sbom"], ["pin", "--registry", "r"], ["push", "--registry"]]
)
def test_wrong_usage_of_the_script_for_images(fake_commands: FakeCommands, options: list[str]) -> None:
    assert fake_commands.run("images.sh", *options).returncode == 2
    assert fake_commands.calls() == []
    assert fake_commands.run("images.sh", "--help").stdout.startswith("scripts/images.sh")
