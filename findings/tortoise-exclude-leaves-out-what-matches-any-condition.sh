#!/usr/bin/env bash
# Tortoise ORM: exclude() with several conditions leaves out the rows that match any of them, not only those that match all.
#
# Expected: exclude() is the opposite of filter(), which wants all conditions to be true: exclude(status="cancelled", paid=False) leaves out
# the orders that are cancelled and unpaid, and each row is found either by filter() or by exclude(). So it is in Django's ORM, whose
# interface Tortoise follows, and with the negated Q object of the same two conditions in Tortoise itself.
# Seen: each condition is negated by itself, and the results are combined with AND. All cancelled orders and all unpaid ones are missing,
# also those that have only one of the two properties: of four orders, one is left where three should be. Two Q objects as
# arguments do the same, but one Q object with both conditions does not. There is no error; count() and update() are affected
# alike, and delete() deletes less than it should. The docstring says only that NOT is put before the arguments.
#
# Versions: tortoise-orm 1.1.9, aiosqlite 0.22.1, Python 3.11. Date: 2026-11-29.
# Output seen:
#     filter(status='cancelled', paid=False): cancelled and unpaid
#     exclude(status='cancelled', paid=False): new and paid
#     exclude(Q(status='cancelled'), Q(paid=False)): new and paid
#     exclude(Q(status='cancelled', paid=False)): new and paid, new and unpaid, cancelled and paid
#     filter(~Q(status='cancelled', paid=False)): new and paid, new and unpaid, cancelled and paid
#     condition of the second one: NOT "status"=? AND NOT "paid"=?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check tortoise-orm==1.1.9 \
  aiosqlite==0.22.1; } || exit 2
cat > "$folder/orders.py" <<'PYTHON'
import asyncio
import sys

from tortoise import Tortoise, fields
from tortoise.expressions import Q
from tortoise.models import Model


class Order(Model):
    id = fields.IntField(primary_key=True)
    status = fields.CharField(max_length=20)
    paid = fields.BooleanField()


async def found(query):
    orders = await query.order_by("id")
    return ", ".join(f"{order.status} and {'paid' if order.paid else 'unpaid'}" for order in orders)


async def look():
    await Tortoise.generate_schemas()
    for status in ("new", "cancelled"):
        for paid in (True, False):
            await Order.create(status=status, paid=paid)
    both = {"status": "cancelled", "paid": False}
    queries = {
        "filter(status='cancelled', paid=False)": Order.filter(**both),
        "exclude(status='cancelled', paid=False)": Order.exclude(**both),
        "exclude(Q(status='cancelled'), Q(paid=False))": Order.exclude(Q(status="cancelled"), Q(paid=False)),
        "exclude(Q(status='cancelled', paid=False))": Order.exclude(Q(**both)),
        "filter(~Q(status='cancelled', paid=False))": Order.filter(~Q(**both)),
    }
    seen = {}
    for text, query in queries.items():
        seen[text] = await found(query)
        print(f"{text}: {seen[text]}")
    print("condition of the second one:", Order.exclude(**both).sql().partition(" WHERE ")[2])
    results = list(seen.values())
    return results[1] == results[2] == "new and paid" and results[3] == results[4] != results[1]


async def main():
    await Tortoise.init(db_url="sqlite://:memory:", modules={"models": ["__main__"]})
    try:
        return await look()
    finally:
        await Tortoise.close_connections()


sys.exit(0 if asyncio.run(main()) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/orders.py"
