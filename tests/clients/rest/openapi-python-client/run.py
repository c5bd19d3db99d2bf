"""Orders through the clients of openapi-python-client, and prints what happens as JSON.

run.py ORDERS_URL PRODUCTS_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
"""

import json
import sys
from uuid import UUID, uuid4

from market_orders import Client as OrdersClient
from market_orders.api.default import cancel_order, create_order, get_order, list_orders
from market_orders.models import CreateOrder, ListOrdersStatus, NewLine, Order, Page, Problem
from market_orders.types import UNSET, Unset
from market_products import Client as ProductsClient
from market_products.api.default import list_products
from market_products.models import ProductPage

orders_url, products_url, user = sys.argv[1:4]
plenty, scarce = map(UUID, sys.argv[4:])
orders, products = OrdersClient(orders_url), ProductsClient(products_url)


def place(customer: str, product_id: UUID, quantity: int, email: str | Unset = UNSET) -> Order | Problem | None:
    body = CreateOrder(user=customer, items=[NewLine(product_id, quantity)], email=email)
    return create_order.sync(client=orders, body=body, idempotency_key=uuid4().hex)


def list_page(after: str | Unset = UNSET) -> Page:
    page = list_orders.sync(client=orders, user=user, limit=2, status=ListOrdersStatus.CONFIRMED, after=after)
    assert isinstance(page, Page), page
    return page


found = list_products.sync(client=products, ids=[scarce, plenty])
assert isinstance(found, ProductPage), found
placed = [place(user, plenty, 2) for _ in range(3)]
read = get_order.sync(client=orders, id=placed[0].id)
assert isinstance(read, Order), read
first = list_page()
second = list_page(first.next_)
response = cancel_order.sync_detailed(client=orders, id=read.id)
cancelled = get_order.sync(client=orders, id=read.id)
conflict = place(user, scarce, 5)
invalid = place(" ", plenty, 1, "nobody")
assert isinstance(conflict, Problem)
assert isinstance(invalid, Problem)
print(
    json.dumps(
        {
            "products": [[p.name, p.price] for p in found.items],
            "placed": [read.status, read.total, read.items[0].quantity],
            "listed": [o.id for o in [*first.items, *second.items]] == [o.id for o in reversed(placed)],
            "pages": [len(first.items), len(second.items), second.next_],
            "cancelled": [response.status_code, cancelled.status],
            "conflict": [conflict.status, [[s.wanted, s.left] for s in conflict.shortages]],
            "invalid": [invalid.status, [e.field for e in invalid.errors]],
        }
    )
)
