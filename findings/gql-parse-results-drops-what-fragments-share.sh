#!/usr/bin/env bash
# gql: with `parse_results=True`, a field that two fragments select has only the subfields of the last one; the others are missing.
#
# Expected: fragments may select the same field, each with the subfields that it needs; the GraphQL specification merges the selections,
# and servers answer with all of them. `parse_results` converts scalars and enums of the answer; it does not drop anything.
# Seen: when the fragment of an order's head selects the customer's name and that of its delivery the customer's mail, then the result has a
# customer with a mail and without a name, and no error: code that reads the name raises KeyError, code that uses get() takes it for
# absent. The answer of the server has both, as one sees without `parse_results`. It is the same with lists, with fields that are
# written twice without fragments, and with parse_result() alone.
#
# Versions: gql 4.4.0, graphql-core 3.3.2, Python 3.11. Date: 2026-11-29.
# Output seen:
#     parse_results=False: {'order': {'customer': {'name': 'Ann', 'mail': 'ann@example.com'}, 'lines': [{'sku': 'A', 'quantity': 2}]}}
#     parse_results=True: {'order': {'customer': {'mail': 'ann@example.com'}, 'lines': [{'quantity': 2}]}}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check gql==4.4.0 graphql-core==3.3.2; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from gql import Client, gql
from graphql import build_schema

schema = build_schema("""
type Query { order: Order }
type Order { customer: Customer! lines: [Line!]! }
type Customer { name: String! mail: String! }
type Line { sku: String! quantity: Int! }
""")
ORDER = {"customer": {"name": "Ann", "mail": "ann@example.com"}, "lines": [{"sku": "A", "quantity": 2}]}
schema.query_type.fields["order"].resolve = lambda root, info: ORDER
query = gql("""
query { order { ...Head ...Delivery } }
fragment Head on Order { customer { name } lines { sku } }
fragment Delivery on Order { customer { mail } lines { quantity } }
""")
results = {}
for parse in (False, True):
    results[parse] = Client(schema=schema, parse_results=parse).execute(query)
    print(f"parse_results={parse}: {results[parse]}")
dropped = {"customer": {"mail": "ann@example.com"}, "lines": [{"quantity": 2}]}
sys.exit(0 if results == {False: {"order": ORDER}, True: {"order": dropped}} else 1)
PYTHON
