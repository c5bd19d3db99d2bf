#!/usr/bin/env bash
# Back up the databases of the shop to a folder, or look after the daily backups in the cluster.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
# shellcheck source=scripts/lib-backup.sh
. "$here/lib-backup.sh"

usage() {
  cat <<'TEXT'
scripts/backup.sh [--to DIR] [--context C]
scripts/backup.sh --fetch [--to DIR] [--context C]
scripts/backup.sh --check [--max-age HOURS] [--context C]

Writes a backup of inventory, products and orders to DIR/market-TIME, while the shop serves requests. The folder is
complete when it has that name: before, it ends in .partial.

  --to DIR         default: backups
  --fetch          copy the newest daily backups from their volumes in the cluster, instead of making a backup
  --check          report the age of the daily backups; a failure if one is older than --max-age
  --max-age HOURS  default 26
  --context C      the kubectl context to use (default: the current one, which is never changed)

Exit status: 0 done, 1 failed or a daily backup is too old, 2 wrong usage, 3 a prerequisite is missing.
TEXT
}

target=backups mode=make hours=26
while [ $# -gt 0 ]; do
  case $1 in --to|--context|--max-age) [ $# -ge 2 ] || wrong "$1 needs a value" ;; esac
  case $1 in
    --to) target=${2%/}; shift 2 ;;
    --context) context=$2; shift 2 ;;
    --max-age) hours=$2; shift 2 ;;
    --fetch) mode=fetch; shift ;;
    --check) mode=check; shift ;;
    -h|--help) usage; exit 0 ;;
    *) wrong "unknown option: $1" ;;
  esac
done
[[ $hours =~ ^[1-9][0-9]*$ ]] || wrong "--max-age must be a number of hours, got $hours"
need_cluster
umask 077

if [ $mode = check ]; then
  status=0
  for name in backup-postgresql backup-mongodb; do
    last=$(inside get cronjob "$name" --ignore-not-found -o 'jsonpath={.status.lastSuccessfulTime}')
    if [ -z "$last" ]; then
      say "$name: no backup yet"
      status=$FAILED
      continue
    fi
    age=$(($(date +%s) - $(date -d "$last" +%s)))
    say "$name: $last, $((age / 3600)) h $((age % 3600 / 60)) min old"
    [ $age -le $((hours * 3600)) ] || { say "$name: older than $hours hours"; status=$FAILED; }
  done
  exit $status
fi

folder=$target/market-$(date -u +%Y%m%dT%H%M%SZ)
part=$folder.partial
mkdir -p "$part"

# A pod that has the volume of a daily backup.
reader() {
  cat <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1-reader, labels: {app.kubernetes.io/part-of: market, app.kubernetes.io/name: backup-reader}}
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 3600
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {runAsNonRoot: true, runAsUser: 999, runAsGroup: 999, fsGroup: 999, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: reader
      image: $2
      imagePullPolicy: IfNotPresent
      command: [sleep, "3600"]
      resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: backups, mountPath: /backups, readOnly: true}]
  volumes: [{name: backups, persistentVolumeClaim: {claimName: $1, readOnly: true}}]
YAML
}

if [ $mode = fetch ]; then
  trap 'inside delete pod -l app.kubernetes.io/name=backup-reader --wait=false >/dev/null' EXIT
  for name in backup-postgresql backup-mongodb; do
    image=$(inside get cronjob "$name" -o 'jsonpath={.spec.jobTemplate.spec.template.spec.containers[0].image}')
    reader "$name" "$image" | inside apply -f - >/dev/null
    watching wait "pod/$name-reader" --for=condition=Ready --timeout=120s >/dev/null
    # shellcheck disable=SC2016
    watching exec "$name-reader" -- sh -c 'set -eu
      last=$(find /backups -mindepth 1 -maxdepth 1 -type d ! -name "*.partial" | sort | tail -n 1)
      [ -n "$last" ] || { echo "there is no backup on the volume" >&2; exit 1; }
      tar -C "$last" -cf - .' > "$part/$name.tar" || die "$FAILED" "$name could not be copied"
    tar -C "$part" --no-same-owner --transform="s/^\.\/manifest\$/manifest.$name/" -xf "$part/$name.tar"
    rm "$part/$name.tar"
  done
  cat "$part"/manifest.backup-* > "$part/manifest"
  rm "$part"/manifest.backup-*
  while read -r file bytes sum _; do
    [ "$(stat -c %s "$part/$file")" = "$bytes" ] && [ "$(checksum "$part/$file")" = "$sum" ] || die "$FAILED" "$file is not as its manifest says"
  done < "$part/manifest"
else
  need_own_stores
  for file in "${FILES[@]}"; do
    started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    # shellcheck disable=SC2016
    case $file in
      *.dump) in_postgresql 'pg_dump --format=custom "$1"' "${file%.dump}" </dev/null > "$part/$file" ;;
      # The tool reports each collection on standard error.
      *.archive) root_uri | in_mongodb 'mongodb_tool mongodump "$URI" --db=orders --archive' > "$part/$file" ;;
    esac || die "$FAILED" "$file could not be made"
    [ -s "$part/$file" ] || die "$FAILED" "$file is empty"
    check_content "$part/$file" >/dev/null || die "$FAILED" "$file is not readable"
    printf '%s %s %s %s %s\n' "$file" "$(stat -c %s "$part/$file")" "$(checksum "$part/$file")" "$started" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >> "$part/manifest"
  done
fi
mv "$part" "$folder"
say "File, bytes, SHA-256, started and finished (UTC):"
sed 's/^/  /' "$folder/manifest"
step "$folder"
