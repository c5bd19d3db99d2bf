#!/usr/bin/env bash
# Resolves the dependencies anew: one lock for everything, and from the same resolve one per image.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is missing: pip install uv" >&2; exit 1; }
compile=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
  --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml)
"${compile[@]}" "$@" --extra dev -o requirements.lock
mkdir -p requirements
for service in products orders inventory notifications graphql testbed; do
  "${compile[@]}" --extra "$service" -c requirements.lock -o "requirements/$service.lock"
done
"${compile[@]}" --extra bench -c requirements.lock -o requirements/bench.lock
