"""What an order shows of what happened to it when, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from .catalogue import FakeCatalogue
from .service import Service, get_document, make_overdue, recover_all
from .stock import Stock
from .test_everybodys_orders import stored_order

TIMES = ("confirmed_at", "cancelled_at", "rejected_at", "rejection_reason", "shortages")


def as_text(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def read(service: Service, order_id: str) -> dict[str, Any]:
    """Return the order. The list has to show the same."""
    order: dict[str, Any] = (await service.http.get(f"/api/order/{order_id}")).raise_for_status().json()
    listed = await service.http.get("/api/order", params={"user": order["user"], "status": order["status"]})
    assert [o for o in listed.json()["items"] if o["id"] == order_id] == [order]
    return order


async def test_a_confirmed_and_a_cancelled_order_show_when_that_was(
    service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    user = f"ann {uuid4()}"
    placed = (await service.place([(lamp, 1)], user=user)).json()
    document = await get_document(service, placed["id"])
    assert placed["confirmed_at"] == as_text(document["confirmed_at"])
    assert await read(service, placed["id"]) == placed
    assert not placed.keys() & {"cancelled_at", "rejected_at", "rejection_reason", "shortages"}
    await service.http.delete(f"/api/order/{placed['id']}")
    document = await get_document(service, placed["id"])
    cancelled_at = as_text(document["cancelled_at"])
    assert await read(service, placed["id"]) == {**placed, "status": "cancelled", "cancelled_at": cancelled_at}


async def test_an_order_rejected_for_lack_of_stock_shows_the_shortages(
    service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp, chair, desk = catalogue.add(), catalogue.add(), catalogue.add()
    for product_id, quantity in ((lamp, 1), (chair, 0), (desk, 9)):
        await stock.set(product_id, quantity)
    user = f"ann {uuid4()}"
    assert (await service.place([(lamp, 3), (chair, 2), (desk, 9)], user=user)).status_code == 409
    [listed] = (await service.http.get("/api/order", params={"user": user, "status": "rejected"})).json()["items"]
    order = await read(service, listed["id"])
    assert order["rejected_at"] == as_text((await get_document(service, order["id"]))["rejected_at"])
    assert order["rejection_reason"] == "out-of-stock"
    shortages = [
        {"product_id": lamp, "wanted": 3, "left": 1},
        {"product_id": chair, "wanted": 2, "left": 0},
    ]
    assert sorted(order["shortages"], key=lambda s: -s["wanted"]) == shortages
    assert not order.keys() & {"confirmed_at", "cancelled_at"}


async def test_an_overdue_order_shows_that_it_was_not_confirmed_in_time(service: Service) -> None:
    document = stored_order(0, "pending")
    await service.documents.insert_one(document)
    await make_overdue(service.documents, {"_id": document["_id"]})
    await recover_all(service)
    order = await read(service, str(document["_id"]))
    assert (order["status"], order["rejection_reason"]) == ("rejected", "not-confirmed-in-time")
    assert order["rejected_at"] == as_text((await get_document(service, document["_id"]))["rejected_at"])
    assert "shortages" not in order


@pytest.mark.parametrize(
    ("reason", "shown"), [("refused", "reservation-rejected"), ("burnt-down", "burnt-down"), (None, None)]
)
async def test_other_reasons_are_shown_and_may_be_absent(service: Service, reason: str | None, shown: str) -> None:
    document = stored_order(0, "rejected") | ({"reason": reason} if reason else {})
    await service.documents.insert_one(document)
    order = await read(service, str(document["_id"]))
    assert order.get("rejection_reason") == shown
    assert "rejected_at" not in order


@pytest.mark.parametrize("status", ["pending", "confirmed", "cancelled", "rejected", "shipped"])
async def test_an_order_of_an_early_version_is_readable_without_times(service: Service, status: str) -> None:
    document = stored_order(0, status)
    await service.documents.insert_one(document)
    order = (await service.http.get(f"/api/order/{document['_id']}")).raise_for_status().json()
    assert order["status"] == status
    assert not order.keys() & set(TIMES)
    await service.documents.delete_one({"_id": document["_id"]})
