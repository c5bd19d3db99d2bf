"""The nine root fields and the join of products, over fakes of products and orders."""

from __future__ import annotations

from typing import Any

import pytest

from tests.graphql.graphql_gateway import Gateway, product

ORDERS = """query ($user: String!, $limit: Int) {
  orders(user: $user, limit: $limit) {
    total limit offset
    items { id status total items { productId quantity unitPrice product { name price available } } }
  }
}"""


def code(result: dict[str, Any], i: int = 0) -> str:
    found: str = result["errors"][i]["extensions"]["code"]
    return found


async def test_a_product_has_the_fields_of_rest_in_camel_case(gateway: Gateway) -> None:
    [product_id, *_] = gateway.products.resources
    result = await gateway.run(
        "query ($id: ID!) { product(id: $id) { id name price currency imageUrl available createdAt __typename } }",
        {"id": product_id},
    )
    resource = gateway.products.resources[product_id]
    assert result == {
        "data": {
            "product": {
                "id": product_id,
                "name": resource["name"],
                "price": "1.50",
                "currency": "GBP",
                "imageUrl": "/images/1.svg",
                "available": False,
                "createdAt": resource["created_at"],
                "__typename": "Product",
            }
        }
    }


async def test_an_unknown_product_is_null_with_not_found_at_its_path(gateway: Gateway) -> None:
    result = await gateway.run(
        '{ a: product(id: "00000000-0000-4000-8000-00000000ffff") { id } b: products(limit: 1) { total } }'
    )
    assert result["data"] == {"a": None, "b": {"total": 230}}
    assert [(e["path"], code(result)) for e in result["errors"]] == [(["a"], "NOT_FOUND")]


async def test_an_id_that_is_no_uuid_is_not_found_without_a_request(gateway: Gateway) -> None:
    result = await gateway.run('{ product(id: "../order/1?x=") { id } order(id: "") { id } }')
    assert result["data"] == {"product": None, "order": None}
    assert [code(result, i) for i in (0, 1)] == ["NOT_FOUND", "NOT_FOUND"]
    assert not gateway.products.calls
    assert not gateway.orders.calls


