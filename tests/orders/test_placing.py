"""POST /api/order: every answer of the table, with its exact body."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from .parts import Catalogue, Service, Stock, Topic, until


async def test_an_order_is_confirmed_stored_and_published(
    service: Service, catalogue: Catalogue, stock: Stock, topic: Topic, documents: Any
) -> None:
    lamp, chair = catalogue.add("2.50", name="Lämp"), catalogue.add("10", name="Chair")
    await stock.set(lamp, 5)
    await stock.set(chair, 5)
    answer = await service.order([(lamp.upper(), 2), (chair, 1), (lamp, 1)], email="ada@example.test")
    assert answer.status_code == 201
    order = answer.json()
    assert answer.headers["location"] == f"/api/order/{order['id']}"
    assert "idempotency-replayed" not in answer.headers
    assert UUID(order["id"]).version == 7
    assert order == {
        "id": order["id"],
        "user": "ada",
        "email": "ada@example.test",
        "items": [
            {"product_id": lamp, "name": "Lämp", "quantity": 3, "unit_price": "2.50"},
            {"product_id": chair, "name": "Chair", "quantity": 1, "unit_price": "10.00"},
        ],
        "total": "17.50",
        "currency": "GBP",
        "status": "confirmed",
        "created_at": order["created_at"],
    }
    assert (await service.http.get(answer.headers["location"])).json() == order
    assert await stock.left(lamp) == 2
    assert await stock.reservation(order["id"]) == ("reserved", {lamp: 3, chair: 1})
    [event] = await topic.wait(order["id"], "order.created")
    assert (event.type, event.sequence, event.subject, event.specversion) == ("order.created", 1, order["id"], "1.0")
    assert event.data.status == "confirmed"
    [message] = topic.of(order["id"])
    assert "Lämp".encode() in message.value()
    assert dict(message.headers())["x-request-id"] == answer.headers["x-request-id"].encode()
    await until(lambda: "outbox" not in documents.find_one({"_id": UUID(order["id"])}), 5, "outbox cleared")
    left = documents.find_one({"_id": UUID(order["id"])})
    assert {"unsent_since", "claimed_by", "claimed_at"} & set(left) == set()
