#!/usr/bin/env python3
"""Write the JSON Schemas of the custom resources in the manifests to deploy/schemas.

Their definitions are in the projects' Go modules, which `go mod download` fetches and checks against Go's checksum
database.
Descriptions are left out, and unknown fields are refused. Run it again after a change of a version below.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).parents[1] / "deploy" / "schemas"
# The module, and the definitions in it.
MODULES = {
    "sigs.k8s.io/gateway-api@v1.6.3": [
        "config/crd/standard/gateway.networking.k8s.io_gateways.yaml",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ],
    "github.com/bitnami-labs/sealed-secrets@v0.40.0": ["helm/sealed-secrets/crds/bitnami.com_sealedsecrets.yaml"],
    "github.com/cert-manager/cert-manager@v1.21.2": [
        "deploy/crds/cert-manager.io_certificates.yaml",
        "deploy/crds/cert-manager.io_issuers.yaml",
    ],
    "github.com/external-secrets/external-secrets@v1.3.2": [
        "config/crds/bases/external-secrets.io_externalsecrets.yaml"
    ],
    "github.com/fluxcd/kustomize-controller@v1.9.6": [
        "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml"
    ],
}


def compact(node: Any) -> Any:
    """Return the OpenAPI schema as a JSON Schema without texts that refuses unknown fields."""
    if isinstance(node, list):
        return [compact(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {
        key: compact(value)
        for key, value in node.items()
        if key not in ("description", "default", "properties") and not key.startswith("x-kubernetes-")
    }
    if "properties" in node:
        # A property may have the name of a keyword, such as `description`.
        schema["properties"] = {name: compact(value) for name, value in node["properties"].items()}
        if schema.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    return schema


def main() -> int:
    SCHEMAS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        environ = {**os.environ, "GOMODCACHE": cache, "GOFLAGS": "-modcacherw"}
        for module, paths in MODULES.items():
            command = ["go", "mod", "download", "-json", module]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
            download = json.loads(done.stdout or "{}")
            if done.returncode or "Dir" not in download:
                print(f"{module}: {download.get('Error') or done.stderr}", file=sys.stderr)
                return 1
            for path in paths:
                definition = yaml.safe_load((Path(download["Dir"]) / path).read_text("utf-8"))
                kind, group = definition["spec"]["names"]["kind"], definition["spec"]["group"]
                version = next(v for v in definition["spec"]["versions"] if v["storage"])
                schema = {"$comment": f"{module}/{path}, Apache-2.0", **compact(version["schema"]["openAPIV3Schema"])}
                # `metadata` is only `type: object` there.
                schema["properties"]["metadata"] = {"type": "object"}
                name = f"{kind.lower()}-{group}-{version['name']}.json"
                (SCHEMAS / name).write_text(json.dumps(schema, separators=(",", ":")) + "\n", "utf-8")
                print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
