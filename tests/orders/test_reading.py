"""GET: one order, and a user's list."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from .parts import Catalogue, Service, Stock


@pytest.mark.parametrize("id", ["1", "not-a-uuid", "00000000-0000-0000-0000-000000000000", str(uuid4()), "a" * 5000])
async def test_what_names_no_order_is_not_found(service: Service, id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await service.http.request(method, f"/api/order/{id}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:market:problem:not-found"


async def test_a_list_is_newest_first_in_pages_and_compares_the_user_exactly(
    service: Service, catalogue: Catalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    user = f"Zoë {uuid4()}"
    made = [(await service.order([(lamp, 1)], user=user)).json() for _ in range(5)]
    assert (await service.order([(lamp, 1)], user=user.lower())).status_code == 201
    page = (await service.http.get("/api/order", params={"user": user})).json()
    assert page == {"items": made[::-1], "total": 5, "limit": 100, "offset": 0}
    page = (await service.http.get("/api/order", params={"user": user, "limit": 2, "offset": 1})).json()
    assert page == {"items": [made[3], made[2]], "total": 5, "limit": 2, "offset": 1}
    page = (await service.http.get("/api/order", params={"user": user, "offset": 7})).json()
    assert page == {"items": [], "total": 5, "limit": 100, "offset": 7}
    assert (await service.http.delete(f"/api/order/{made[2]['id']}")).status_code == 204
    for status, ids in (
        ("cancelled", [made[2]["id"]]),
        ("pending", []),
        ("confirmed", [made[i]["id"] for i in (4, 3, 1, 0)]),
    ):
        page = (await service.http.get("/api/order", params={"user": user, "status": status})).json()
        assert ([o["id"] for o in page["items"]], page["total"]) == (ids, len(ids))


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "user"),
        ({"user": ""}, "user"),
        ({"user": "a\x01"}, "user"),
        ({"user": "x" * 201}, "user"),
        ({"user": "a", "limit": 0}, "limit"),
        ({"user": "a", "limit": 1001}, "limit"),
        ({"user": "a", "limit": "ten"}, "limit"),
        ({"user": "a", "offset": -1}, "offset"),
        ({"user": "a", "offset": 10**30}, "offset"),
        ({"user": "a", "status": "rejected"}, "status"),
        ({"user": "a", "page": 1}, "page"),
        ({"user": ["a", "b"]}, "user"),
    ],
)
async def test_a_list_with_bad_parameters_names_the_field(service: Service, params: dict[str, Any], field: str) -> None:
    answer = await service.http.get("/api/order", params=params)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_a_page_ends_early_at_eight_mebibytes(service: Service, documents: Any) -> None:
    from datetime import UTC, datetime
    from decimal import Decimal

    from market.kit.ids import new_id
    from market.orders.domain import Order, OrderLine
    from market.orders.mongodb.documents import order_to_document

    user = f"big {uuid4()}"
    lines = tuple(OrderLine(str(uuid4()), "n" * 200, 1, Decimal("1.00")) for _ in range(1000))
    orders = [Order(new_id(), user, None, lines, Decimal(1000), "GBP", datetime.now(UTC)) for _ in range(30)]
    documents.insert_many([{**order_to_document(o), "status": "confirmed"} for o in orders])
    answer = await service.http.get("/api/order", params={"user": user, "limit": 1000})
    page = answer.json()
    assert len(answer.content) < 8 * 1024 * 1024 + 200
    assert len(answer.content) > 7 * 1024 * 1024
    assert page["total"] == 30
    assert [o["id"] for o in page["items"]] == [str(o.id) for o in reversed(orders)][: len(page["items"])]
    # The next page goes on where this one ended.
    following = (
        await service.http.get("/api/order", params={"user": user, "limit": 1000, "offset": len(page["items"])})
    ).json()
    assert following["items"][0]["id"] == str(orders[-1 - len(page["items"])].id)
    documents.delete_many({"user": user})
