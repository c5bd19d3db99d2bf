# Shared by backup.sh and restore.sh. Sourced, never run.
# shellcheck shell=bash disable=SC2034,SC2154  # root is the scripts'; FILES is for them
# The files of a backup, in the order in which they are made: inventory restored to an earlier moment than orders is the
# case that reconcile repairs.
FILES=(inventory.dump products.dump orders.archive)

mongodb_tool=$root/deploy/base/backup/mongodb-tool.sh

# The URI of MongoDB's user root, with the password: to be printed to a pipe, never to an argument.
root_uri() {
  local password
  password=$(inside get secret passwords -o 'jsonpath={.data.mongodb_root}' | base64 -d)
  [ -n "$password" ] || die "$FAILED" "the Secret passwords has no mongodb_root"
  printf 'mongodb://root:%s@127.0.0.1:27017/?authSource=admin&directConnection=true\n' "$password"
}

# in_postgresql SCRIPT ARG...: run a shell script in the server's pod, with our standard input.
in_postgresql() {
  local code=$1
  shift
  watching exec -i postgresql-0 -c postgresql -- sh -c "set -eu; export PGHOST=/var/run/postgresql PGUSER=postgres PGOPTIONS=--client-min-messages=warning; $code" sh "$@"
}

# in_mongodb SCRIPT ARG...: the same in MongoDB's pod; $URI is the first line of the standard input.
in_mongodb() {
  local code=$1
  shift
  watching exec -i mongodb-0 -c mongodb -- sh -c "set -eu; umask 077; export HOME=/tmp; IFS= read -r URI; export URI; $(<"$mongodb_tool")
$code" sh "$@"
}

# check_content FILE: read a file of a backup to its end with the store's own tool. The file is checked as it is on this
# machine.
check_content() {
  case $1 in
    *.dump) in_postgresql 'pg_restore --file=/dev/null' < "$1" ;;
    *.archive) watching exec -i mongodb-0 -c mongodb -- env HOME=/tmp ARCHIVE=/dev/stdin mongosh --quiet --nodb --eval "$(<"$root/deploy/base/backup/check-archive.js")" < "$1" ;;
  esac
}

checksum() { sha256sum < "$1" | cut -d' ' -f1; }

need_own_stores() {
  local name
  for name in postgresql mongodb; do
    [ -n "$(inside get pod "$name-0" --ignore-not-found -o name)" ] ||
      die "$MISSING" "the shop in context $context has no pod $name-0: the stores of the production overlay have backups of their own (docs/operations.md)"
  done
}
