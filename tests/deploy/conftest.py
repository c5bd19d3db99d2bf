"""Fake kubectl, minikube, kind and docker: they record how they were called and print canned output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KUBECTL = shutil.which("kubectl")
# One program for all four names. The output is that of the first pattern that the command line contains.
FAKE_COMMAND = (
    f"#!{sys.executable} -IS\n"
    + """
import json, os, subprocess, sys
from pathlib import Path
folder = Path(os.environ["FAKE_COMMANDS"])
name, args = Path(sys.argv[0]).name, sys.argv[1:]
line = " ".join([name, *args])
piped = sys.stdin.read() if "-f -" in line else ""
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps({"line": line, "piped": piped}) + "\\n")
if name == "kubectl" and "kustomize" in args[:1]:
    os.execv(os.environ["REAL_KUBECTL"], ["kubectl", *args])
if "apply -f" in line and not piped:
    path = args[args.index("-f") + 1]
    (folder / ("applied-" + Path(path).name)).write_text(Path(path).read_text())
if "minikube" == name and "build" in args:
    tag, context = args[args.index("-t") + 1], Path(args[-1])
    with (folder / "images").open("a") as images:
        images.write("docker.io/" + tag + "\\n")
    (folder / ("Dockerfile-" + tag.split("/")[1].split(":")[0])).write_text((context / "Dockerfile").read_text())
    (folder / "context").write_text("\\n".join(sorted(str(p.relative_to(context)) for p in context.rglob("*"))))
if "image ls" in line and (folder / "images").exists():
    print((folder / "images").read_text(), end="")
if "--dry-run=client" in line or "label --local" in line:
    print("{}")
for pattern, result in json.loads((folder / "results").read_text()):
    if pattern in line:
        print(result["out"], end="")
        print(result.get("err", ""), end="", file=sys.stderr)
        sys.exit(result.get("status", 0))
"""
)
MINIKUBE = {
    "config current-context": "minikube",
    "minikube\\.k8s\\.io/name": "minikube",
    "get ingressclasses": "nginx true\n",
    "get storageclasses": "standard true\n",
    "get hpa": "",
    "get deployments -l": "product-service 1\norder-service 1\n",
    "get job demo-catalogue": "1",
    ".status.loadBalancer": "192.168.49.2",
}


@dataclass
class FakeCommands:
    """A folder of fake programs, first on PATH.

    `results`, by a part of the command line: what the program prints, or its exit status and what it prints to stderr.
    """

    folder: Path
    results: dict[str, str | tuple[int, str]] = field(default_factory=dict)

    def run(
        self, script: str, *options: str, path: str | None = None, root: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        results = [
            (
                pattern,
                {"out": result} if isinstance(result, str) else {"out": "", "status": result[0], "err": result[1]},
            )
            for pattern, result in self.results.items()
        ]
        (self.folder / "results").write_text(json.dumps(results))
        environ = {
            **os.environ,
            "FAKE_COMMANDS": str(self.folder),
            "REAL_KUBECTL": KUBECTL or "",
            "PATH": path if path is not None else f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        command = [root / "scripts" / script, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=900)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return [json.loads(line)["line"] for line in path.read_text().splitlines()] if path.exists() else []

    def applied(self) -> str:
        return (self.folder / "applied-all.yaml").read_text()


@pytest.fixture
def fake_commands(tmp_path: Path) -> FakeCommands:
    (tmp_path / "bin").mkdir()
    for name in ("kubectl", "minikube", "kind", "docker"):
        program = tmp_path / "bin" / name
        program.write_text(FAKE_COMMAND)
        program.chmod(0o755)
    return FakeCommands(tmp_path)


@pytest.fixture
def minikube(fake_commands: FakeCommands) -> FakeCommands:
    if KUBECTL is None:
        pytest.skip("kubectl, which renders the manifests, is not installed")
    fake_commands.results = dict(MINIKUBE)
    return fake_commands
