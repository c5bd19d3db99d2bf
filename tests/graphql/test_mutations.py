"""The five mutations, over fakes of products and orders."""

from __future__ import annotations

from typing import Any

import pytest

from tests.graphql.graphql_gateway import Gateway, code, product


async def test_one_product_is_created_however_often_its_key_is_sent(gateway: Gateway) -> None:
    text = (
        "mutation ($i: CreateProductInput!, $k: String) { createProduct(input: $i, idempotencyKey: $k) { id "
        "name price } }"
    )
    fields = {"name": "Lamp", "description": "", "price": "7.00", "currency": "GBP", "imageUrl": None, "stock": 3}
    first = await gateway.run(text, {"i": fields, "k": "k1"})
    again = await gateway.run(text, {"i": fields, "k": "k1"})
    assert first == again
    assert first["data"]["createProduct"]["name"] == "Lamp"
    assert gateway.products.calls[0][2] == {
        "name": "Lamp",
        "description": "",
        "price": "7.00",
        "currency": "GBP",
        "image_url": None,
        "stock": 3,
    }
    assert gateway.products.calls[0][3]["idempotency-key"] == "k1"
    gateway.products.resources.pop(first["data"]["createProduct"]["id"])


async def test_a_create_with_unknown_outcome_is_retried_with_the_same_generated_key(gateway: Gateway) -> None:
    gateway.orders.fail(503, "unavailable", times=1, headers={"retry-after": "0"}, order_id="x")
    [product_id, *_] = gateway.products.resources
    text = "mutation ($i: CreateOrderInput!) { createOrder(input: $i) { user items { quantity product { id } } } }"
    result = await gateway.run(text, {"i": {"user": "cid", "items": [{"productId": product_id, "quantity": 2}]}})
    assert result == {
        "data": {"createOrder": {"user": "cid", "items": [{"quantity": 2, "product": {"id": product_id}}]}}
    }
    posts = [c for c in gateway.orders.calls if c[0] == "POST /api/order"]
    assert len(posts) == 2
    assert posts[0][3]["idempotency-key"] == posts[1][3]["idempotency-key"]
    assert posts[0][2] == {"user": "cid", "items": [{"product_id": product_id, "quantity": 2}]}


async def test_an_undecided_order_returns_its_id_and_the_key_to_retry_with(gateway: Gateway) -> None:
    gateway.orders.fail(503, "unavailable", times=0, headers={"retry-after": "30"}, order_id="o1")
    text = 'mutation { createOrder(input: {user: "c", items: [{productId: "x", quantity: 1}]}) { id } }'
    result = await gateway.run(text)
    extensions = result["errors"][0]["extensions"]
    assert result["data"] == {"createOrder": None}
    assert extensions == {
        "code": "UNAVAILABLE",
        "orderId": "o1",
        "retryAfter": 30,
        "idempotencyKey": gateway.orders.calls[0][3]["idempotency-key"],
    }


async def test_mutations_run_one_after_another_and_a_failed_one_does_not_stop_the_next(gateway: Gateway) -> None:
    ids = list(gateway.products.resources)[-3:]
    gateway.products.fail(412, "precondition-failed")
    result = await gateway.run(
        """mutation ($a: ID!, $b: ID!, $i: UpdateProductInput!) {
          a: deleteProduct(id: $a)
          b: updateProduct(input: $i) { name updatedAt }
          c: deleteProduct(id: $b)
        }""",
        {
            "a": ids[0],
            "b": ids[2],
            "i": {"id": ids[1], "name": "New", "description": "", "price": "1", "currency": "GBP", "imageUrl": None},
        },
    )
    assert result["data"]["a"] is None
    assert result["data"]["b"]["name"] == "New"
    assert result["data"]["c"] == ids[2]
    assert [(e["path"], e["extensions"]["code"]) for e in result["errors"]] == [(["a"], "PRECONDITION_FAILED")]
    assert [c[0].split()[0] for c in gateway.products.calls] == ["DELETE", "PUT", "DELETE"]
    assert ids[0] in gateway.products.resources


async def test_a_stock_take_is_not_retried(gateway: Gateway) -> None:
    [product_id, *_] = gateway.products.resources
    gateway.products.fail(502, "unavailable", times=0)
    gateway.products.fail_always = (502, {"not": "a problem"}, {"content-type": "text/html"})
    text = "mutation ($i: UpdateProductInput!) { updateProduct(input: $i) { id } }"
    fields = {
        "id": product_id,
        "name": "New",
        "description": "",
        "price": "1",
        "currency": "GBP",
        "imageUrl": None,
        "stock": 5,
    }
    result = await gateway.run(text, {"i": fields})
    assert code(result) == "UNAVAILABLE"
    assert len(gateway.products.calls) == 1


