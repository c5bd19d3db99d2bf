"""The five operations, as a client sees them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from uuid import UUID, uuid4

import pytest

from .conftest import LAMP, RunningProducts, stock_of


async def test_creating_a_product_returns_it_with_its_location_and_entity_tag(
    products: RunningProducts, inventory_stub
):
    response = await products.http.post("/api/product", json={**LAMP, "image_url": "/images/lamp.svg", "stock": 3})
    assert response.status_code == 201
    created = response.json()
    assert UUID(created["id"]).version == 7
    assert response.headers["location"] == f"/api/product/{created['id']}"
    assert created == {
        "id": created["id"],
        "name": "Lamp",
        "description": "It gives light.\nBy day, too.",
        "price": "12.50",
        "currency": "GBP",
        "image_url": "/images/lamp.svg",
        "available": True,
        "created_at": created["created_at"],
        "updated_at": created["created_at"],
    }
    assert datetime.fromisoformat(created["created_at"]).utcoffset().total_seconds() == 0
    assert await stock_of(inventory_stub, created["id"]) == 3
    got = await products.http.get(response.headers["location"])
    assert (got.status_code, got.json(), got.headers["etag"]) == (200, created, response.headers["etag"])


async def test_a_product_created_without_stock_is_not_available(products: RunningProducts, inventory_stub):
    created = await products.create()
    assert created["available"] is False
    assert created["image_url"] is None
    assert await stock_of(inventory_stub, created["id"]) == 0


@pytest.mark.parametrize(
    ("sent", "returned"),
    [("0", "0.00"), ("0.1", "0.10"), ("007", "7.00"), ("99999999.99", "99999999.99"), ("2.50", "2.50")],
)
async def test_a_price_is_returned_with_two_decimals(products: RunningProducts, sent, returned):
    assert (await products.create(price=sent))["price"] == returned


async def test_put_replaces_every_writable_field_and_leaves_the_stock_unchanged(
    products: RunningProducts, inventory_stub
):
    created = await products.create(stock=2)
    changed = {
        "id": created["id"],
        "name": "Torch",
        "description": "",
        "price": "3",
        "currency": "EUR",
        "image_url": "https://images.test/torch.png",
    }
    response = await products.http.put("/api/product", json=changed)
    assert response.status_code == 200
    body = response.json()
    assert body == {
        **changed,
        "price": "3.00",
        "available": True,
        "created_at": created["created_at"],
        "updated_at": body["updated_at"],
    }
    assert body["updated_at"] > created["updated_at"]
    assert await products.get(created["id"]) == body
    assert await stock_of(inventory_stub, created["id"]) == 2


async def test_the_body_of_get_can_be_sent_back_by_put(products: RunningProducts):
    created = await products.create()
    response = await products.http.put("/api/product", json=created)
    assert response.status_code == 200
    assert response.json() == {**created, "updated_at": response.json()["updated_at"]}
    odd = await products.http.put(
        "/api/product", json={**created, "available": "perhaps", "created_at": 7, "updated_at": None}
    )
    assert odd.status_code == 200
    assert odd.json()["created_at"] == created["created_at"]


async def test_put_with_stock_replaces_it_and_returns_the_new_availability(products: RunningProducts, inventory_stub):
    created = await products.create(stock=0)
    assert (await products.get(created["id"]))["available"] is False
    response = await products.http.put("/api/product", json={**created, "stock": 5})
    assert response.json()["available"] is True
    assert (await products.get(created["id"]))["available"] is True
    assert await stock_of(inventory_stub, created["id"]) == 5


async def test_deleting_a_product_keeps_its_stock(products: RunningProducts, inventory_stub):
    created = await products.create(stock=4)
    response = await products.http.delete(f"/api/product/{created['id']}")
    assert (response.status_code, response.content) == (204, b"")
    assert (await products.http.get(f"/api/product/{created['id']}")).status_code == 404
    assert (await products.http.delete(f"/api/product/{created['id']}")).status_code == 404
    assert (await products.http.put("/api/product", json={**created, "stock": 9})).status_code == 404
    assert await stock_of(inventory_stub, created["id"]) == 4


async def test_put_of_an_unknown_product_sets_no_stock(products: RunningProducts, inventory_stub):
    id = str(uuid4())
    response = await products.http.put("/api/product", json={**LAMP, "id": id, "image_url": None, "stock": 9})
    assert response.status_code == 404
    assert await stock_of(inventory_stub, id) is None


async def test_put_with_an_outdated_tag_gets_412_and_changes_neither_product_nor_stock(
    products: RunningProducts, inventory_stub
):
    created = await products.create(stock=1)
    tag = (await products.http.get(f"/api/product/{created['id']}")).headers["etag"]
    first = await products.http.put("/api/product", json={**created, "name": "First"}, headers={"If-Match": tag})
    assert first.status_code == 200
    assert first.headers["etag"] != tag
    second = await products.http.put(
        "/api/product", json={**created, "name": "Second", "stock": 9}, headers={"If-Match": tag}
    )
    assert second.status_code == 412
    assert second.json()["type"] == "urn:market:problem:precondition-failed"
    assert (await products.get(created["id"]))["name"] == "First"
    assert await stock_of(inventory_stub, created["id"]) == 1


async def test_one_of_many_concurrent_puts_with_the_same_tag_succeeds(products: RunningProducts):
    created = await products.create()
    responses = await asyncio.gather(
        *(
            products.http.put("/api/product", json={**created, "name": f"N{n}"}, headers={"If-Match": '"1"'})
            for n in range(10)
        )
    )
    assert sorted(a.status_code for a in responses) == [200] + [412] * 9
    winner = next(a for a in responses if a.status_code == 200)
    assert (await products.get(created["id"]))["name"] == winner.json()["name"]


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ("*", 200),
        ('"1"', 200),
        ('"7", "1"', 200),
        ('W/"1"', 412),
        ('"2"', 412),
        ('"01"', 412),
        ('"abc"', 412),
        ("1", 422),
        ('"1', 422),
        (",", 422),
    ],
)
async def test_if_match_compares_strongly_and_invalid_tags_are_bad_input(products: RunningProducts, tag, status):
    created = await products.create()
    assert (await products.http.put("/api/product", json=created, headers={"If-Match": tag})).status_code == status


async def test_the_tag_does_not_change_with_availability(products: RunningProducts):
    created = await products.create(stock=1)
    tag = (await products.http.get(f"/api/product/{created['id']}")).headers["etag"]
    await products.redis.set(f"avail:{created['id']}", "0")
    got = await products.http.get(f"/api/product/{created['id']}")
    assert (got.json()["available"], got.headers["etag"]) == (False, tag)


@pytest.mark.parametrize(
    ("tag", "status"), [('"1"', 304), ('W/"1"', 304), ("*", 304), ('"0", "1"', 304), ('"2"', 200), ("1", 200)]
)
async def test_if_none_match_with_the_current_tag_gets_304(products: RunningProducts, tag, status):
    created = await products.create()
    response = await products.http.get(f"/api/product/{created['id']}", headers={"If-None-Match": tag})
    assert response.status_code == status
    assert response.headers["etag"] == '"1"'
    assert (response.content == b"") == (status == 304)


async def test_head_is_get_without_a_body(products: RunningProducts):
    created = await products.create()
    response = await products.http.head(f"/api/product/{created['id']}")
    assert (response.status_code, response.content, response.headers["etag"]) == (200, b"", '"1"')


async def test_an_id_may_be_in_upper_case(products: RunningProducts):
    created = await products.create()
    assert (await products.get(created["id"].upper()))["id"] == created["id"]
