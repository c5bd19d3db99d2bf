#!/usr/bin/env bash
# Create .venv from requirements.lock. First check the prerequisites, and report all missing ones at once.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
missing=()
[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] || missing+=("x86-64 Linux (this is $(uname -s)/$(uname -m)): use such a machine or container")
if ! command -v "$python" >/dev/null; then
  missing+=("Python 3.11 or newer: apt-get install python3 python3-venv")
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  missing+=("Python 3.11 or newer ($("$python" --version) is too old): make run PYTHON=python3.12")
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=("Python's venv module: apt-get install python3-venv")
fi
for lib in libcurl.so.4:libcurl4 libssl.so.3:libssl3; do
  if command -v "$python" >/dev/null && ! "$python" -c "import ctypes; ctypes.CDLL('${lib%%:*}')" 2>/dev/null; then
    missing+=("${lib%%:*} (needed by the MongoDB server): apt-get install ${lib##*:}")
  fi
done
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge 1500 ] || missing+=("disk space: $free MiB are free, 1500 MiB are needed")
if [ ${#missing[@]} -gt 0 ]; then
  echo "Missing on this machine:" >&2
  printf '  - %s\n' "${missing[@]}" >&2
  exit 1
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# After Ctrl-C, advice about the network would be misleading.
trap 'exit 130' INT
echo "Installing the environment into .venv (once; about 200 MB) ..."
if command -v uv >/dev/null; then
  # pip compiles to bytecode by default, uv only with this option; otherwise every start of a service would.
  install=(uv pip install --quiet --compile-bytecode --python .venv/bin/python)
else
  install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
fi
if ! { "${install[@]}" --require-hashes -r requirements.lock && "${install[@]}" --require-hashes --no-deps -r tests/requirements.lock; } 2>"$log"; then
  cat "$log" >&2
  echo "The packages could not be installed. If this machine has no access to the package registry, set PIP_INDEX_URL or a proxy (HTTPS_PROXY) and try again." >&2
  exit 1
fi
"${install[@]}" --no-build-isolation --no-deps -e . -e ./dev 2>"$log" || { cat "$log" >&2; exit 1; }
