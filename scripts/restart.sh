#!/usr/bin/env bash
# Run undeploy.sh, then deploy.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

usage() {
  cat <<'TEXT'
scripts/restart.sh [--keep-data] [--yes] [options of deploy.sh]

Removes the shop (undeploy.sh) and creates it again (deploy.sh). Takes the options of both:
  --keep-data --yes                                      for the removal
  --overlay O --build --registry R --image-tag T         for the creation
  --context C --timeout S                                for both

Exit status: as theirs.
TEXT
}

down=() up=()
while [ $# -gt 0 ]; do
  case $1 in --overlay|--context|--registry|--image-tag|--timeout) [ $# -ge 2 ] || wrong "$1 needs a value" ;; esac
  case $1 in
    --keep-data|--yes|-y) down+=("$1"); shift ;;
    --context|--timeout) down+=("$1" "$2"); up+=("$1" "$2"); shift 2 ;;
    --overlay|--registry|--image-tag) up+=("$1" "$2"); shift 2 ;;
    --build) up+=("$1"); shift ;;
    -h|--help) usage; exit 0 ;;
    *) wrong "unknown option: $1" ;;
  esac
done
# Do not remove what could not be created again.
"$here/deploy.sh" --check ${up[@]+"${up[@]}"}
"$here/undeploy.sh" ${down[@]+"${down[@]}"}
"$here/deploy.sh" ${up[@]+"${up[@]}"}
