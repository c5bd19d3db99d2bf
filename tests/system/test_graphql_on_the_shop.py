"""The gateway on the whole shop: the documented examples, and generated documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis_graphql import from_schema

from tests.support.graphql_examples import open_examples, run_example
from tests.system.whole_shop import System

ROOT = Path(__file__).parents[2]


async def test_every_example_in_the_file_gives_the_response_in_the_file(shop: System, http: httpx.AsyncClient) -> None:
    known: dict[str, Any] = {}
    called = set()
    for example in open_examples():
        await run_example(example, known, http, shop.urls["graphql"])
        called |= set(example.response["data"])
    assert called == {
        "product",
        "products",
        "order",
        "orders",
        "createProduct",
        "updateProduct",
        "deleteProduct",
        "createOrder",
        "deleteOrder",
    }


async def test_all_wrong_fields_of_an_input_are_named(shop: System, http: httpx.AsyncClient) -> None:
    create = "mutation ($input: CreateProductInput!) { createProduct(input: $input) { id } }"
    wrong = {"name": "", "description": "", "price": "1.0005", "currency": "XXQ", "stock": -1, "imageUrl": "//host"}
    body = {"query": create, "variables": {"input": wrong}}
    [error] = (await http.post(shop.urls["graphql"] + "/graphql", json=body)).json()["errors"]
    fields = {e["field"] for e in error["extensions"]["errors"]}
    assert fields == {f"input.{name}" for name in ("name", "price", "currency", "stock", "imageUrl")}


async def test_pages_are_walked_by_their_cursors(shop: System, http: httpx.AsyncClient) -> None:
    async def run(document: str, **variables: Any) -> dict[str, Any]:
        body = {"query": document, "variables": variables}
        result = (await http.post(shop.urls["graphql"] + "/graphql", json=body)).json()
        assert "errors" not in result, result
        data: dict[str, Any] = result["data"]
        return data

    user = f"walker-{uuid4()}"
    create = "mutation ($input: CreateProductInput!) { createProduct(input: $input) { id } }"
    product = {"name": f"Cup {user}", "description": "", "price": "1.00", "currency": "GBP", "stock": 5}
    products = [(await run(create, input=product))["createProduct"]["id"] for _ in range(3)]
    place = "mutation ($input: CreateOrderInput!) { createOrder(input: $input) { id } }"
    order = {"user": user, "items": [{"productId": products[0], "quantity": 1}]}
    orders = [(await run(place, input=order))["createOrder"]["id"] for _ in range(3)]
    for document, created in (
        (
            "query ($q: String!, $a: String) { page: products(q: $q, limit: 2, after: $a) { items { id } next } }",
            products,
        ),
        (
            "query ($q: String!, $a: String) { page: orders(user: $q, limit: 2, after: $a) { items { id } next } }",
            orders,
        ),
    ):
        first = (await run(document, q=user))["page"]
        second = (await run(document, q=user, a=first["next"]))["page"]
        assert [item["id"] for item in first["items"] + second["items"]] == created[::-1]
        assert second["next"] is None


async def test_no_generated_document_causes_an_internal_error(shop: System, http: httpx.AsyncClient) -> None:
    documents: list[str] = []

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(from_schema((ROOT / "graphql/schema.graphql").read_text()))
    def collect(document: str) -> None:
        documents.append(document)

    collect()
    codes = set()
    for document in documents:
        response = await http.post(shop.urls["graphql"] + "/graphql", json={"query": document})
        assert response.status_code in (200, 400), (document, response.text)
        codes |= {e["extensions"]["code"] for e in response.json().get("errors", [])}
    assert codes <= {"BAD_INPUT", "NOT_FOUND", "UNAVAILABLE"}, codes


async def test_invalid_input_is_reported_with_the_field_names_of_the_schema(
    shop: System, http: httpx.AsyncClient
) -> None:
    product = {"name": "Cup", "description": "", "price": "1.00", "currency": "GBP", "imageUrl": None}
    order = {"user": "ann", "items": [{"productId": str(uuid4()), "quantity": 1}]}
    create = "mutation ($input: CreateProductInput!) { createProduct(input: $input) { id } }"
    place = "mutation ($input: CreateOrderInput!) { createOrder(input: $input) { id } }"
    cases: list[tuple[str, dict[str, Any], str]] = [
        (create, {**product, "price": "1.005"}, "input.price"),
        (create, {**product, "price": "NaN"}, "input.price"),
        (create, {**product, "name": ""}, "input.name"),
        (create, {**product, "name": "a\0b"}, "input.name"),
        (create, {**product, "currency": "XXQ"}, "input.currency"),
        (create, {**product, "imageUrl": "javascript:alert(1)"}, "input.imageUrl"),
        (create, {**product, "stock": -1}, "input.stock"),
        (place, {**order, "user": ""}, "input.user"),
        # Only where the shop asks for sign-in it may be left out.
        (place, {"items": order["items"]}, "input.user"),
        (place, {**order, "email": "a@b.test\r\nBcc: x@y.test"}, "input.email"),
        (place, {**order, "items": []}, "input.items"),
        (place, {**order, "items": order["items"] * 1001}, "input.items"),
        (place, {**order, "items": [{"productId": "x", "quantity": 1}]}, "input.items[0].productId"),
        (place, {**order, "items": [{"productId": str(uuid4()), "quantity": 0}]}, "input.items[0].quantity"),
        (place, {**order, "expectedTotal": "1e3"}, "input.expectedTotal"),
        (place, order, "input.items.productId"),
    ]
    for query, input, field in cases:
        response = await http.post(
            shop.urls["graphql"] + "/graphql", json={"query": query, "variables": {"input": input}}
        )
        [error] = response.json()["errors"]
        found = error["extensions"]
        assert (found["code"], re.sub(r"\[(\d+|\.\.\.)\]", "[0]", found["field"])) == ("BAD_INPUT", field), error
    for query, field in (
        ("{ products(limit: 0) { total } }", "limit"),
        ("{ products(limit: 101) { total } }", "limit"),
        ("{ products(offset: -1) { total } }", "offset"),
        ("{ products(offset: 10001) { total } }", "offset"),
        ('{ products(after: "x") { total } }', "after"),
        ('{ orders(user: "a", after: "x") { total } }', "after"),
        ('{ products(sort: "size") { total } }', "sort"),
        ('{ orders(user: "a", limit: 1001) { total } }', "limit"),
        ('{ orders(user: "a", status: "lost") { total } }', "status"),
        ('{ orders(user: "") { total } }', "user"),
    ):
        response = await http.post(shop.urls["graphql"] + "/graphql", json={"query": query})
        [error] = response.json()["errors"]
        assert (error["extensions"]["code"], error["extensions"]["field"]) == ("BAD_INPUT", field), error
