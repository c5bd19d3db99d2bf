#!/bin/sh
# Start the server briefly to create the replica set and the users. Idempotent.
set -eu
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
