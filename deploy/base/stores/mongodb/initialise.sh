#!/bin/sh
# Runs the server for a moment, to make the replica set and the users. May be repeated.
set -eu
# mongod takes a key file only from its owner, with nobody else's eyes on it; a Secret's mount is not so.
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