@pytest.mark.parametrize("returns_cancelled", [True, False], ids=["by DELETE", "by GET, from an earlier version"])
async def test_a_deleted_order_is_returned_as_it_is_afterwards(gateway: Gateway, returns_cancelled: bool) -> None:
    [order_id, *_] = gateway.orders.resources
    gateway.orders.returns_cancelled = returns_cancelled
    result = await gateway.run("mutation ($id: ID!) { deleteOrder(id: $id) { id status } }", {"id": order_id})
    assert result == {"data": {"deleteOrder": {"id": order_id, "status": "cancelled"}}}
    methods = [c[0].split()[0] for c in gateway.orders.calls]
    assert methods == (["DELETE"] if returns_cancelled else ["DELETE", "GET"])


async def test_members_of_a_shortage_are_in_camel_case(gateway: Gateway) -> None:
    gateway.orders.fail(409, "out-of-stock", detail="too few", shortages=[{"product_id": "p", "wanted": 3, "left": 1}])
    result = await gateway.run('mutation { createOrder(input: {user: "c", items: []}) { id } }')
    [error] = result["errors"]
    assert (error["message"], error["path"]) == ("too few", ["createOrder"])
    assert error["extensions"] == {"code": "OUT_OF_STOCK", "shortages": [{"productId": "p", "wanted": 3, "left": 1}]}
    gateway.orders.fail(409, "price-changed", detail="the price has changed", total="9.00", currency="GBP")
    result = await gateway.run('mutation { createOrder(input: {user: "c", items: [], expectedTotal: "8.00"}) { id } }')
    assert result["errors"][0]["extensions"] == {"code": "PRICE_CHANGED", "total": "9.00", "currency": "GBP"}


UPDATE = "mutation ($input: UpdateProductInput!) { updateProduct(input: $input) { name imageUrl } }"


def update_of(product_id: str, **changes: Any) -> dict[str, Any]:
    fields = {"id": product_id, "name": "New", "description": "", "price": "1.00", "currency": "GBP"}
    return {"input": {**fields, **changes}}


@pytest.mark.parametrize(
    ("changes", "image"),
    [({}, "/images/4.svg"), ({"imageUrl": None}, None), ({"imageUrl": "/images/9.svg"}, "/images/9.svg")],
)
async def test_an_absent_image_stays_and_a_null_removes_it(
    gateway: Gateway, changes: dict[str, Any], image: str | None
) -> None:
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    try:
        result = await gateway.run(UPDATE, update_of(product_id, **changes))
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": image}}}
    finally:
        gateway.products.resources[product_id] = before


async def test_an_update_without_an_image_keeps_the_one_that_another_update_sets_meanwhile(gateway: Gateway) -> None:
    [product_id, *_] = gateway.products.resources
    before = dict(gateway.products.resources[product_id])
    races = 2

    def race(resource: dict[str, Any]) -> None:
        nonlocal races
        if races:
            races -= 1
            resource["version"] += 1
            resource["image_url"] = f"/images/race-{races}.svg"

    gateway.products.before_update = race
    try:
        result = await gateway.run(UPDATE, update_of(product_id))
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": "/images/race-0.svg"}}}
        races = 1000
        result = await gateway.run(UPDATE, update_of(product_id, name="Other"))
        assert result["data"] == {"updateProduct": None}
        assert code(result) == "PRECONDITION_FAILED"
        assert gateway.products.resources[product_id]["name"] == "New"
        assert races == 995
    finally:
        gateway.products.resources[product_id] = before


@pytest.mark.parametrize("changes", [{}, {"imageUrl": "/images/9.svg"}], ids=["image kept", "image replaced"])
async def test_an_update_that_expects_another_version_changes_nothing_and_says_which_the_product_has(
    gateway: Gateway, changes: dict[str, Any]
) -> None:
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    try:
        gateway.products.resources[product_id]["version"] = 7
        result = await gateway.run(UPDATE, update_of(product_id, expectedVersion=6, **changes))
        assert result["data"] == {"updateProduct": None}
        assert result["errors"][0]["extensions"] == {"code": "PRECONDITION_FAILED", "version": 7}
        assert gateway.products.resources[product_id] == {**before, "version": 7}
        result = await gateway.run(UPDATE, update_of(product_id, expectedVersion=7, **changes))
        image = changes.get("imageUrl", before["image_url"])
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": image}}}
        sent = [(headers.get("if-match"), body) for call, _, body, headers in gateway.products.calls if "PUT" in call]
        assert [tag for tag, _ in sent] == ['"6"', '"7"']
        assert all("expected_version" not in body for _, body in sent)
    finally:
        gateway.products.resources[product_id] = before


async def test_an_update_that_expects_a_version_is_not_retried(gateway: Gateway) -> None:
    product_id = product(4)["id"]
    gateway.products.fail_always = (502, {"not": "a problem"}, {"content-type": "text/html"})
    result = await gateway.run(UPDATE, update_of(product_id, expectedVersion=1, imageUrl=None))
    assert code(result) == "UNAVAILABLE"
    assert len(gateway.products.calls) == 1


