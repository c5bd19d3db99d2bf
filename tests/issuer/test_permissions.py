"""The main rows of the table of permissions, in the shop of `market up --sign-in` with the local issuer or Keycloak.

All rows are in tests/authorization. `make test-keycloak` runs both on Keycloak.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from market_dev.stack.sign_in import TOOLS

from market.contracts import access, inventory_pb2, inventory_pb2_grpc
from market.kit.auth.permissions import Access, Permission
from tests.issuer.signed_in_shop import SignedInShop

# Who calls, and as which role of the table.
CALLERS = {
    "nobody": "anonymous",
    "ann": "buyer",
    "ben": "buyer",
    "mia": "merchant",
    "olga": "operator",
    TOOLS: "merchant",
}
UNAUTHENTICATED, FORBIDDEN = 401, 403


async def token_of(shop: SignedInShop, caller: str) -> str | None:
    if caller == "nobody":
        return None
    return shop.people[caller] if caller in shop.people else await shop.program_token(caller)


async def create_product(shop: SignedInShop) -> dict[str, Any]:
    body = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP", "stock": 100}
    response = await shop.send("products", "POST", "/api/product", shop.people["mia"], json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


async def place_order(shop: SignedInShop, product_id: str, person: str = "ann") -> dict[str, Any]:
    body = {"items": [{"product_id": product_id, "quantity": 1}]}
    response = await shop.send("orders", "POST", "/api/order", shop.people[person], json=body)
    assert response.status_code == 201, response.text
    return dict(response.json())


def expected(entry: Access, caller: str, success: int) -> int:
    """Return the status that the table gives the caller, for what is ann's own."""
    permission: Permission = getattr(entry, CALLERS[caller])
    if permission is Permission.NO:
        return UNAUTHENTICATED if caller == "nobody" else FORBIDDEN
    return 404 if permission is Permission.OWN and caller != "ann" else success


@pytest.mark.parametrize("caller", CALLERS)
async def test_each_rest_operation_is_permitted_by_the_table(shop: SignedInShop, caller: str) -> None:
    token = await token_of(shop, caller)
    product = await create_product(shop)
    order = await place_order(shop, product["id"])
    changed = {**product, "name": "Lantern"}
    draft = {"name": "Mug", "description": "", "price": "1.00", "currency": "GBP", "stock": 1}
    one = f"/api/product/{product['id']}"
    calls: dict[str, tuple[str, dict[str, Any], int]] = {
        "GET /api/product/{id}": (one, {}, 200),
        "GET /api/product/{id}?stock=true": (f"{one}?stock=true", {}, 200),
        "GET /api/product": ("/api/product", {}, 200),
        "GET /api/product?stock=true": ("/api/product?stock=true", {}, 200),
        "POST /api/product": ("/api/product", {"json": draft}, 201),
        "PUT /api/product": ("/api/product", {"json": changed}, 200),
        "GET /api/order/{id}": (f"/api/order/{order['id']}", {}, 200),
        "DELETE /api/order/{id}": (f"/api/order/{order['id']}", {}, 204),
        "GET /api/shortages": ("/api/shortages", {}, 200),
        "GET /api/unfinished-orders": ("/api/unfinished-orders", {}, 200),
        "POST /api/unfinished-orders/{id}/retry": (f"/api/unfinished-orders/{order['id']}/retry", {}, 202),
        # Last: then the product is gone.
        "DELETE /api/product/{id}": (one, {}, 204),
    }
    table = {**access.PRODUCTS, **access.ORDERS}
    assert calls.keys() | {"POST /api/order", "GET /api/order"} == table.keys()
    for key, (path, request, success) in calls.items():
        service = "orders" if key in access.ORDERS else "products"
        response = await shop.send(service, key.split(" ")[0], path, token, **request)
        status = expected(table[key], caller, success)
        assert response.status_code == status, f"{key} by {caller}: {response.status_code} {response.text}"
        if status == UNAUTHENTICATED:
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="market"'


@pytest.mark.parametrize("caller", CALLERS)
async def test_an_order_belongs_to_the_subject_of_the_token(shop: SignedInShop, caller: str) -> None:
    token = await token_of(shop, caller)
    product = await create_product(shop)
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    response = await shop.send("orders", "POST", "/api/order", token, json=body)
    permission = getattr(access.ORDERS["POST /api/order"], CALLERS[caller])
    if permission is Permission.NO:
        assert response.status_code == (UNAUTHENTICATED if caller == "nobody" else FORBIDDEN)
        return
    assert response.status_code == 201, response.text
    order = response.json()
    if caller in shop.subjects:
        assert order["user"] == shop.subjects[caller]
        assert order["email"] == f"{caller}@example.test"
    # For somebody else, and to another address: merchants alone.
    for field in ({"user": "somebody"}, {"email": "somebody@example.test"}):
        response = await shop.send("orders", "POST", "/api/order", token, json={**body, **field})
        assert response.status_code == (201 if CALLERS[caller] == "merchant" else FORBIDDEN), response.text


