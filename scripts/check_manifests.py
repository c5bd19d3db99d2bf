#!/usr/bin/env python3
"""Check the Kubernetes manifests without a cluster: every object against Kubernetes' own schemas, unknown fields
refused. Custom resources are checked against deploy/schemas (scripts/schemas.py).

Each overlay is rendered by kubectl and checked against the schemas of the oldest and the newest Kubernetes supported.
Without kubectl, the files that hold whole objects are checked one by one; patches are not.
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

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("base", "demo", "overlays/minikube", "overlays/production")
# The oldest is the one that docs/operations.md names.
VERSIONS = ("1.27", "1.37")


def find_errors(document: Any) -> list[str]:
    """Return one line for each Kubernetes version whose schema the object does not satisfy. Custom resources have one
    schema.
    """
    errors = []
    group, _, version = document["apiVersion"].rpartition("/")
    schema = DEPLOY / "schemas" / f"{document['kind'].lower()}-{group}-{version}.json"
    if schema.exists():
        validator = jsonschema.Draft202012Validator(json.loads(schema.read_text("utf-8")))
        found = sorted(validator.iter_errors(document), key=lambda error: list(error.path))
        return [f"{schema.stem}: {'.'.join(map(str, error.path))}: {error.message[:200]}" for error in found]
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:200]}")
        except kubernetes_validate.SchemaNotFoundError as error:
            errors.append(error.message)
    return errors


def render(deploy: Path, overlay: str) -> list[Any]:
    """Return the objects of an overlay below the folder `deploy`. Exits if kubectl cannot render it."""
    command = ["kubectl", "kustomize", str(deploy / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"deploy/{overlay} cannot be rendered: {done.stderr.strip()}")
    return [d for d in yaml.safe_load_all(done.stdout) if d is not None]


def copy_with_examples(folder: Path) -> Path:
    """Copy deploy/ into the folder, with the examples of the Secrets in place of the Secrets. Return the copy."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("*.env"))
    for example in copy.rglob("*.example"):
        example.rename(example.with_suffix(""))
    return copy


def objects() -> Iterator[tuple[str, Any]]:
    """Yield every object to check, with where it comes from."""
    if shutil.which("kubectl"):
        with tempfile.TemporaryDirectory() as folder:
            deploy = copy_with_examples(Path(folder))
            for overlay in OVERLAYS:
                yield from ((f"deploy/{overlay}", document) for document in render(deploy, overlay))
        return
    print("kubectl is missing: the files were checked one by one, the overlays were not rendered")
    for kustomization in sorted(DEPLOY.rglob("kustomization.yaml")):
        for entry in yaml.safe_load(kustomization.read_text()).get("resources", []):
            path = kustomization.parent / entry
            if path.is_file():
                yield from ((str(path.relative_to(ROOT)), d) for d in yaml.safe_load_all(path.read_text()))


def main() -> int:
    count, errors = 0, []
    for where, document in objects():
        count += 1
        name = f"{where}: {document['kind']}/{document['metadata']['name']}"
        errors += [f"{name}: {error}" for error in find_errors(document)]
    print(*errors, f"{count} objects, {len(errors)} errors", sep="\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
