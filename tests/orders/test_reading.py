"""GET /api/order and GET /api/order/{id}."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from market.kit.ids import new_id
from market.orders.domain import Order, OrderLine, Status
from market.orders.mongodb.documents import order_to_document

from .catalogue import FakeCatalogue
from .service import Service
from .stock import Stock


@pytest.mark.parametrize(
    "order_id", ["1", "not-a-uuid", "00000000-0000-0000-0000-000000000000", str(uuid4()), "a" * 5000]
)
async def test_an_id_without_an_order_is_not_found(service: Service, order_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = await service.http.request(method, f"/api/order/{order_id}")
        assert response.status_code == 404
        assert response.json()["type"] == "urn:market:problem:not-found"


async def test_a_list_is_paged_newest_first_and_compares_the_user_exactly(
    service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    user = f"Zoë {uuid4()}"
    orders = [(await service.place([(lamp, 1)], user=user)).json() for _ in range(5)]
    assert (await service.place([(lamp, 1)], user=user.lower())).status_code == 201
    page = (await service.http.get("/api/order", params={"user": user})).json()
    assert page == {"items": orders[::-1], "total": 5, "limit": 100, "offset": 0, "total_exact": True, "next": None}
    page = (await service.http.get("/api/order", params={"user": user, "limit": 2, "offset": 1})).json()
    assert page.pop("next")
    assert page == {"items": [orders[3], orders[2]], "total": 5, "limit": 2, "offset": 1, "total_exact": True}
    page = (await service.http.get("/api/order", params={"user": user, "offset": 7})).json()
    assert page == {"items": [], "total": 5, "limit": 100, "offset": 7, "total_exact": True, "next": None}
    assert (await service.http.delete(f"/api/order/{orders[2]['id']}")).status_code == 204
    for status, ids in (
        ("cancelled", [orders[2]["id"]]),
        ("pending", []),
        ("confirmed", [orders[i]["id"] for i in (4, 3, 1, 0)]),
    ):
        page = (await service.http.get("/api/order", params={"user": user, "status": status})).json()
        assert ([o["id"] for o in page["items"]], page["total"]) == (ids, len(ids))


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"user": ""}, "user"),
        ({"user": "a\x01"}, "user"),
        ({"user": "x" * 201}, "user"),
        ({"user": "a", "limit": 0}, "limit"),
        ({"user": "a", "limit": 1001}, "limit"),
        ({"user": "a", "limit": "ten"}, "limit"),
        ({"user": "a", "offset": -1}, "offset"),
        ({"user": "a", "offset": 10**30}, "offset"),
        ({"user": "a", "offset": 10_001}, "offset"),
        ({"user": "a", "after": ""}, "after"),
        ({"user": "a", "after": "x"}, "after"),
        ({"user": "a", "after": "x", "offset": 1}, "offset"),
        ({"user": "a", "status": "unknown"}, "status"),
        ({"user": "a", "created_from": "2026-01-31"}, "created_from"),
        ({"user": "a", "created_from": "2026-01-31T12:00:00"}, "created_from"),
        ({"user": "a", "created_to": "0001-01-01T00:00:00+23:59"}, "created_to"),
        (
            {"user": "a", "created_from": "2026-01-31T12:00:01Z", "created_to": "2026-01-31T13:00:00+01:00"},
            "created_from",
        ),
        ({"user": "a", "page": 1}, "page"),
        ({"user": ["a", "b"]}, "user"),
    ],
)
async def test_a_list_with_bad_parameters_names_the_field(service: Service, params: dict[str, Any], field: str) -> None:
    response = await service.http.get("/api/order", params=params)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["field"] == field


async def test_a_page_ends_early_at_eight_mebibytes(service: Service, documents: Any) -> None:
    user = f"big {uuid4()}"
    lines = tuple(OrderLine(str(uuid4()), "n" * 200, 1, Decimal("1.00")) for _ in range(1000))
    orders = [Order(new_id(), user, None, lines, Decimal(1000), "GBP", datetime.now(UTC)) for _ in range(30)]
    documents.insert_many([{**order_to_document(o), "status": "confirmed"} for o in orders])
    response = await service.http.get("/api/order", params={"user": user, "limit": 1000})
    page = response.json()
    assert len(response.content) < 8 * 1024 * 1024 + 200
    assert len(response.content) > 7 * 1024 * 1024
    assert page["total"] == 30
    assert [o["id"] for o in page["items"]] == [str(o.id) for o in reversed(orders)][: len(page["items"])]
    # The next page continues where this one ended, and by the cursors no order is skipped.
    for following in ({"offset": len(page["items"])}, {"after": page["next"]}):
        next_page = (await service.http.get("/api/order", params={"user": user, "limit": 1000, **following})).json()
        assert next_page["items"][0]["id"] == str(orders[-1 - len(page["items"])].id)
    walked = page["items"]
    while page["next"]:
        page = (
            await service.http.get("/api/order", params={"user": user, "limit": 1000, "after": page["next"]})
        ).json()
        walked += page["items"]
    assert [o["id"] for o in walked] == [str(o.id) for o in reversed(orders)]
    documents.delete_many({"user": user})


async def test_a_walk_returns_each_order_once_while_others_are_placed_and_cancelled(
    service: Service, documents: Any
) -> None:
    user = f"walker {uuid4()}"
    time = datetime(2026, 1, 1, tzinfo=UTC)

    def order(millisecond: int) -> Order:
        line = OrderLine(str(uuid4()), "Lamp", 1, Decimal("1.00"))
        return Order(
            new_id(),
            user,
            None,
            (line,),
            Decimal(1),
            "GBP",
            time + timedelta(milliseconds=millisecond),
            Status.CONFIRMED,
        )

    # Many orders of the same millisecond.
    orders = [order(n // 7) for n in range(40)]
    documents.insert_many([order_to_document(o) for o in orders])
    listed = [str(o.id) for o in sorted(orders, key=lambda o: (o.created_at, o.id), reverse=True)]
    found: list[str] = []
    parameters: dict[str, Any] = {"user": user, "status": "confirmed"}
    gone = []
    while True:
        page = (await service.http.get("/api/order", params={**parameters, "limit": 3})).json()
        assert page["total_exact"] is True
        found += [o["id"] for o in page["items"]]
        if page["next"] is None:
            break
        # The last order of the page and one far behind it are cancelled; newer ones are placed.
        for order_id in (found[-1], listed[-1 - 2 * len(gone)]):
            if order_id not in found:
                gone.append(order_id)
            documents.update_one({"_id": UUID(order_id)}, {"$set": {"status": "cancelled"}})
        documents.insert_one(order_to_document(order(100)))
        parameters["after"] = page["next"]
    assert found == [order_id for order_id in listed if order_id not in gone]
    documents.delete_many({"user": user})


async def test_a_cursor_of_another_user_or_status_is_rejected(service: Service, documents: Any) -> None:
    user = f"walker {uuid4()}"
    line = OrderLine(str(uuid4()), "Lamp", 1, Decimal("1.00"))
    orders = [Order(new_id(), user, None, (line,), Decimal(1), "GBP", datetime.now(UTC)) for _ in range(3)]
    documents.insert_many([order_to_document(o) for o in orders])
    after = (await service.http.get("/api/order", params={"user": user, "limit": 2})).json()["next"]
    assert len((await service.http.get("/api/order", params={"user": user, "after": after})).json()["items"]) == 1
    for other in ({"user": "another"}, {"user": user, "status": "pending"}):
        response = await service.http.get("/api/order", params={**other, "after": after})
        assert response.status_code == 422
        [error] = response.json()["errors"]
        assert error["field"] == "after"
        assert error["reason"].startswith("belongs to a list with another filter or sort order")
    documents.delete_many({"user": user})


async def test_an_offset_above_ten_thousand_names_the_cursor(service: Service) -> None:
    response = await service.http.get("/api/order", params={"user": "a", "offset": 10_001})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "offset", "reason": "must be a whole number from 0 to 10000; to skip more, use the parameter `after`"}
    ]


async def test_orders_are_counted_up_to_ten_thousand(service: Service, documents: Any) -> None:
    user = f"collector {uuid4()}"
    line = OrderLine(str(uuid4()), "Lamp", 1, Decimal("1.00"))
    order = order_to_document(Order(new_id(), user, None, (line,), Decimal(1), "GBP", datetime.now(UTC)))
    documents.insert_many([{**order, "_id": new_id()} for _ in range(10_001)])
    page = (await service.http.get("/api/order", params={"user": user, "limit": 1})).json()
    assert (page["total"], page["total_exact"]) == (10_000, False)
    documents.delete_one({"user": user})
    page = (await service.http.get("/api/order", params={"user": user, "limit": 1})).json()
    assert (page["total"], page["total_exact"]) == (10_000, True)
    documents.delete_many({"user": user})