async def test_a_delivery_is_retried_with_the_same_id(gateway: Gateway) -> None:
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    gateway.products.failures += [(502, {"not": "a problem"}, {"content-type": "text/html"})] * 2
    delivery = {"id": "00000000-0000-4000-8000-0000000000d1", "quantity": 5}
    try:
        result = await gateway.run(UPDATE, update_of(product_id, delivery=delivery, imageUrl=None))
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": None}}}
        sent = [body for _, _, body, _ in gateway.products.calls]
        assert [body["delivery"] for body in sent] == [delivery] * 3
    finally:
        gateway.products.resources[product_id] = before


async def test_a_null_delivery_is_none(gateway: Gateway) -> None:
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    try:
        result = await gateway.run(UPDATE, update_of(product_id, delivery=None, imageUrl=None))
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": None}}}
        [(_, _, body, _)] = gateway.products.calls
        assert "delivery" not in body
    finally:
        gateway.products.resources[product_id] = before


async def test_a_wrong_delivery_is_named_as_in_the_input(gateway: Gateway) -> None:
    errors = [{"field": "delivery.quantity", "reason": "must be at most 3, got 4"}]
    gateway.products.fail(422, "bad-input", errors=errors)
    delivery = {"id": "00000000-0000-4000-8000-0000000000d1", "quantity": 4}
    result = await gateway.run(UPDATE, update_of(product(4)["id"], delivery=delivery, imageUrl=None))
    assert result["errors"][0]["message"] == "input.delivery.quantity: must be at most 3, got 4"
    assert result["errors"][0]["extensions"]["field"] == "input.delivery.quantity"


async def test_a_null_expected_version_is_not_compared(gateway: Gateway) -> None:
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    try:
        result = await gateway.run(UPDATE, update_of(product_id, expectedVersion=None, imageUrl=None))
        assert result == {"data": {"updateProduct": {"name": "New", "imageUrl": None}}}
        [(_, _, body, headers)] = gateway.products.calls
        assert "if-match" not in headers
        assert "expected_version" not in body
    finally:
        gateway.products.resources[product_id] = before


async def test_a_deletion_that_expects_another_version_deletes_nothing(gateway: Gateway) -> None:
    text = "mutation ($id: ID!, $version: Int) { deleteProduct(id: $id, expectedVersion: $version) }"
    product_id = product(4)["id"]
    before = dict(gateway.products.resources[product_id])
    try:
        result = await gateway.run(text, {"id": product_id, "version": 2})
        assert result["data"] == {"deleteProduct": None}
        assert result["errors"][0]["extensions"] == {"code": "PRECONDITION_FAILED", "version": 1}
        assert gateway.products.resources[product_id] == before
        assert await gateway.run(text, {"id": product_id, "version": 1}) == {"data": {"deleteProduct": product_id}}
    finally:
        gateway.products.resources[product_id] = before


async def test_a_product_of_the_previous_version_of_products_has_a_version_that_no_product_has(
    gateway: Gateway,
) -> None:
    product_id = product(4)["id"]
    version = gateway.products.resources[product_id].pop("version")
    try:
        result = await gateway.run("query ($id: ID!) { product(id: $id) { version } }", {"id": product_id})
        assert result == {"data": {"product": {"version": 0}}}
    finally:
        gateway.products.resources[product_id]["version"] = version


async def test_an_update_of_an_unknown_product_without_an_image_is_not_found(gateway: Gateway) -> None:
    result = await gateway.run(UPDATE, update_of("00000000-0000-4000-8000-00000000ffff"))
    assert (result["data"], code(result)) == ({"updateProduct": None}, "NOT_FOUND")


async def test_a_mutation_returns_the_stock_after_it_or_null_if_it_cannot_be_read(gateway: Gateway) -> None:
    text = """mutation ($input: CreateProductInput!) { createProduct(input: $input) { id available stock } }"""
    fields = {"name": "A", "description": "B", "price": "1.00", "currency": "GBP", "stock": 7}
    created = (await gateway.run(text, {"input": fields}))["data"]["createProduct"]
    assert created["stock"] == {True: 7, False: 0, None: None}[created["available"]]
    text = """mutation ($input: UpdateProductInput!) { updateProduct(input: $input) { name stock } }"""
    fields |= {"id": created["id"], "imageUrl": None}
    gateway.products.calls.clear()
    assert "errors" not in await gateway.run(text, {"input": fields})
    assert [call[0].partition(" ")[0] for call in gateway.products.calls] == ["PUT", "GET"]

    def fail(_: dict[str, Any]) -> None:
        gateway.products.failures += [(503, {"type": "urn:market:problem:unavailable", "status": 503}, {})] * 5

    gateway.products.before_update = fail
    result = await gateway.run(text, {"input": fields})
    assert result == {"data": {"updateProduct": {"name": "A", "stock": None}}}
