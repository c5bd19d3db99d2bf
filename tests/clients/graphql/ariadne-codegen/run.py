"""Orders through the client of ariadne-codegen, and prints what happens as JSON.

run.py GRAPHQL_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
"""

import json
import sys
from uuid import uuid4

from market_graphql import Client, CreateOrderInput, GraphQLClientGraphQLMultiError, OrderItemInput

url, user, plenty, scarce = sys.argv[1:]
client = Client(url)


def place(customer: str, product_id: str, quantity: int, email: str | None = None) -> str:
    line = OrderItemInput(productId=product_id, quantity=quantity)
    placed = client.place_order(CreateOrderInput(user=customer, email=email, items=[line]), uuid4().hex)
    return placed.create_order.id


def refused(customer: str, product_id: str, quantity: int, email: str | None = None) -> dict:
    try:
        place(customer, product_id, quantity, email)
    except GraphQLClientGraphQLMultiError as e:
        [error] = e.errors
        return error.extensions
    sys.exit("was accepted")


found = client.find_products([scarce, plenty]).products
placed = [place(user, plenty, 2) for _ in range(3)]
read = client.read_order(placed[0]).order
first = client.list_orders(user).orders
second = client.list_orders(user, first.next).orders
cancelled = client.cancel_order(placed[0]).delete_order
conflict = refused(user, scarce, 5)
invalid = refused(" ", plenty, 1, "nobody")
print(
    json.dumps(
        {
            "products": [[p.name, p.price] for p in found.items],
            "placed": [read.status, read.total, read.items[0].quantity],
            "listed": [o.id for o in [*first.items, *second.items]] == placed[::-1],
            "pages": [len(first.items), len(second.items), second.next],
            "cancelled": cancelled.status,
            "conflict": [conflict["code"], [[s["wanted"], s["left"]] for s in conflict["shortages"]]],
            "invalid": [invalid["code"], [e["field"] for e in invalid["errors"]]],
        }
    )
)
