#!/bin/sh
# backup.sh postgresql|mongodb: write a backup to a folder of /backups that is named after its start, and keep the last
# KEEP. The folder has another name until size and content have been checked. Exit status 1 if a check fails: the older
# backups stay, and the job fails.
set -eu
umask 077
here=$(dirname "$0")
# shellcheck source=deploy/base/backup/mongodb-tool.sh
. "$here/mongodb-tool.sh"
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
name=$(date -u +%Y%m%dT%H%M%SZ)
previous=$(find /backups -mindepth 1 -maxdepth 1 -type d ! -name '*.partial' | sort | tail -n 1)
part=/backups/$name.partial
rm -rf /backups/*.partial
mkdir "$part"

fail() { echo "error: $*" >&2; exit 1; }
# Check the size of a file, and add it to the manifest.
accept() {
  bytes=$(stat -c %s "$part/$1")
  before=0
  if [ -n "$previous" ] && [ -f "$previous/$1" ]; then before=$(stat -c %s "$previous/$1"); fi
  [ $((bytes * 100)) -ge $((before * MIN_PERCENT)) ] ||
    fail "$1 has $bytes bytes, less than $MIN_PERCENT % of the previous backup's $before. If that is right, set MIN_PERCENT to 0 for a run"
  echo "$1 $bytes $(sha256sum < "$part/$1" | cut -d' ' -f1) $started $(date -u +%Y-%m-%dT%H:%M:%SZ)" >> "$part/manifest"
}

case $1 in
  postgresql)
    for database in inventory products; do
      if [ $database = inventory ]; then PGPASSWORD=$INVENTORY_PASSWORD; else PGPASSWORD=$PRODUCTS_PASSWORD; fi
      export PGPASSWORD
      pg_dump --username=$database --no-password --format=custom --file="$part/$database.dump" $database
      # Reads and decompresses all of it.
      pg_restore --file=/dev/null "$part/$database.dump"
      accept $database.dump
    done ;;
  mongodb)
    mongodb_tool mongodump "$URI" --db=orders --archive="$part/orders.archive"
    ARCHIVE=$part/orders.archive mongosh --quiet --nodb "$here/check-archive.js"
    accept orders.archive ;;
esac
mv "$part" "/backups/$name"
cat "/backups/$name/manifest"
find /backups -mindepth 1 -maxdepth 1 -type d ! -name '*.partial' | sort | head -n "-$KEEP" | xargs -r rm -rf
