#!/usr/bin/env bash
# Restore the databases of the shop from a backup.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
# shellcheck source=scripts/lib-backup.sh
. "$here/lib-backup.sh"

usage() {
  cat <<'TEXT'
scripts/restore.sh DIR [--only FILE]... [--yes] [--context C]

Restores what the folder DIR of backup.sh contains: inventory.dump, products.dump, orders.archive. Checks all files first,
stops products, orders and inventory, restores, starts them again, and reconciles. What was written after the backup is
lost: the orders among it are listed in DIR/lost-orders-TIME.

  --only FILE   restore this file only; may be repeated
  --yes         confirm it: required outside minikube and kind
  --context C   the kubectl context to use (default: the current one, which is never changed)

If it fails it can be run again. The services stay stopped until it has succeeded, or until deploy.sh starts them.

Exit status: 0 restored, 1 failed or differences are left, 2 wrong usage, 3 a prerequisite or --yes is missing.
TEXT
}

folder='' yes=no only=()
while [ $# -gt 0 ]; do
  case $1 in --only|--context) [ $# -ge 2 ] || wrong "$1 needs a value" ;; esac
  case $1 in
    --only) only+=("$2"); shift 2 ;;
    --yes|-y) yes=yes; shift ;;
    --context) context=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    -*) wrong "unknown option: $1" ;;
    *) [ -z "$folder" ] || wrong "one folder only, got $folder and $1"; folder=${1%/}; shift ;;
  esac
done
[ -n "$folder" ] || wrong "name the folder of the backup"
[ -f "$folder/manifest" ] || wrong "$folder is not a backup: it has no manifest"

