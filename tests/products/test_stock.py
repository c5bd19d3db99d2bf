"""`stock`: the units that are free to sell, on products for which it is requested."""

from __future__ import annotations

from uuid import uuid4

import pytest

from market.contracts import inventory_pb2 as pb

from .conftest import FakeInventory, RunningProducts, Start, serving


async def test_stock_is_shown_only_on_request_and_follows_each_sale(start: Start, inventory_port, inventory_stub):
    # Entries of its cache live for minutes.
    async with start(inventory_port) as products:
        product = await products.create(stock=5)
        id = product["id"]
        assert "stock" not in product
        assert "stock" not in await products.get(id)
        assert await products.get(id, stock="true") == {**product, "stock": 5}
        line = pb.Item(product_id=id, quantity=5)
        assert (await inventory_stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
        # The cache still has the product as available; what is shown together agrees.
        assert await products.redis.get(f"avail:{id}") == b"1"
        assert await products.get(id, stock="true") == {**product, "available": False, "stock": 0}
        assert await products.get(id, stock="true", availability="false") == {**product, "available": None, "stock": 0}


async def test_a_page_with_stock_costs_one_call(products_with_fake: RunningProducts, inventory: FakeInventory):
    ids = [(await products_with_fake.create(stock=n))["id"] for n in (3, 0, 2_147_483_647)]
    del inventory.stock[ids[1]]
    for parameters in ({"ids": ",".join(ids)}, {"limit": 3, "sort": "created_at", "q": "lamp"}):
        inventory.reads.clear()
        page = await products_with_fake.http.get("/api/product", params={**parameters, "stock": "true"})
        assert len(inventory.reads) == 1
        found = {item["id"]: item["stock"] for item in page.json()["items"]}
        assert set(inventory.reads[0]) == set(found)
    page = await products_with_fake.http.get("/api/product", params={"ids": ",".join(ids), "stock": "true"})
    # Inventory has never heard of the second one: nothing of it can be sold.
    assert [item["stock"] for item in page.json()["items"]] == [3, 0, 2_147_483_647]
    assert (await products_with_fake.http.get("/api/product", params={"q": str(uuid4()), "stock": "true"})).json()[
        "items"
    ] == []


@pytest.mark.parametrize("value", ["", "1", "yes", "True"])
async def test_a_value_that_is_neither_true_nor_false_is_rejected(products: RunningProducts, value):
    product = await products.create()
    for path in ("/api/product", f"/api/product/{product['id']}"):
        response = await products.http.get(path, params={"stock": value})
        assert response.status_code == 422
        assert response.json()["errors"] == [{"field": "stock", "reason": "must be one of true, false"}]


async def test_stock_is_null_while_inventory_is_down(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port, inventory_seconds=1.0) as products:
        product = await products.create(stock=4)
        inventory.down = True
        # The cache still knows whether it is available.
        assert await products.get(product["id"], stock="true") == {**product, "stock": None}
        page = await products.http.get("/api/product", params={"ids": product["id"], "stock": "true"})
        assert page.json()["items"] == [{**product, "stock": None}]
        inventory.down = False


async def test_the_body_of_get_with_stock_can_be_sent_back(products: RunningProducts, inventory_stub):
    product = await products.create(stock=5)
    body = await products.get(product["id"], stock="true")
    assert (await products.http.put("/api/product", json=body)).status_code == 200
    assert (await products.get(product["id"], stock="true"))["stock"] == 5
