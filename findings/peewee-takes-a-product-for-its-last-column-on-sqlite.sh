#!/usr/bin/env bash
# Peewee on SQLite: the result of an expression without an alias is taken for its last column: converted to its type, stored in its place.
#
# Expected: price * quantity, of a DecimalField and an IntegerField, is the same number as quantity * price, and the same with or without
# alias(), which only gives it a name. A row read as tuples() or scalar() needs no names at all, so that one leaves the alias out.
# Seen: peewee looks at the name that SQLite gives such a column, its text, takes what is behind the last dot for a field of the model, and
# converts the value as it does for that field. 19.99 * 3 is 59 where the quantity comes last, an int without its cents, and 19.99 / 3 is 6.
# In an object or a dict it is the quantity itself: a program that reads id and price * quantity, and saves the object after a change,
# writes 59 as the quantity of the order line. A function around it, such as ROUND or SUM, gives the right amount.
#
# Versions: peewee 4.5.3, Python 3.11 with SQLite 3.40.1. Date: 2026-11-29.
# Output seen:
#     price * quantity: 59
#     quantity * price: 59.97
#     price / quantity: 6
#     price * quantity with an alias: 59.97
#     ROUND(price * quantity, 2): 59.97
#     as dict: {'id': 1, 'quantity': 59}
#     quantity in the database after save(): 59
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check peewee==4.5.3; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from decimal import Decimal

from peewee import DecimalField, IntegerField, Model, SqliteDatabase, TextField, fn

database = SqliteDatabase(":memory:")


class Line(Model):
    price = DecimalField(max_digits=10, decimal_places=2)
    quantity = IntegerField()
    note = TextField(default="")

    class Meta:
        database = database


database.create_tables([Line])
Line.create(price=Decimal("19.99"), quantity=3)
total = Line.price * Line.quantity
expressions = {
    "price * quantity": total,
    "quantity * price": Line.quantity * Line.price,
    "price / quantity": Line.price / Line.quantity,
    "price * quantity with an alias": total.alias("total"),
    "ROUND(price * quantity, 2)": fn.ROUND(total, 2),
}
seen = {}
for text, expression in expressions.items():
    seen[text] = Line.select(expression).scalar()
    print(f"{text}: {seen[text]}")
query = Line.select(Line.id, total)
print("as dict:", query.dicts().get())
line = query.get()
line.note = "a gift"
line.save()
quantity = Line.get().quantity
print("quantity in the database after save():", quantity)
sys.exit(0 if seen["price * quantity"] == 59 != seen["price * quantity with an alias"] and quantity == 59 else 1)
PYTHON
