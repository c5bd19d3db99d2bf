#!/usr/bin/env bash
# Resolve the dependencies: one lock for development, and one per image with the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is not installed: pip install uv" >&2; exit 1; }
compile=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --no-emit-package market --no-emit-package market-dev)
"${compile[@]}" "$@" dev/pyproject.toml --extra test -o requirements.lock
for service in products orders inventory notifications graphql storefront; do
  "${compile[@]}" pyproject.toml --extra "$service" -c requirements.lock -o "requirements/$service.lock"
done
"${compile[@]}" "$@" --no-deps tests/requirements.in -o tests/requirements.lock
"${compile[@]}" pyproject.toml requirements/testbed.in -c requirements.lock -o requirements/testbed.lock
"${compile[@]}" dev/pyproject.toml --extra bench -c requirements.lock -o requirements/bench.lock
