"""The four queries and the join of products, over fakes of products and orders."""

from __future__ import annotations

import pytest

from tests.graphql.graphql_gateway import Gateway, code

ORDERS = """query ($user: String!, $limit: Int) {
  orders(user: $user, limit: $limit) {
    total limit offset
    items { id status total items { productId quantity unitPrice product { name price available } } }
  }
}"""


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


async def test_the_filters_of_orders_are_sent_to_rest(gateway: Gateway) -> None:
    await gateway.run(
        '{ orders(status: "rejected", createdFrom: "2026-01-31T12:00:00Z", createdTo: "2026-02-01T00:00:00+01:00") '
        "{ total } }"
    )
    assert gateway.orders.calls[0][1] == (
        "status=rejected&created_from=2026-01-31T12%3A00%3A00Z&created_to=2026-02-01T00%3A00%3A00%2B01%3A00"
    )


async def test_an_order_has_its_history_and_of_what_has_not_happened_null(gateway: Gateway) -> None:
    history = "id confirmedAt cancelledAt rejectedAt rejectionReason shortages { productId wanted left }"
    [first, second, *_] = [t for t in gateway.orders.resources.values() if t["user"] == "ann"]
    rejected = {
        "rejected_at": "2026-01-31T12:00:01.000Z",
        "rejection_reason": "out-of-stock",
        "shortages": [{"product_id": "p", "wanted": 3, "left": 1}],
    }
    gateway.orders.resources[second["id"]] = {**second, **rejected}
    try:
        result = await gateway.run(f'{{ orders(user: "ann") {{ items {{ {history} }} }} }}')
    finally:
        gateway.orders.resources[second["id"]] = second
    found = {o["id"]: o for o in result["data"]["orders"]["items"]}
    nothing = {"confirmedAt": None, "cancelledAt": None, "rejectedAt": None, "rejectionReason": None}
    assert found[first["id"]] == {"id": first["id"], **nothing, "shortages": []}
    assert found[second["id"]] == {
        "id": second["id"],
        **nothing,
        "rejectedAt": "2026-01-31T12:00:01.000Z",
        "rejectionReason": "out-of-stock",
        "shortages": [{"productId": "p", "wanted": 3, "left": 1}],
    }


async def test_the_pages_of_the_previous_version_of_the_services_have_no_cursor(gateway: Gateway) -> None:
    result = await gateway.run('{ products { totalExact next } orders(user: "ann") { totalExact next } }')
    assert result["data"]["products"] == {"totalExact": True, "next": None}
    assert result["data"]["orders"] == {"totalExact": True, "next": None}


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


async def test_all_ids_that_are_no_uuids_are_named(gateway: Gateway) -> None:
    known = next(iter(gateway.products.resources))
    result = await gateway.run("query ($ids: [ID!]) { products(ids: $ids) { total } }", {"ids": ["x", known, "y"]})
    [error] = result["errors"]
    assert error["extensions"]["field"] == "ids[0]"
    assert [e["field"] for e in error["extensions"]["errors"]] == ["ids[0]", "ids[2]"]
