#!/usr/bin/env python3
"""Checks the Kubernetes manifests without a cluster: every object against the API's schemas, no unknown field allowed.

scripts/check_manifests.py            # the files as they are and, where kubectl is there, each overlay as it is rendered
scripts/check_manifests.py --update   # makes the schemas anew from the cluster of kubectl's current context
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT / "tests" / "deploy" / "kubernetes-1.33.json"
OVERLAYS = ("base", "demo", "overlays/minikube", "overlays/production")
# group/version and kind of all that the manifests hold.
KINDS = [
    ("v1", "Namespace"),
    ("v1", "ServiceAccount"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("networking.k8s.io/v1", "Ingress"),
]


def trimmed(node: Any) -> Any:
    """The schema without its prose, and closed: a field that it does not know is an error."""
    if isinstance(node, list):
        return [trimmed(n) for n in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    kept = {
        k: trimmed(v)
        for k, v in node.items()
        if k not in ("description", "default", "format") and not k.startswith("x-kubernetes")
    }
    if "properties" in node:
        # A field may be called `description`: it was dropped above as prose.
        kept["properties"] = {name: trimmed(v) for name, v in node["properties"].items()}
        kept.setdefault("additionalProperties", False)
    return kept


def update() -> None:
    """Writes the schemas of KINDS, and of all that they refer to."""
    command = ["kubectl", "get", "--raw", "/openapi/v2"]
    spec = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    definitions = spec["definitions"]
    names = {}
    for name, definition in definitions.items():
        for gvk in definition.get("x-kubernetes-group-version-kind", []):
            version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
            if (version, gvk["kind"]) in KINDS and "metadata" in definition.get("properties", {}):
                names[f"{version} {gvk['kind']}"] = name
    wanted, kept = list(names.values()), {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = trimmed(definitions[name])
            wanted += [r.rpartition("/")[2] for r in references(kept[name])]
    SCHEMAS.write_text(json.dumps({"kinds": names, "definitions": kept}, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{SCHEMAS.relative_to(ROOT)}: {len(kept)} definitions, {SCHEMAS.stat().st_size // 1000} kB")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def without_required(node: Any) -> Any:
    if isinstance(node, list):
        return [without_required(n) for n in node]
    if isinstance(node, dict):
        return {k: without_required(v) for k, v in node.items() if k != "required" or not isinstance(v, list)}
    return node


class Checker:
    """Compiled schemas by kind. A patch may leave required fields out, a whole object not."""

    def __init__(self) -> None:
        known = json.loads(SCHEMAS.read_text())
        self.errors: list[str] = []
        self.objects = 0
        self._whole = self._compiled(known["kinds"], known["definitions"])
        self._patch = self._compiled(known["kinds"], without_required(known["definitions"]))

    def _compiled(self, kinds: dict[str, str], definitions: Any) -> dict[str, Any]:
        return {
            kind: jsonschema_rs.Draft4Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})
            for kind, name in kinds.items()
        }

    def check(self, document: Any, where: str, *, patch: bool = False) -> None:
        if not isinstance(document, dict):
            self.errors.append(f"{where}: is no object")
            return
        self.objects += 1
        kind = f"{document.get('apiVersion')} {document.get('kind')}"
        name = f"{where}: {document.get('kind')}/{document.get('metadata', {}).get('name')}"
        document.pop("$patch", None)
        validator = (self._patch if patch else self._whole).get(kind)
        if validator is None:
            self.errors.append(
                f"{name}: the kind {kind} is not among the schemas (scripts/check_manifests.py --update)"
            )
            return
        for error in validator.iter_errors(document):
            path = ".".join(map(str, error.instance_path))
            self.errors.append(f"{name}: {path}: {error.message[:200]}")


def files(folder: Path, seen: set[Path] | None = None) -> Iterator[tuple[Path, bool]]:
    """The files that a kustomization takes in, each with whether it is a patch."""
    seen = set() if seen is None else seen
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for entry in kustomization.get("resources", []):
        path = (folder / entry).resolve()
        if path.is_dir():
            yield from files(path, seen)
        elif path not in seen:
            seen.add(path)
            yield path, False
    for entry in kustomization.get("patches", []):
        if "path" in entry:
            yield (folder / entry["path"]).resolve(), True


def rendered(deploy: Path, overlay: str) -> list[Any]:
    command = ["kubectl", "kustomize", str(deploy / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"deploy/{overlay} cannot be rendered: {done.stderr.strip()}")
    return [d for d in yaml.safe_load_all(done.stdout) if d is not None]


def with_examples(folder: Path) -> Path:
    """A copy of deploy/ in which the Secrets' examples stand for the Secrets."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("*.env"))
    for example in copy.rglob("*.env.example"):
        example.rename(example.with_suffix(""))
    return copy


def main() -> int:
    if sys.argv[1:] == ["--update"]:
        update()
        return 0
    checker = Checker()
    seen: set[Path] = set()
    for overlay in OVERLAYS:
        for path, patch in files(DEPLOY / overlay, seen):
            for document in yaml.safe_load_all(path.read_text()):
                checker.check(document, str(path.relative_to(ROOT)), patch=patch)
    if shutil.which("kubectl"):
        with tempfile.TemporaryDirectory() as folder:
            deploy = with_examples(Path(folder))
            for overlay in OVERLAYS:
                for document in rendered(deploy, overlay):
                    checker.check(document, f"deploy/{overlay} rendered")
    else:
        print("kubectl is not here: the files were checked one by one, the overlays were not rendered")
    print(*checker.errors, sep="\n", end="\n" if checker.errors else "")
    print(f"{checker.objects} objects, {len(checker.errors)} errors")
    return 1 if checker.errors else 0


if __name__ == "__main__":
    sys.exit(main())