# --- checks: nothing is changed before all files are known to be good ------------------------------------------
files=()
orders_since='' orders_until=''
while read -r file bytes sum started ended _; do
  [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $file "* ]] || continue
  [[ " ${FILES[*]} " == *" $file "* ]] || die "$FAILED" "the manifest has an unknown file: $file"
  [ -f "$folder/$file" ] || die "$FAILED" "$folder/$file is missing"
  [ "$(stat -c %s "$folder/$file")" = "$bytes" ] || die "$FAILED" "$folder/$file has $(stat -c %s "$folder/$file") bytes, the manifest says $bytes"
  [ "$(checksum "$folder/$file")" = "$sum" ] || die "$FAILED" "$folder/$file has another checksum than in the manifest"
  files+=("$file")
  [ "$file" != orders.archive ] || { orders_since=$started; orders_until=$ended; }
  restored_to+="              $file as of $started"$'\n'
done < "$folder/manifest"
[ ${#files[@]} -gt 0 ] || wrong "nothing to restore: the manifest has none of: ${only[*]:-${FILES[*]}}"
umask 077
need_cluster
need_own_stores
say "Context:      $context"
say "Restores:     from $folder"
say "${restored_to%$'\n'}"
say "Loses:        everything that was written after those times"
if [ $yes = no ] && ! is_kind && ! minikube_profile >/dev/null; then
  die "$MISSING" "this is neither minikube nor kind: confirm the restore with --yes"
fi
for file in "${files[@]}"; do
  check_content "$folder/$file" >/dev/null || die "$FAILED" "$folder/$file is not readable: nothing was changed"
done
step "all files are readable"

# --- stop ------------------------------------------------------------------------------------------------------
stopped=(product-service order-service inventory-service)
declare -A replicas
for name in "${stopped[@]}"; do
  replicas[$name]=$(inside get deployment "$name" -o 'jsonpath={.spec.replicas}')
  # Also after a run that failed.
  [ "${replicas[$name]}" != 0 ] || replicas[$name]=$(inside get hpa "$name" --ignore-not-found -o 'jsonpath={.spec.minReplicas}')
  inside scale "deployment/$name" --replicas=0 >/dev/null
done
work=$(mktemp -d)
trap 'rm -rf "$work"; say "The services are stopped. Run the script again, or start them with deploy.sh." >&2' EXIT
for name in "${stopped[@]}"; do
  watching wait pods -l "app.kubernetes.io/name=$name" --for=delete --timeout=120s >/dev/null
done
step "products, orders and inventory are stopped"

# --- restore ---------------------------------------------------------------------------------------------------
# The orders that were created after the backup began, one per line: id, time, user, status.
# shellcheck disable=SC2016
RECENT='const orders = new Mongo(process.env.URI).getDB("orders").orders;
orders.find({created_at: {$gte: new Date(process.env.SINCE)}}).sort({_id: 1}).forEach((order) =>
  print(Buffer.from(order._id.buffer).toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, "$1-$2-$3-$4-$5"), order.created_at.toISOString(), order.user, order.status));'
recent_orders() {
  # shellcheck disable=SC2016
  root_uri | in_mongodb 'SINCE=$1 mongosh --quiet --nodb --eval "$2"' "$orders_since" "$RECENT" | sort
}
[ -z "$orders_since" ] || recent_orders > "$work/before" || die "$FAILED" "the orders could not be read: nothing was changed"
# PostgreSQL: into a database beside the current one, which is replaced at the end.
for file in "${files[@]}"; do
  [[ $file == *.dump ]] || continue
  # shellcheck disable=SC2016
  in_postgresql '
    sql() { psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=postgres --command="$1" </dev/null; }
    sql "DROP DATABASE IF EXISTS $1_restored WITH (FORCE)"
    sql "CREATE DATABASE $1_restored OWNER $1"
    sql "REVOKE CONNECT ON DATABASE $1_restored FROM PUBLIC"
    pg_restore --exit-on-error --dbname="$1_restored"' "${file%.dump}" < "$folder/$file" || die "$FAILED" "$file could not be restored"
done
if [ -n "$orders_since" ]; then
  # shellcheck disable=SC2016
  { root_uri; cat "$folder/orders.archive"; } | in_mongodb 'mongodb_tool mongorestore "$URI" --db=orders --archive --drop' ||
    die "$FAILED" "orders.archive could not be restored"
fi
for file in "${files[@]}"; do
  [[ $file == *.dump ]] || continue
  # shellcheck disable=SC2016
  in_postgresql '
    sql() { psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=postgres --command="$1" </dev/null; }
    sql "DROP DATABASE IF EXISTS $1 WITH (FORCE)"
    sql "ALTER DATABASE $1_restored RENAME TO $1"' "${file%.dump}" </dev/null || die "$FAILED" "the database ${file%.dump} could not be replaced"
done
step "restored: ${files[*]}"
if [ -n "$orders_since" ]; then
  recent_orders > "$work/after"
  lost=$folder/lost-orders-$(date -u +%Y%m%dT%H%M%SZ)
  comm -23 "$work/before" "$work/after" > "$lost"
  step "$(wc -l < "$lost") orders are lost: $lost"
fi

# --- start and reconcile ---------------------------------------------------------------------------------------
for name in inventory-service product-service order-service; do
  inside scale "deployment/$name" --replicas="${replicas[$name]:-1}" >/dev/null
done
trap - EXIT
rm -rf "$work"
for name in inventory-service product-service order-service; do
  watching rollout status "deployment/$name" --timeout=300s >/dev/null || die "$FAILED" "$name did not become ready: kubectl --context $context -n $NAMESPACE describe deployment $name"
done
step "products, orders and inventory are ready; reconciling"
# reconcile leaves out the orders of the last minute (recovery.reject_after_seconds), because they may be in progress.
if [ -n "$orders_until" ]; then
  pause=$(($(date -d "$orders_until" +%s) + 75 - $(date +%s)))
  [ $pause -le 0 ] || sleep "$pause"
fi
status=0
watching exec deployment/order-service -c service -- python -m market.orders reconcile --repair || status=$?
if [ $status != 0 ]; then
  die "$FAILED" "differences are left: run reconcile again (docs/operations.md); what it cannot repair unambiguously needs your decision"
fi
step "done"
