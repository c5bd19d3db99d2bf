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
        "version": 1,
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
        "version": 2,
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
    assert response.json() == {**created, "version": 2, "updated_at": response.json()["updated_at"]}
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
    assert second.json()["version"] == first.json()["version"] == 2
    assert (await products.get(created["id"]))["name"] == "First"
    assert await stock_of(inventory_stub, created["id"]) == 1


async def test_every_response_with_a_product_has_the_version_of_its_entity_tag(products: RunningProducts):
    created = await products.create(name="Versioned")
    assert created["version"] == 1
    # A client sends back what it has read: its version is not a condition.
    put = await products.http.put("/api/product", json={**created, "version": 9})
    assert (put.json()["version"], put.headers["etag"]) == (2, '"2.unavailable"')
    for parameters in ({"ids": created["id"]}, {"q": "versioned"}, {"limit": 1}):
        page = (await products.http.get("/api/product", params=parameters)).json()
        assert [p["version"] for p in page["items"]] == [2]
    got = await products.http.get(f"/api/product/{created['id']}")
    assert (got.json()["version"], got.headers["etag"]) == (2, '"2.unavailable"')


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


async def test_a_client_that_revalidates_sees_a_sale_as_soon_as_the_service_does(
    products: RunningProducts, inventory_stub
):
    created = await products.create(stock=1)
    path = f"/api/product/{created['id']}"
    first = await products.http.get(path)
    tag = first.headers["etag"]
    assert (first.json()["available"], tag, first.headers["cache-control"]) == (True, '"1.available"', "no-cache")
    same = await products.http.get(path, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    assert (same.headers["etag"], same.headers["cache-control"]) == (tag, "no-cache")
    await products.redis.set(f"avail:{created['id']}", "0")
    sold = await products.http.get(path, headers={"If-None-Match": tag})
    assert (sold.status_code, sold.json()["available"], sold.headers["etag"]) == (200, False, '"1.unavailable"')
    # A sale does not modify the product, so an editor's tag stays valid.
    put = await products.http.put("/api/product", json=created, headers={"If-Match": tag})
    assert (put.status_code, put.headers["etag"]) == (200, '"2.unavailable"')


async def test_a_page_is_revalidated_each_time(products: RunningProducts):
    response = await products.http.get("/api/product", headers={"If-None-Match": '"1"'})
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize(("query", "tag"), [({"availability": "false"}, '"1"'), ({"stock": "true"}, '"1.available.3"')])
async def test_a_tag_knows_what_the_body_shows(products: RunningProducts, query, tag):
    created = await products.create(stock=3)
    path = f"/api/product/{created['id']}"
    assert (await products.http.get(path, params=query)).headers["etag"] == tag
    assert (await products.http.get(path, params=query, headers={"If-None-Match": tag})).status_code == 304
    # A tag of before availability was part of it, or of another body, is never confirmed.
    assert (await products.http.get(path, headers={"If-None-Match": tag})).status_code == 200
    assert (await products.http.put("/api/product", json=created, headers={"If-Match": tag})).status_code == 200


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ('"1.unavailable"', 304),
        ('W/"1.unavailable"', 304),
        ("*", 304),
        ('"0", "1.unavailable"', 304),
        ('"2.unavailable"', 200),
        ('"1"', 200),
        ("1", 200),
    ],
)
async def test_if_none_match_with_the_current_tag_gets_304(products: RunningProducts, tag, status):
    created = await products.create()
    response = await products.http.get(f"/api/product/{created['id']}", headers={"If-None-Match": tag})
    assert response.status_code == status
    assert response.headers["etag"] == '"1.unavailable"'
    assert (response.content == b"") == (status == 304)


@pytest.mark.parametrize(("tag", "status"), [('"1"', 204), ("*", 204), ('"2"', 412), ('W/"1"', 412), ("1", 422)])
async def test_if_match_counts_for_delete(products: RunningProducts, tag, status):
    created = await products.create()
    path = f"/api/product/{created['id']}"
    response = await products.http.delete(path, headers={"If-Match": tag})
    assert response.status_code == status
    if status == 412:
        assert response.json()["version"] == 1
    assert (await products.http.get(path)).status_code == (404 if status == 204 else 200)
    if status == 204:
        assert (await products.http.delete(path, headers={"If-Match": tag})).status_code == 404


