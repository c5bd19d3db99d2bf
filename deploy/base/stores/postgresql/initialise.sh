#!/bin/sh
# Create the data directory if there is none, then both databases and users. Each user gets the Secret's password and can
# connect to its own database only. Idempotent; an older volume is updated.
set -eu
data=/var/lib/postgresql/18/docker
if [ ! -s "$data/PG_VERSION" ]; then
  # Created beside its final place and renamed when complete: an interrupted start leaves no half database.
  rm -rf "$data.new"
  mkdir -p "$data.new"
  chmod 0700 "$data.new"
  initdb --pgdata="$data.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 \
    --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-instructions
  mkdir -p "${data%/*}"
  mv "$data.new" "$data"
fi
chmod 0700 "$data"
# A server that only this pod can reach, while the users are created.
pg_ctl --pgdata="$data" --wait --timeout=120 --log=/tmp/initialise.log start \
  --options="-c config_file=/etc/postgresql/postgresql.conf -c listen_addresses=''" || { cat /tmp/initialise.log; exit 1; }
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --host=/var/run/postgresql --username=postgres --dbname=postgres <<'SQL'
\getenv products PRODUCTS_PASSWORD
\getenv inventory INVENTORY_PASSWORD
SELECT format('CREATE ROLE %I', name) FROM unnest('{products,inventory}'::text[]) AS name
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE products LOGIN PASSWORD :'products';
ALTER ROLE inventory LOGIN PASSWORD :'inventory';
SELECT format('CREATE DATABASE %I OWNER %I', name, name) FROM unnest('{products,inventory}'::text[]) AS name
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
REVOKE CONNECT ON DATABASE products, inventory, postgres, template1 FROM PUBLIC;
SQL
pg_ctl --pgdata="$data" --wait --mode=fast stop
