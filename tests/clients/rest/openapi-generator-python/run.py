"""Orders through clients of openapi-generator, and prints what happens as JSON.

run.py ORDERS_URL PRODUCTS_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
"""

import json
import sys
from uuid import UUID, uuid4

from market_orders import ApiClient, Configuration, CreateOrder, DefaultApi, NewLine, Order, Problem
from market_orders.exceptions import ApiException, ConflictException, UnprocessableEntityException
from market_products import ApiClient as ProductsClient
from market_products import Configuration as ProductsConfiguration
from market_products import DefaultApi as ProductsApi

orders_url, products_url, user = sys.argv[1:4]
plenty, scarce = map(UUID, sys.argv[4:])
orders = DefaultApi(ApiClient(Configuration(orders_url)))
products = ProductsApi(ProductsClient(ProductsConfiguration(products_url)))


def place(customer: str, product_id: UUID, quantity: int, email: str | None = None) -> Order:
    body = CreateOrder(user=customer, items=[NewLine(product_id=product_id, quantity=quantity)], email=email)
    return orders.create_order(body, idempotency_key=uuid4().hex)


def refused(error: type[ApiException], *order: object) -> Problem:
    """Return the problem document, which the exception of the status has in its typed form."""
    try:
        place(*order)
    except error as e:
        problem = e.data
    assert isinstance(problem, Problem), problem
    return problem


found = products.list_products(ids=[scarce, plenty])
placed = [place(user, plenty, 2) for _ in range(3)]
read = orders.get_order(placed[0].id)
first = orders.list_orders(user, limit=2, status="confirmed")
second = orders.list_orders(user, limit=2, status="confirmed", after=first.next)
response = orders.cancel_order_with_http_info(read.id)
cancelled = orders.get_order(read.id)
conflict = refused(ConflictException, user, scarce, 5)
invalid = refused(UnprocessableEntityException, " ", plenty, 1, "nobody")
print(
    json.dumps(
        {
            "products": [[p.name, p.price] for p in found.items],
            "placed": [read.status, read.total, read.items[0].quantity],
            "listed": [o.id for o in [*first.items, *second.items]] == [o.id for o in reversed(placed)],
            "pages": [len(first.items), len(second.items), second.next],
            "cancelled": [response.status_code, cancelled.status],
            "conflict": [conflict.status, [[s.wanted, s.left] for s in conflict.shortages]],
            "invalid": [invalid.status, [e.var_field for e in invalid.errors]],
        }
    )
)
