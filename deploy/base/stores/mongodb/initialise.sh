#!/bin/sh
# Start the server briefly to create the replica set and the users. Idempotent.
set -eu
# Orders wait while a pod is replaced, so nothing is done again that has been done to this volume. If somebody has changed
# the users in the server since, delete the file and the pod.
state=$(printf '%s\n' "$ROOT_PASSWORD" "$ORDERS_PASSWORD" | cat - /etc/mongodb/initialise.js | sha256sum)
marker=/data/db/.initialised
if [ "$(cat "$marker" 2>/dev/null)" = "$state" ]; then
  echo "nothing has changed since this volume was initialised"
  exit 0
fi
# mongod accepts a key file only if nobody but its owner can read it, which a mounted Secret does not allow.
install -m 0400 /etc/mongodb-secret/keyfile /tmp/keyfile
mongod --config /etc/mongodb/mongod.conf > /tmp/mongod.log 2>&1 &
server=$!
if ! mongosh --quiet --nodb /etc/mongodb/initialise.js > /tmp/initialise.log 2>&1; then
  tail -n 20 /tmp/mongod.log
  cat /tmp/initialise.log
  exit 1
fi
cat /tmp/initialise.log
kill "$server"
wait "$server" || true
echo "$state" > "$marker.new"
mv "$marker.new" "$marker"
