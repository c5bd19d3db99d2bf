#!/usr/bin/env bash
# Run all static checks.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
bin=.venv/bin
status=0
step() {
  local name=$1; shift
  if "$@"; then echo "ok: $name"; else echo "FAILED: $name"; status=1; fi
}
step format "$bin/ruff" format --check --quiet .
step lint "$bin/ruff" check --quiet .
step types "$bin/mypy"
step imports "$bin/lint-imports" --no-cache
step "generated files" scripts/generate.sh --check
step layout "$bin/python" scripts/check_layout.py
step manifests "$bin/python" scripts/check_manifests.py
step shell "$bin/shellcheck" scripts/*.sh .ci/run
exit $status
