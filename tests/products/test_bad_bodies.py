"""Invalid bodies: the status, the name of the field, and no side effects."""

from __future__ import annotations

from uuid import uuid4

import pytest

from .conftest import LAMP, FakeInventory, RunningProducts, assert_problem

ID = str(uuid4())

BODIES = [
    ("name", 1),
    ("name", None),
    ("name", ""),
    ("name", "x" * 201),
    ("name", "a\u0000b"),
    ("name", "a\nb"),
    ("name", "a\u2028b"),
    ("name", []),
    ("name", " \u200b"),
    ("name", "a\u202eb"),
    ("description", "a\u2067b"),
    ("description", "x" * 10_001),
    ("description", "\u0000"),
    ("description", "a\rb"),
    ("description", 5),
    ("price", 2.5),
    ("price", 2),
    ("price", "NaN"),
    ("price", "Infinity"),
    ("price", "-1"),
    ("price", "1e3"),
    ("price", "1_000"),
    ("price", "1.234"),
    ("price", "123456789"),
    ("price", ""),
    ("price", " 1"),
    ("price", "1\n"),
    ("price", "1."),
    ("price", ".5"),
    ("price", "١"),
    ("price", None),
    ("currency", "gbp"),
    ("currency", "ZZZ"),
    ("currency", "XXX"),
    ("currency", "GB"),
    ("currency", "GBPP"),
    ("currency", ""),
    ("currency", 826),
    ("image_url", ""),
    ("image_url", "http://images.test/a.png"),
    ("image_url", "//images.test/a.png"),
    ("image_url", "/\\images.test"),
    ("image_url", "javascript:alert(1)"),
    ("image_url", "images/a.png"),
    ("image_url", "https://"),
    ("image_url", "https:///a"),
    ("image_url", 1),
    ("image_url", "https://a b"),
    ("image_url", "/images/\u202egpj.exe"),
    ("image_url", "https://user@images.test/"),
    ("image_url", "https://[::1"),
    ("image_url", "/" + "a" * 2000),
    ("image_url", "https://images.test:99999/"),
    ("image_url", "/a\u0000"),
    ("image_url", "data:image/png;base64,AA"),
    ("stock", -1),
    ("stock", 2_147_483_648),
    ("stock", 2**63),
    ("stock", 1.0),
    ("stock", 1.5),
    ("stock", "1"),
    ("stock", True),
    ("stock", None),
    ("nonsense", 1),
    ("Name", "x"),
    ("", 1),
]


@pytest.mark.parametrize(("field", "value"), BODIES, ids=lambda v: ascii(v)[:30])
async def test_an_invalid_field_is_named_and_changes_nothing(
    products_with_fake: RunningProducts, inventory: FakeInventory, field, value
):
    before = await products_with_fake.count()
    assert_problem(
        await products_with_fake.http.post("/api/product", json={**LAMP, field: value}), 422, field or "body"
    )
    put = {**LAMP, "id": ID, "image_url": None, field: value}
    assert_problem(await products_with_fake.http.put("/api/product", json=put), 422, field or "body")
    assert (await products_with_fake.count(), inventory.writes) == (before, [])


@pytest.mark.parametrize("field", LAMP)
async def test_a_missing_field_is_named(products_with_fake: RunningProducts, inventory: FakeInventory, field):
    body = {name: value for name, value in LAMP.items() if name != field}
    assert_problem(await products_with_fake.http.post("/api/product", json=body), 422, field)
    assert_problem(
        await products_with_fake.http.put("/api/product", json={**body, "id": ID, "image_url": None}), 422, field
    )
    assert inventory.writes == []


