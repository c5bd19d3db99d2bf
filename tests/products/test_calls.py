"""The five calls, as a client sees them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from uuid import UUID, uuid4

import pytest

from .conftest import LAMP, Running, quantity


async def test_a_product_made_is_answered_with_its_address_and_its_tag(shop: Running, stock):
    answer = await shop.http.post("/api/product", json={**LAMP, "image_url": "/images/lamp.svg", "stock": 3})
    assert answer.status_code == 201
    made = answer.json()
    assert UUID(made["id"]).version == 7
    assert answer.headers["location"] == f"/api/product/{made['id']}"
    assert made == {
        "id": made["id"],
        "name": "Lamp",
        "description": "It gives light.\nBy day, too.",
        "price": "12.50",
        "currency": "GBP",
        "image_url": "/images/lamp.svg",
        "available": True,
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    assert datetime.fromisoformat(made["created_at"]).utcoffset().total_seconds() == 0
    assert await quantity(stock, made["id"]) == 3
    got = await shop.http.get(answer.headers["location"])
    assert (got.status_code, got.json(), got.headers["etag"]) == (200, made, answer.headers["etag"])


async def test_without_stock_a_product_has_none_and_is_not_available(shop: Running, stock):
    made = await shop.create()
    assert made["available"] is False
    assert made["image_url"] is None
    assert await quantity(stock, made["id"]) == 0


@pytest.mark.parametrize(
    ("given", "answered"),
    [("0", "0.00"), ("0.1", "0.10"), ("007", "7.00"), ("99999999.99", "99999999.99"), ("2.50", "2.50")],
)
async def test_a_price_is_answered_with_two_places(shop: Running, given, answered):
    assert (await shop.create(price=given))["price"] == answered


async def test_put_changes_every_writable_field_and_leaves_the_stock_alone(shop: Running, stock):
    made = await shop.create(stock=2)
    changed = {
        "id": made["id"],
        "name": "Torch",
        "description": "",
        "price": "3",
        "currency": "EUR",
        "image_url": "https://images.test/torch.png",
    }
    answer = await shop.http.put("/api/product", json=changed)
    assert answer.status_code == 200
    body = answer.json()
    assert body == {
        **changed,
        "price": "3.00",
        "available": True,
        "created_at": made["created_at"],
        "updated_at": body["updated_at"],
    }
    assert body["updated_at"] > made["updated_at"]
    assert await shop.get(made["id"]) == body
    assert await quantity(stock, made["id"]) == 2


async def test_what_get_gave_can_be_sent_back(shop: Running):
    made = await shop.create()
    answer = await shop.http.put("/api/product", json=made)
    assert answer.status_code == 200
    assert answer.json() == {**made, "updated_at": answer.json()["updated_at"]}
    odd = await shop.http.put(
        "/api/product", json={**made, "available": "perhaps", "created_at": 7, "updated_at": None}
    )
    assert odd.status_code == 200
    assert odd.json()["created_at"] == made["created_at"]


async def test_put_with_stock_replaces_it_and_says_at_once_whether_it_can_be_sold(shop: Running, stock):
    made = await shop.create(stock=0)
    assert (await shop.get(made["id"]))["available"] is False
    answer = await shop.http.put("/api/product", json={**made, "stock": 5})
    assert answer.json()["available"] is True
    assert (await shop.get(made["id"]))["available"] is True
    assert await quantity(stock, made["id"]) == 5


async def test_a_deleted_product_is_gone_and_its_stock_stays(shop: Running, stock):
    made = await shop.create(stock=4)
    answer = await shop.http.delete(f"/api/product/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await shop.http.get(f"/api/product/{made['id']}")).status_code == 404
    assert (await shop.http.delete(f"/api/product/{made['id']}")).status_code == 404
    assert (await shop.http.put("/api/product", json={**made, "stock": 9})).status_code == 404
    assert await quantity(stock, made["id"]) == 4


async def test_a_put_of_an_unknown_product_touches_no_stock(shop: Running, stock):
    id = str(uuid4())
    answer = await shop.http.put("/api/product", json={**LAMP, "id": id, "image_url": None, "stock": 9})
    assert answer.status_code == 404
    assert await quantity(stock, id) is None


async def test_who_was_slower_gets_412_and_changes_neither_row_nor_stock(shop: Running, stock):
    made = await shop.create(stock=1)
    tag = (await shop.http.get(f"/api/product/{made['id']}")).headers["etag"]
    first = await shop.http.put("/api/product", json={**made, "name": "First"}, headers={"If-Match": tag})
    assert first.status_code == 200
    assert first.headers["etag"] != tag
    second = await shop.http.put("/api/product", json={**made, "name": "Second", "stock": 9}, headers={"If-Match": tag})
    assert second.status_code == 412
    assert second.json()["type"] == "urn:market:problem:precondition-failed"
    assert (await shop.get(made["id"]))["name"] == "First"
    assert await quantity(stock, made["id"]) == 1


async def test_of_many_who_hold_the_same_tag_one_changes_the_product(shop: Running):
    made = await shop.create()
    answers = await asyncio.gather(
        *(shop.http.put("/api/product", json={**made, "name": f"N{n}"}, headers={"If-Match": '"1"'}) for n in range(10))
    )
    assert sorted(a.status_code for a in answers) == [200] + [412] * 9
    winner = next(a for a in answers if a.status_code == 200)
    assert (await shop.get(made["id"]))["name"] == winner.json()["name"]


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
async def test_if_match_compares_strongly_and_unreadable_tags_are_bad_input(shop: Running, tag, status):
    made = await shop.create()
    assert (await shop.http.put("/api/product", json=made, headers={"If-Match": tag})).status_code == status


async def test_the_tag_does_not_change_with_the_stock_alone(shop: Running):
    made = await shop.create(stock=1)
    tag = (await shop.http.get(f"/api/product/{made['id']}")).headers["etag"]
    await shop.redis.set(f"avail:{made['id']}", "0")
    got = await shop.http.get(f"/api/product/{made['id']}")
    assert (got.json()["available"], got.headers["etag"]) == (False, tag)


@pytest.mark.parametrize(
    ("tag", "status"), [('"1"', 304), ('W/"1"', 304), ("*", 304), ('"0", "1"', 304), ('"2"', 200), ("1", 200)]
)
async def test_who_holds_the_product_already_gets_304(shop: Running, tag, status):
    made = await shop.create()
    answer = await shop.http.get(f"/api/product/{made['id']}", headers={"If-None-Match": tag})
    assert answer.status_code == status
    assert answer.headers["etag"] == '"1"'
    assert (answer.content == b"") == (status == 304)


async def test_head_is_get_without_the_body(shop: Running):
    made = await shop.create()
    answer = await shop.http.head(f"/api/product/{made['id']}")
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, b"", '"1"')


async def test_an_id_may_be_written_in_capitals(shop: Running):
    made = await shop.create()
    assert (await shop.get(made["id"].upper()))["id"] == made["id"]
