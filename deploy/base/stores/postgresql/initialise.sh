#!/bin/sh
# Makes the data directory where there is none, and sees to it that both databases and users are there, each user with
# the Secret's password and at home in its own database only. May be repeated; an older volume is brought up to date.
set -eu
data=/var/lib/postgresql/18/docker
if [ ! -s "$data/PG_VERSION" ]; then
  # Made aside and renamed when complete: what an interrupted start leaves is no database.
  rm -rf "$data.new"
  mkdir -p "$data.new"
  chmod 0700 "$data.new"
  initdb --pgdata="$data.new" --username=postgres --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 \
    --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-instructions
  mkdir -p "${data%/*}"
  mv "$data.new" "$data"
fi
chmod 0700 "$data"
# A server for this pod alone, while the users are made.
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
