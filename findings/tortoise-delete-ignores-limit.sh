#!/usr/bin/env bash
# Tortoise ORM: on SQLite and PostgreSQL, limit() and order_by() before delete() and update() are dropped, and all rows are changed.
#
# Expected: Job.filter(done=True).order_by("id").limit(1).delete() removes one row, since support for this was added in 2021 on request;
# where a database or an ORM cannot do it, there is an error, as in Django's ORM (TypeError).
# Seen: by its source, the limit is part of the statement for MySQL; for SQLite, PostgreSQL and SQL Server it is left out silently. delete()
# removes all rows that match the filter, or the whole table without one, and update() changes all of them. Who cleans up in batches, or
# lets each worker take one job with limit(1).update(), learns it from the number that is returned, if at all. The same query set
# without delete() obeys the limit. The docstrings do not mention the databases.
#
# Versions: tortoise-orm 1.1.9, aiosqlite 0.22.1, Python 3.11 with SQLite 3.40.1. Date: 2026-11-29.
# Output seen:
#     select with limit(1): 1 of 4 rows
#     update with limit(1): 4 of 4 rows
#     delete with limit(1): 4 of 4 rows
#     DELETE FROM "job"
#     for PostgreSQL, support_update_limit_order_by is False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check tortoise-orm==1.1.9 \
  aiosqlite==0.22.1; } || exit 2
cat > "$folder/jobs.py" <<'PYTHON'
import asyncio
import sys

from tortoise import Tortoise, fields
from tortoise.backends.base_postgres.client import BasePostgresClient
from tortoise.models import Model

ROWS = 4


class Job(Model):
    id = fields.IntField(primary_key=True)
    worker = fields.IntField(null=True)


async def look():
    await Tortoise.generate_schemas()
    for _ in range(ROWS):
        await Job.create()
    first = Job.all().order_by("id").limit(1)
    statement = first.delete().sql()
    selected, updated, deleted = len(await first), await first.update(worker=1), await first.delete()
    for text, rows in (("select", selected), ("update", updated), ("delete", deleted)):
        print(f"{text} with limit(1): {rows} of {ROWS} rows")
    print(statement)
    print("for PostgreSQL, support_update_limit_order_by is", BasePostgresClient.capabilities.support_update_limit_order_by)
    return selected == 1 and updated == deleted == ROWS and not await Job.all().count()


async def main():
    await Tortoise.init(db_url="sqlite://:memory:", modules={"models": ["__main__"]})
    try:
        return await look()
    finally:
        await Tortoise.close_connections()


sys.exit(0 if asyncio.run(main()) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/jobs.py"