async def test_the_orders_of_a_user_join_their_products_in_one_call_per_100(gateway: Gateway) -> None:
    result = await gateway.run(ORDERS, {"user": "ann"})
    assert "errors" not in result
    page = result["data"]["orders"]
    assert (page["total"], page["limit"], page["offset"], len(page["items"])) == (25, 100, 0, 25)
    expected = {line["productId"] for o in page["items"] for line in o["items"]}
    requests = [query for path, query, *_ in gateway.products.calls if path == "GET /api/product"]
    assert len(requests) == -(-len(expected) // 100)
    for o in page["items"]:
        for line in o["items"]:
            assert line["product"]["price"] == gateway.products.resources[line["productId"]]["price"]


async def test_a_deleted_product_is_null_in_its_line_without_an_error(gateway: Gateway) -> None:
    [order_id] = [t["id"] for t in gateway.orders.resources.values() if t["user"] == "bob"][:1]
    gone = gateway.orders.resources[order_id]["items"][0]["product_id"]
    kept = gateway.products.resources.pop(gone)
    try:
        result = await gateway.run(
            "query ($id: ID!) { order(id: $id) { items { name product { name } } } }", {"id": order_id}
        )
    finally:
        gateway.products.resources[gone] = kept
    assert "errors" not in result
    assert result["data"]["order"]["items"][0] == {"name": f"then {gone[:4]}", "product": None}


async def test_without_products_orders_are_returned_with_an_error_at_each_product(gateway: Gateway) -> None:
    gateway.products.fail(503, "unavailable", times=0)
    result = await gateway.run(ORDERS, {"user": "bob", "limit": 3})
    lines = [(i, k) for i, o in enumerate(result["data"]["orders"]["items"]) for k, _ in enumerate(o["items"])]
    assert all(
        line["product"] is None and line["unitPrice"] for o in result["data"]["orders"]["items"] for line in o["items"]
    )
    assert sorted(e["path"] for e in result["errors"]) == [
        ["orders", "items", i, "items", k, "product"] for i, k in lines
    ]
    assert {code(result, i) for i in range(len(lines))} == {"UNAVAILABLE"}


async def test_without_orders_products_are_returned(gateway: Gateway) -> None:
    gateway.orders.fail(503, "unavailable", times=0, headers={"retry-after": "7"})
    result = await gateway.run('{ products(limit: 2) { items { name } } orders(user: "ann") { total } }')
    assert len(result["data"]["products"]["items"]) == 2
    assert result["data"]["orders"] is None
    assert result["errors"][0]["path"] == ["orders"]
    assert result["errors"][0]["extensions"] == {"code": "UNAVAILABLE", "retryAfter": 7}


async def test_arguments_of_products_are_sent_to_rest(gateway: Gateway) -> None:
    await gateway.run('{ products(limit: 3, offset: 4, q: "a&b=c ü", sort: "-price") { total } }')
    assert gateway.products.calls[0][1] == "limit=3&offset=4&q=a%26b%3Dc+%C3%BC&sort=-price&availability=false"
    ids = list(gateway.products.resources)[:3][::-1]
    result = await gateway.run("query ($ids: [ID!]) { products(ids: $ids) { items { id available } } }", {"ids": ids})
    assert [p["id"] for p in result["data"]["products"]["items"]] == ids
    assert "availability" not in gateway.products.calls[1][1]
    await gateway.run('{ products(after: "abc_-") { next } orders(user: "ann", after: "x=") { next } }')
    assert gateway.products.calls[2][1] == "after=abc_-&availability=false"
    assert gateway.orders.calls[0][1] == "user=ann&after=x%3D"


async def test_the_pages_of_the_previous_version_of_the_services_have_no_cursor(gateway: Gateway) -> None:
    result = await gateway.run('{ products { totalExact next } orders(user: "ann") { totalExact next } }')
    assert result["data"]["products"] == {"totalExact": True, "next": None}
    assert result["data"]["orders"] == {"totalExact": True, "next": None}


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
    facts = result["errors"][0]["extensions"]
    assert result["data"] == {"createOrder": None}
    assert facts == {
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


async def test_a_deleted_order_is_returned_as_it_is_afterwards(gateway: Gateway) -> None:
    [order_id, *_] = gateway.orders.resources
    result = await gateway.run("mutation ($id: ID!) { deleteOrder(id: $id) { id status } }", {"id": order_id})
    assert result == {"data": {"deleteOrder": {"id": order_id, "status": "cancelled"}}}


async def test_facts_of_a_shortage_are_in_camel_case(gateway: Gateway) -> None:
    gateway.orders.fail(409, "out-of-stock", detail="too few", shortages=[{"product_id": "p", "wanted": 3, "left": 1}])
    result = await gateway.run('mutation { createOrder(input: {user: "c", items: []}) { id } }')
    [error] = result["errors"]
    assert (error["message"], error["path"]) == ("too few", ["createOrder"])
    assert error["extensions"] == {"code": "OUT_OF_STOCK", "shortages": [{"productId": "p", "wanted": 3, "left": 1}]}
    gateway.orders.fail(409, "price-changed", detail="the price has changed", total="9.00", currency="GBP")
    result = await gateway.run('mutation { createOrder(input: {user: "c", items: [], expectedTotal: "8.00"}) { id } }')
    assert result["errors"][0]["extensions"] == {"code": "PRICE_CHANGED", "total": "9.00", "currency": "GBP"}


async def test_bad_input_names_the_field_as_graphql_does(gateway: Gateway) -> None:
    gateway.orders.fail(
        422, "bad-input", errors=[{"field": "items[0].product_id", "reason": "must be a UUID, not `product_id`"}]
    )
    result = await gateway.run('mutation { createOrder(input: {user: "c", items: []}) { id } }')
    [error] = result["errors"]
    assert error["extensions"]["field"] == "input.items[0].productId"
    assert error["message"] == "input.items[0].productId: must be a UUID, not `productId`"
    assert error["extensions"]["code"] == "BAD_INPUT"
    for problem_type in ("idempotency-key-reused", "too-large", "malformed", "unsupported-media-type"):
        gateway.orders.fail(422, problem_type, errors=[{"field": "Idempotency-Key", "reason": "was used"}])
        result = await gateway.run(
            'mutation { createOrder(input: {user: "c", items: []}, idempotencyKey: "k9") { id } }'
        )
        assert (code(result), result["errors"][0]["extensions"]["field"]) == ("BAD_INPUT", "idempotencyKey")
    gateway.products.fail(422, "bad-input", errors=[{"field": "limit", "reason": "expected `int` <= 100"}])
    result = await gateway.run("{ products(limit: 101) { total } }")
    assert result["errors"][0]["extensions"]["field"] == "limit"
    for key in ("", "a b", "ü", "x" * 256):
        result = await gateway.run(
            'mutation ($k: String) { createOrder(input: {user: "c", items: []}, idempotencyKey: $k) { id } }',
            {"k": key},
        )
        assert (code(result), result["errors"][0]["extensions"]["field"]) == ("BAD_INPUT", "idempotencyKey")


async def test_other_problems_keep_their_code(gateway: Gateway) -> None:
    for status, problem_type, expected in (
        (409, "conflict", "CONFLICT"),
        (409, "order-cancelled", "ORDER_CANCELLED"),
        (409, "already-exists", "ALREADY_EXISTS"),
        (404, "not-found", "NOT_FOUND"),
        (503, "overloaded", "UNAVAILABLE"),
        (503, "deadline-exceeded", "UNAVAILABLE"),
        (500, "internal", "INTERNAL"),
    ):
        gateway.orders.fail(status, problem_type, headers={"retry-after": "9"} if status == 503 else {})
        result = await gateway.run('{ order(id: "00000000-0000-4000-8000-00000000ffff") { id } }')
        assert (result["data"], code(result)) == ({"order": None}, expected)


async def test_an_upstream_response_that_breaks_the_contract_is_an_internal_error_of_its_field(
    gateway: Gateway,
) -> None:
    gateway.orders.failures = [(200, {"id": 5, "status": None}, {})]
    result = await gateway.run('{ order(id: "00000000-0000-4000-8000-00000000ffff") { id status } products { limit } }')
    assert result["data"] == {"order": None, "products": {"limit": 20}}
    assert code(result) == "INTERNAL"


@pytest.mark.parametrize(
    "text", ["{ products(ids: []) { %s } }", "query ($ids: [ID!] = []) { products(ids: $ids) { %s } }"]
)
async def test_a_page_of_no_ids_is_empty(gateway: Gateway, text: str) -> None:
    result = await gateway.run(text % "items { id } total limit offset totalExact next")
    assert result == {
        "data": {"products": {"items": [], "total": 0, "limit": 0, "offset": 0, "totalExact": True, "next": None}}
    }
    assert not gateway.products.calls
    result = await gateway.run('{ products(ids: [], q: "x") { total } }')
    assert result["errors"][0]["message"] == "q: must be absent if ids are given"


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
            gateway.products.versions[product_id] = gateway.products.versions.get(product_id, 0) + 1
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


async def test_an_update_of_an_unknown_product_without_an_image_is_not_found(gateway: Gateway) -> None:
    result = await gateway.run(UPDATE, update_of("00000000-0000-4000-8000-00000000ffff"))
    assert (result["data"], code(result)) == ({"updateProduct": None}, "NOT_FOUND")


async def test_the_stock_of_products_is_requested_only_where_it_is_selected(gateway: Gateway) -> None:
    ids = list(gateway.products.resources)[:3]
    result = await gateway.run(
        "query ($id: ID!, $ids: [ID!]) { product(id: $id) { stock } products(ids: $ids) { items { available stock } }}",
        {"id": ids[1], "ids": ids},
    )
    stocks = [{True: 7, False: 0, None: None}[gateway.products.resources[i]["available"]] for i in ids]
    assert result["data"]["product"] == {"stock": stocks[1]}
    assert [item["stock"] for item in result["data"]["products"]["items"]] == stocks
    assert sorted("stock=true" in query for _, query, _, _ in gateway.products.calls) == [True, True]
    gateway.products.calls.clear()
    await gateway.run("query ($id: ID!) { product(id: $id) { name available } }", {"id": ids[1]})
    assert ["stock" in query for _, query, _, _ in gateway.products.calls] == [False]


async def test_the_stock_of_order_lines_is_joined(gateway: Gateway) -> None:
    [user] = {o["user"] for o in list(gateway.orders.resources.values())[:1]}
    result = await gateway.run(
        "query ($user: String!) { orders(user: $user, limit: 1) { items { items { product { id stock } } } } }",
        {"user": user},
    )
    [order] = result["data"]["orders"]["items"]
    for line in order["items"]:
        if line["product"] is not None:
            resource = gateway.products.resources[line["product"]["id"]]
            assert line["product"]["stock"] == {True: 7, False: 0, None: None}[resource["available"]]
    assert any(line["product"] for line in order["items"])


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


async def test_all_ids_that_are_no_uuids_are_named(gateway: Gateway) -> None:
    known = next(iter(gateway.products.resources))
    result = await gateway.run("query ($ids: [ID!]) { products(ids: $ids) { total } }", {"ids": ["x", known, "y"]})
    [error] = result["errors"]
    assert error["extensions"]["field"] == "ids[0]"
    assert [e["field"] for e in error["extensions"]["errors"]] == ["ids[0]", "ids[2]"]
