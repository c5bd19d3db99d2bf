"""Bodies of POST /api/order that have several wrong fields."""

from __future__ import annotations

from uuid import uuid4

import pytest

from .catalogue import FakeCatalogue
from .service import Service
from .stock import Stock


async def test_all_wrong_fields_of_an_order_are_named(service: Service) -> None:
    body = {
        "user": "",
        "email": "nobody",
        "expected_total": "-1",
        "items": [
            {"product_id": "x", "quantity": 1},
            {"product_id": str(uuid4()), "quantity": 0},
            {"product_id": str(uuid4()), "quantity": 1, "colour": "red"},
        ],
    }
    response = await service.http.post("/api/order", json=body)
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "user", "reason": "must have 1 to 200 characters, got 0"},
        {"field": "items[0].product_id", "reason": "must be a UUID"},
        {"field": "items[1].quantity", "reason": "must be between 1 and 1000000, got 0"},
        {"field": "items[2].colour", "reason": "is unknown"},
        {"field": "email", "reason": "must be an e-mail address"},
        {
            "field": "expected_total",
            "reason": 'must be a string of 1 to 17 digits, with at most three decimals after a point, got "-1"',
        },
    ]


async def test_all_fields_that_only_the_rules_of_orders_refuse_are_named(service: Service) -> None:
    items = [{"product_id": str(uuid4()) + "\n", "quantity": 1}]
    body = {"user": "a\tb", "email": "nobody@nowhere", "items": items}
    response = await service.http.post("/api/order", json=body)
    assert response.status_code == 422
    assert [e["field"] for e in response.json()["errors"]] == ["user", "email", "items[0].product_id"]


async def test_a_thousand_wrong_lines_are_reported_by_the_first_twenty(service: Service) -> None:
    items = [{"product_id": str(uuid4()), "quantity": 0} for _ in range(1000)]
    response = await service.http.post("/api/order", json={"user": "ann", "items": items})
    assert response.status_code == 422
    assert [e["field"] for e in response.json()["errors"]] == [f"items[{n}].quantity" for n in range(20)]


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "If-Unmodified-Since"])
async def test_a_condition_is_refused_instead_of_ignored(
    service: Service, catalogue: FakeCatalogue, stock: Stock, header: str
) -> None:
    lamp = catalogue.add("1.00")
    await stock.set(lamp, 5)
    user = f"careful {uuid4()}"
    body = {"user": user, "items": [{"product_id": lamp, "quantity": 1}]}
    order = (await service.http.post("/api/order", json=body)).json()
    path = f"/api/order/{order['id']}"
    for method, url, json in (
        ("POST", "/api/order", body),
        ("GET", path, None),
        ("GET", f"/api/order?user={user}", None),
        ("DELETE", path, None),
    ):
        response = await service.http.request(method, url, json=json, headers={header: "*"})
        assert response.status_code == 422, (method, url)
        assert response.json()["errors"][0]["field"] == header
    page = (await service.http.get("/api/order", params={"user": user}, headers={"If-None-Match": '"1"'})).json()
    assert page["items"] == [order]