async def test_put_requires_the_id_and_every_writable_field(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    assert_problem(await products_with_fake.http.put("/api/product", json={**LAMP, "image_url": None}), 422, "id")
    assert_problem(await products_with_fake.http.put("/api/product", json={**LAMP, "id": ID}), 422, "image_url")
    assert_problem(
        await products_with_fake.http.put("/api/product", json={**LAMP, "id": "7", "image_url": None}), 422, "id"
    )
    assert_problem(await products_with_fake.http.post("/api/product", json={**LAMP, "id": ID}), 422, "id")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"price": NaN}',
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"a": 1} x',
        b"[" * 100_000,
        b'{"available":' * 5000,
        b'{"name": "\\ud800"}',
    ],
    ids=lambda b: ascii(b)[:30],
)
async def test_a_body_that_is_not_json_is_400(products: RunningProducts, body):
    for method in ("POST", "PUT"):
        response = await products.http.request(
            method, "/api/product", content=body, headers={"content-type": "application/json"}
        )
        assert_problem(response, 400)


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b"true"])
async def test_json_that_is_not_an_object_is_422(products: RunningProducts, body):
    for method in ("POST", "PUT"):
        response = await products.http.request(
            method, "/api/product", content=body, headers={"content-type": "application/json"}
        )
        assert_problem(response, 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=latin1"}, 415),
        ({"content-type": "application/json; a=b; charset=utf-16"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/jsonx"}, 415),
        ({"content-type": "Application/JSON; charset=UTF-8"}, 400),
    ],
)
async def test_other_content_types_are_415(products: RunningProducts, headers, status):
    assert_problem(await products.http.post("/api/product", content=b"{", headers=headers), status)
    assert_problem(await products.http.put("/api/product", content=b"{", headers=headers), status)


async def test_a_body_over_one_mebibyte_is_413_with_and_without_content_length(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    body = b'{"name": "' + b"x" * 10_000_000 + b'"}'

    async def chunks():
        for at in range(0, len(body), 65_536):
            yield body[at : at + 65_536]

    for content in (body, chunks()):
        response = await products_with_fake.http.post(
            "/api/product", content=content, headers={"content-type": "application/json"}
        )
        assert_problem(response, 413)
    assert inventory.writes == []
    assert (await products_with_fake.http.get("/api/product")).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "x" * 201, "must have 1 to 200 characters, got 201"),
        ("description", "a\rb", "must not contain control characters other than newline and tab"),
        (
            "price",
            "1.2345",
            'must be a string of 1 to 8 digits, with at most three decimals after a point, got "1.2345"',
        ),
        ("price", "9" * 41, "must be a string of 1 to 8 digits, with at most three decimals after a point"),
        ("currency", "gbp", 'must be the ISO 4217 code of a currency in use, such as EUR, in upper case, got "gbp"'),
        ("currency", "X" * 1000, "must be the ISO 4217 code of a currency in use, such as EUR, in upper case"),
        ("image_url", "//images.test/a.png", "must be null, an https URL, or a path that begins with one slash"),
        ("stock", -1, "must be between 0 and 2147483647, got -1"),
    ],
    ids=lambda v: ascii(v)[:30],
)
async def test_errors_of_fields_state_the_rule(products: RunningProducts, field, value, reason):
    problem = (await products.http.post("/api/product", json={**LAMP, field: value})).json()
    assert problem["errors"] == [{"field": field, "reason": reason}]
    assert problem["detail"] == f"{field}: {reason}"


@pytest.mark.parametrize(
    ("currency", "price", "rule"),
    [
        ("JPY", "100.5", "must be a whole number in JPY, got 100.50"),
        ("KRW", "0.01", "must be a whole number in KRW, got 0.01"),
        ("GBP", "2.505", "must be a number with at most 2 decimals in GBP, got 2.505"),
    ],
)
async def test_an_amount_that_the_currency_does_not_have_is_rejected(products: RunningProducts, currency, price, rule):
    response = await products.http.post("/api/product", json={**LAMP, "currency": currency, "price": price})
    assert_problem(response, 422, "price")
    assert response.json()["errors"][0]["reason"] == rule
    # Nor can a price get such a currency.
    product = await products.create(currency="KWD", price=price)
    response = await products.http.put("/api/product", json={**product, "currency": currency})
    assert_problem(response, 422, "price")
    assert response.json()["errors"][0]["reason"] == rule
    assert await products.get(product["id"]) == product


@pytest.mark.parametrize(
    ("currency", "price"),
    [("JPY", "100"), ("JPY", "100.00"), ("KWD", "1.25"), ("KWD", "1.255"), ("EUR", "0.01"), ("EUR", "0.010")],
)
async def test_an_amount_that_the_currency_has_is_accepted(products: RunningProducts, currency, price):
    assert (await products.create(currency=currency, price=price))["currency"] == currency


async def test_all_wrong_fields_of_a_body_are_named(products: RunningProducts):
    wrong = {
        **LAMP,
        "name": 5,
        "price": "1.0005",
        "currency": "XXQ",
        "image_url": "//host/a.png",
        "stock": -1,
        "colour": 1,
    }
    problem = (await products.http.post("/api/product", json=wrong)).json()
    assert [e["field"] for e in problem["errors"]] == ["name", "stock", "colour", "price", "currency", "image_url"]
    assert problem["detail"].startswith("name: must be a string, got a whole number; stock: ")
    # What only the service's own rules refuse.
    wrong = {**LAMP, "name": "a\tb", "description": "\0", "currency": "XXQ"}
    problem = (await products.http.post("/api/product", json=wrong)).json()
    assert [e["field"] for e in problem["errors"]] == ["name", "description", "currency"]