async def test_a_buyer_lists_own_orders_and_a_merchant_everybodys(shop: SignedInShop) -> None:
    product = await create_product(shop)
    by_person = {person: await place_order(shop, product["id"], person) for person in ("ann", "ben")}
    for caller in CALLERS:
        response = await shop.send("orders", "GET", "/api/order?limit=100", await token_of(shop, caller))
        if caller == "nobody":
            assert response.status_code == UNAUTHENTICATED
            continue
        assert response.status_code == 200
        shown = {order["id"] for order in response.json()["items"]}
        for person, order in by_person.items():
            assert (order["id"] in shown) == (caller == person or CALLERS[caller] in ("merchant", "operator"))


@pytest.mark.parametrize("caller", CALLERS)
async def test_graphql_shows_stock_to_merchants_and_orders_to_their_buyers(shop: SignedInShop, caller: str) -> None:
    token = await token_of(shop, caller)
    product = await create_product(shop)
    order = await place_order(shop, product["id"])
    documents = {
        "Query.product": (f'{{ product(id: "{product["id"]}") {{ id }} }}', "product"),
        "Product.stock": (f'{{ product(id: "{product["id"]}") {{ stock }} }}', "product"),
        "Query.order": (f'{{ order(id: "{order["id"]}") {{ id }} }}', "order"),
        "Mutation.deleteOrder": (f'mutation {{ deleteOrder(id: "{order["id"]}") {{ id }} }}', "deleteOrder"),
    }
    codes = {UNAUTHENTICATED: "UNAUTHENTICATED", FORBIDDEN: "FORBIDDEN", 404: "NOT_FOUND"}
    for name, (document, field) in documents.items():
        response = await shop.send("graphql", "POST", "/graphql", token, json={"query": document})
        assert response.status_code == 200, response.text
        content = response.json()
        status = expected(access.GRAPHQL_FIELDS[name], caller, 200)
        if status == 200:
            assert not content.get("errors"), f"{name} by {caller}: {content}"
            assert content["data"][field]
        elif content.get("errors"):
            assert content["errors"][0]["extensions"]["code"] == codes[status], f"{name} by {caller}: {content}"
        else:
            # An order that does not exist is null.
            assert (status, content["data"][field]) == (404, None), f"{name} by {caller}: {content}"


@pytest.mark.parametrize("caller", ["products", "orders", *CALLERS])
async def test_inventory_knows_its_callers(shop: SignedInShop, caller: str) -> None:
    token = await token_of(shop, caller)
    product = str(uuid4())
    requests: dict[str, Any] = {
        "GetStock": inventory_pb2.GetStockRequest(product_ids=[product]),
        "SetStock": inventory_pb2.SetStockRequest(product_id=product, quantity=1),
        "CheckAvaliable": inventory_pb2.CheckAvaliableRequest(product_ids=[product]),
        "Reserve": inventory_pb2.ReserveRequest(
            reservation_id=str(uuid4()), items=[inventory_pb2.Item(product_id=product, quantity=1)]
        ),
        "AddDelivery": inventory_pb2.AddDeliveryRequest(
            product_id=product, delivery_id=str(uuid4()), quantity=1, product_version=1
        ),
        "AddStock": inventory_pb2.AddStockRequest(movement_id=str(uuid4()), product_id=product, delta=1),
    }
    async with grpc.aio.insecure_channel(shop.up.urls["inventory"]) as channel:
        stub = inventory_pb2_grpc.InventoryStub(channel)
        for method, request in requests.items():
            metadata = [] if token is None else [("authorization", f"Bearer {token}")]
            try:
                await getattr(stub, method)(request, metadata=metadata, timeout=20)
                status = "OK"
            except grpc.aio.AioRpcError as e:
                status = e.code().name
            if caller not in ("products", "orders"):
                # The tokens of people are for another audience.
                assert status == "UNAUTHENTICATED", f"{method} by {caller}"
            elif caller in access.INVENTORY[method].callers:
                assert status == "OK", f"{method} by {caller}"
            else:
                assert status == "PERMISSION_DENIED", f"{method} by {caller}"


async def test_a_token_that_was_altered_is_refused(shop: SignedInShop) -> None:
    header, payload, signature = shop.people["ann"].split(".")
    merchant = shop.people["mia"].split(".")[1]
    for token in (
        f"{header}.{merchant}.{signature}",
        f"{header}.{payload}.",
        "x",
        f"{header}.{payload}.{signature[::-1]}",
    ):
        response = await shop.send("orders", "GET", "/api/order", token)
        assert response.status_code == UNAUTHENTICATED
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
