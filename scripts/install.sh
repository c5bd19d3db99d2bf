#!/usr/bin/env bash
# Makes .venv from requirements.lock. Looks first for what a bare machine may lack, and names all of it at once.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
missing=()
[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] || missing+=("x86-64 Linux (this is $(uname -s)/$(uname -m)): use a machine or a container of that kind")
if ! command -v "$python" >/dev/null; then
  missing+=("Python 3.11 or newer: apt-get install python3 python3-venv")
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  missing+=("Python 3.11 or newer ($("$python" --version) is too old): make run PYTHON=python3.12")
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=("Python's venv module: apt-get install python3-venv")
fi
for lib in libcurl.so.4:libcurl4 libssl.so.3:libssl3; do
  if command -v "$python" >/dev/null && ! "$python" -c "import ctypes; ctypes.CDLL('${lib%%:*}')" 2>/dev/null; then
    missing+=("${lib%%:*} (MongoDB's server needs it): apt-get install ${lib##*:}")
  fi
done
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
[ "$free" -ge 1500 ] || missing+=("disk: $free MiB are free here, 1500 are needed")
if [ ${#missing[@]} -gt 0 ]; then
  echo "This machine lacks:" >&2
  printf '  - %s\n' "${missing[@]}" >&2
  exit 1
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "Installing the environment into .venv (once; about 200 MB) ..."
if command -v uv >/dev/null; then
  # pip compiles what it installs, uv only when it is told to; without that every start of a service does.
  install=(uv pip install --quiet --compile-bytecode --python .venv/bin/python)
else
  install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
fi
if ! "${install[@]}" --require-hashes -r requirements.lock 2>"$log"; then
  cat "$log" >&2
  echo "The packages could not be installed. If the package registry cannot be reached from here, set PIP_INDEX_URL or a proxy (HTTPS_PROXY) and try again." >&2
  exit 1
fi
"${install[@]}" --no-build-isolation --no-deps -e . -e ./dev 2>"$log" || { cat "$log" >&2; exit 1; }
.venv/bin/python -m compileall -q src dev