@pytest.mark.parametrize(("tag", "status"), [('"1"', 200), ('"2"', 412)])
async def test_if_match_counts_for_get(products: RunningProducts, tag, status):
    created = await products.create()
    assert (await products.http.get(f"/api/product/{created['id']}", headers={"If-Match": tag})).status_code == status


@pytest.mark.parametrize(("tag", "status"), [("*", 412), ('"1"', 422)])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_if_none_match_with_a_change_is_obeyed_or_refused(
    products: RunningProducts, inventory_stub, method, tag, status
):
    created = await products.create(stock=2)
    path = "/api/product" if method == "PUT" else f"/api/product/{created['id']}"
    body = {**created, "name": "New", "stock": 9} if method == "PUT" else None
    response = await products.http.request(method, path, json=body, headers={"If-None-Match": tag})
    assert response.status_code == status
    assert await products.get(created["id"]) == created
    assert await stock_of(inventory_stub, created["id"]) == 2


@pytest.mark.parametrize(
    ("method", "header"),
    [
        ("POST", "If-Match"),
        ("POST", "If-None-Match"),
        ("POST", "If-Unmodified-Since"),
        ("PUT", "If-Unmodified-Since"),
        ("GET", "If-Match"),
        ("GET", "If-None-Match"),
    ],
)
async def test_a_condition_that_cannot_be_obeyed_is_refused(products: RunningProducts, method, header):
    created = await products.create()
    body = {"POST": LAMP, "PUT": {**created, "name": "New"}, "GET": None}[method]
    before = await products.count()
    response = await products.http.request(method, "/api/product", json=body, headers={header: "*"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == header
    assert (await products.count(), await products.get(created["id"])) == (before, created)


async def test_head_is_get_without_a_body(products: RunningProducts):
    created = await products.create()
    response = await products.http.head(f"/api/product/{created['id']}")
    assert (response.status_code, response.content, response.headers["etag"]) == (200, b"", '"1.unavailable"')


async def test_an_id_may_be_in_upper_case(products: RunningProducts):
    created = await products.create()
    assert (await products.get(created["id"].upper()))["id"] == created["id"]


async def test_a_compressed_body_has_a_tag_of_its_own(products: RunningProducts):
    created = await products.create(description="It gives light. " * 200)
    path = f"/api/product/{created['id']}"

    async def get(coding: str, tag: str = "") -> tuple[int, str, str | None]:
        headers = {"Accept-Encoding": coding, **({"If-None-Match": tag} if tag else {})}
        response = await products.http.get(path, headers=headers)
        assert response.headers["vary"] == "accept-encoding"
        return response.status_code, response.headers["etag"], response.headers.get("content-encoding")

    plain, zipped = '"1.unavailable"', '"1.unavailable-gzip"'
    assert await get("identity") == (200, plain, None)
    assert await get("gzip") == (200, zipped, "gzip")
    assert await get("gzip", zipped) == (304, zipped, None)
    # What the client has uncompressed is still right.
    assert await get("gzip", plain) == (304, plain, None)
    assert await get("gzip", f"{plain}, W/{zipped}") == (304, plain, None)
    # A cache that has the compressed body must not be told to use it for a client that does not accept it.
    assert await get("identity", zipped) == (200, plain, None)
    put = await products.http.put("/api/product", json=created, headers={"If-Match": zipped})
    assert put.status_code == 200
    assert await get("gzip", zipped) == (200, '"2.unavailable-gzip"', "gzip")
    for tag in ('"2-gzip"', '"2.unavailable-zstd"'):
        put = await products.http.put("/api/product", json=created, headers={"If-Match": tag})
        assert put.status_code == 200
        await products.db.execute("UPDATE products SET version = 2 WHERE id = $1", UUID(created["id"]))
    for tag in ('"2-br"', '"2-gzip-gzip"', '"-gzip"'):
        put = await products.http.put("/api/product", json=created, headers={"If-Match": tag})
        assert put.status_code == 412
