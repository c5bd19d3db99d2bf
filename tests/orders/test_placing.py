"""POST /api/order: every status of the contract, with its exact body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from market.kit.http.client import HttpClient
from market.orders.app import Clients
from market.orders.clients import ProductsClient
from market.orders.config import Config
from market.orders.domain import Product
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .service import MakeSettings, Service, serving
from .stock import Stock
from .topic import Topic


async def test_an_order_is_confirmed_stored_and_published(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic, documents: Any
) -> None:
    lamp, chair = catalogue.add("2.50", name="Lämp"), catalogue.add("10", name="Chair")
    await stock.set(lamp, 5)
    await stock.set(chair, 5)
    response = await service.place([(lamp.upper(), 2), (chair, 1), (lamp, 1)], email="ada@example.test")
    assert response.status_code == 201
    order = response.json()
    assert response.headers["location"] == f"/api/order/{order['id']}"
    assert "idempotency-replayed" not in response.headers
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
        "confirmed_at": order["confirmed_at"],
    }
    assert (await service.http.get(response.headers["location"])).json() == order
    assert await stock.available(lamp) == 2
    assert await stock.reservation(order["id"]) == ("reserved", {lamp: 3, chair: 1})
    [event] = await topic.wait_for(order["id"], "order.created")
    assert (event.type, event.sequence, event.subject, event.specversion) == ("order.created", "1", order["id"], "1.0")
    assert event.data.status == "confirmed"
    [message] = topic.messages_of(order["id"])
    assert "Lämp".encode() in message.value()
    headers = dict(message.headers())
    assert headers["x-request-id"] == response.headers["x-request-id"].encode()
    assert headers["content-type"] == b"application/cloudevents+json; charset=UTF-8"
    await until(lambda: "outbox" not in documents.find_one({"_id": UUID(order["id"])}), what="outbox empty")
    stored = documents.find_one({"_id": UUID(order["id"])})
    assert {"unsent_since", "claimed_by", "claimed_at"} & set(stored) == set()


async def test_a_shortage_names_each_product_and_reserves_nothing(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp, chair, table = catalogue.add(), catalogue.add(), catalogue.add()
    await stock.set(lamp, 5)
    await stock.set(chair, 1)
    response = await service.place([(lamp, 2), (chair, 2), (table, 1)], user="short")
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:market:problem:out-of-stock"
    assert sorted(problem["shortages"], key=lambda s: s["left"]) == [
        {"product_id": table, "wanted": 1, "left": 0},
        {"product_id": chair, "wanted": 2, "left": 1},
    ]
    assert set(problem) == {"type", "title", "status", "detail", "shortages"}
    assert (await stock.available(lamp), await stock.available(chair)) == (5, 1)
    document = documents.find_one({"user": "short"})
    await until(lambda: "release_due" not in documents.find_one({"_id": document["_id"]}), what="release")
    assert (await service.http.get(f"/api/order/{document['_id']}")).json()["status"] == "rejected"
    assert (await service.http.get("/api/order", params={"user": "short"})).json() == {
        "items": [],
        "total": 0,
        "limit": 100,
        "offset": 0,
        "total_exact": True,
        "next": None,
    }
    # Cancelling a rejected order changes nothing.
    assert (await service.http.delete(f"/api/order/{document['_id']}")).status_code == 204
    assert documents.find_one({"_id": document["_id"]})["status"] == "rejected"


async def test_a_total_different_from_the_expected_one_is_rejected_before_anything_is_stored(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp = catalogue.add("2.50")
    await stock.set(lamp, 5)
    response = await service.place([(lamp, 2)], user="thrifty", expected_total="4.99")
    assert response.status_code == 409
    assert response.json() == {
        "type": "urn:market:problem:price-changed",
        "title": "Price changed",
        "status": 409,
        "detail": "the total is now 5.00 GBP",
        "total": "5.00",
        "currency": "GBP",
    }
    assert documents.find_one({"user": "thrifty"}) is None
    assert await stock.available(lamp) == 5
    assert (await service.place([(lamp, 2)], user="thrifty", expected_total="5")).status_code == 201


async def test_a_currency_different_from_the_expected_one_is_a_price_change(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    """100 yen and 100 dollars are the same amount."""
    lamp, cup = catalogue.add("100.00", currency="USD"), catalogue.add("1.00", currency="USD")
    for product_id in (lamp, cup):
        await stock.set(product_id, 5)
    user = f"traveller {uuid4()}"
    for seen in ({"expected_total": "100", "expected_currency": "JPY"}, {"expected_currency": "JPY"}):
        response = await service.place([(lamp, 1)], user=user, **seen)
        assert response.status_code == 409
        assert response.json() == {
            "type": "urn:market:problem:price-changed",
            "title": "Price changed",
            "status": 409,
            "detail": "the total is now 100.00 USD",
            "total": "100.00",
            "currency": "USD",
        }
    # The currency of one of two products has changed: there is no total any more.
    catalogue.products[cup]["currency"] = "EUR"
    response = await service.place([(lamp, 1), (cup, 1)], user=user, expected_total="101", expected_currency="USD")
    assert response.status_code == 409
    assert response.json() == {
        "type": "urn:market:problem:price-changed",
        "title": "Price changed",
        "status": 409,
        "detail": "the products now have different currencies: EUR and USD",
    }
    assert documents.find_one({"user": user}) is None
    assert await stock.available(lamp) == 5
    # What is absent is not compared.
    for seen in ({"expected_total": "100"}, {"expected_total": "100", "expected_currency": "USD"}, {}):
        response = await service.place([(lamp, 1)], user=user, **seen)
        assert (response.status_code, response.json()["currency"]) == (201, "USD")


async def test_an_unknown_product_and_two_currencies_are_bad_input(
    service: Service, catalogue: FakeCatalogue, documents: Any
) -> None:
    pounds, euros, unknown = catalogue.add(), catalogue.add(currency="EUR"), str(uuid4())
    response = await service.place([(pounds, 1), (unknown, 1)], user="lost")
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "items.product_id", "reason": f"unknown product {unknown}"}]
    response = await service.place([(pounds, 1), (euros, 1)], user="lost")
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "items", "reason": "must all have the same currency, got EUR, GBP"}]
    assert documents.find_one({"user": "lost"}) is None


VALID_ORDER: dict[str, Any] = {"user": "ada", "items": [{"product_id": str(UUID(int=1)), "quantity": 1}]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user": ""}, "user"),
        ({"user": "x" * 201}, "user"),
        ({"user": "a\x00b"}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"user": 7}, "user"),
        ({"email": "nobody"}, "email"),
        # Looks like an address, but nobody could be mailed.
        ({"user": "ada@home"}, "user"),
        ({"user": "ada@exa mple.test", "email": None}, "user"),
        ({"email": "a@b.test\r\nBcc: c@d.test"}, "email"),
        ({"items": []}, "items"),
        ({"items": [{"product_id": str(UUID(int=i)), "quantity": 1} for i in range(1001)]}, "items"),
        ({"items": [{"product_id": "1", "quantity": 1}]}, "items[0].product_id"),
        ({"items": [{"product_id": f"{UUID(int=1)}\n", "quantity": 1}]}, "items[0].product_id"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 0}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": -1}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 1_000_001}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 2**63}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 1.5}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": "1"}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": True}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1))}]}, "items[0].quantity"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 1, "unit_price": "0.01"}]}, "items[0].unit_price"),
        ({"items": [{"product_id": str(UUID(int=1)), "quantity": 600_000}] * 2}, "items[1].quantity"),
        ({"expected_total": 5}, "expected_total"),
        ({"expected_currency": "gbp"}, "expected_currency"),
        ({"expected_currency": "XXX"}, "expected_currency"),
        ({"expected_currency": 5}, "expected_currency"),
        ({"expected_total": "5.0001"}, "expected_total"),
        ({"expected_total": "NaN"}, "expected_total"),
        ({"expected_total": "1e3"}, "expected_total"),
        ({"expected_total": "1_000"}, "expected_total"),
        ({"total": "5.00"}, "total"),
    ],
)
async def test_bad_input_names_the_field(service: Service, change: dict[str, Any], field: str) -> None:
    response = await service.http.post("/api/order", json={**VALID_ORDER, **change})
    assert response.status_code == 422, response.text
    problem = response.json()
    assert problem["type"] == "urn:market:problem:bad-input"
    assert problem["errors"][0]["field"] == field
    assert problem["errors"][0]["reason"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b'{"user": NaN}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * 1_048_577, {}, 413),
        (b"[]", {}, 422),
        (b"{}", {"idempotency-key": "a b"}, 422),
        (b"{}", {"idempotency-key": "x" * 256}, 422),
        (b"{}", {"x-deadline-ms": "soon"}, 422),
    ],
)
async def test_a_request_that_is_not_an_order_is_rejected(
    service: Service, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = await service.http.post(
        "/api/order", content=content, headers={"content-type": "application/json", **headers}
    )
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_order_of_a_thousand_lines_is_placed_and_published(
    service: Service, catalogue: FakeCatalogue, stock: Stock, topic: Topic
) -> None:
    products = [catalogue.add("99999999.99", name="Лампа настольная " * 8) for _ in range(1000)]
    for start in range(0, 1000, 50):
        await asyncio.gather(*(stock.set(p, 1_000_000) for p in products[start : start + 50]))
    catalogue.requests.clear()
    catalogue.reset()
    # No request gets a response before four are in flight, and the delay gives a fifth the time to arrive.
    catalogue.await_in_flight, catalogue.delay_seconds = 4, 0.1
    response = await service.place([(p, 1_000_000) for p in products])
    assert response.status_code == 201, response.text
    assert response.json()["total"] == "99999999990000000.00"
    assert len(response.json()["items"]) == 1000
    assert sorted(map(len, catalogue.requests)) == [100] * 10
    assert catalogue.peak_in_flight == 4
    [event] = await topic.wait_for(response.json()["id"], "order.created")
    assert len(event.data.items) == 1000
    assert (await service.http.get(response.headers["location"])).json() == response.json()


class CountingProductsClient(ProductsClient):
    """The real client, which also counts the callers."""

    callers = 0

    async def get_products(self, product_ids: Sequence[str]) -> dict[str, Product]:
        self.callers += 1
        return await super().get_products(product_ids)


@pytest.fixture
async def counting_service(
    make_settings: MakeSettings, migrated: None
) -> AsyncIterator[tuple[Service, CountingProductsClient]]:
    """An instance whose callers of the products client are counted."""
    settings = make_settings()
    async with HttpClient("products", msgspec.convert(settings, Config).products) as http:
        products = CountingProductsClient(http)
        async with serving(settings, clients=Clients(products=products), background=False) as service:
            yield service, products


async def test_concurrent_orders_share_their_price_lookups(
    counting_service: tuple[Service, CountingProductsClient], catalogue: FakeCatalogue, stock: Stock
) -> None:
    service, products = counting_service
    lamp = catalogue.add()
    await stock.set(lamp, 100)
    catalogue.requests.clear()
    # No lookup is finished before all orders have arrived, however slow they are.
    catalogue.delay_seconds = 600
    placing = [asyncio.create_task(service.place([(lamp, 1)])) for _ in range(40)]
    await until(lambda: products.callers == 40, what="all orders look up the price")
    catalogue.reset()
    responses = await asyncio.gather(*placing)
    assert [r.status_code for r in responses] == [201] * 40
    # Four in flight, and one for all orders that wait.
    assert len(catalogue.requests) <= 5
    assert await stock.available(lamp) == 60


async def test_a_race_for_the_last_units_sells_exactly_those(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 17)
    responses = await asyncio.gather(*(service.place([(lamp, 1)], user="race") for _ in range(60)))
    assert sorted(r.status_code for r in responses) == [201] * 17 + [409] * 43
    assert await stock.available(lamp) == 0
    await until(
        lambda: documents.count_documents({"user": "race", "release_due": {"$exists": True}}) == 0, what="releases"
    )
    assert await stock.available(lamp) == 0
    listed = (await service.http.get("/api/order", params={"user": "race"})).json()
    assert (listed["total"], {o["status"] for o in listed["items"]}) == (17, {"confirmed"})


async def test_unavailable_products_give_503_before_anything_is_stored(
    service: Service, catalogue: FakeCatalogue, stock: Stock, documents: Any
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1)
    catalogue.unavailable = True
    response = await service.place([(lamp, 1)], user="early")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert "order_id" not in response.json()
    assert documents.find_one({"user": "early"}) is None


async def test_an_exceeded_deadline_gives_503_in_time(service: Service, catalogue: FakeCatalogue, stock: Stock) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 1)
    catalogue.delay_seconds = 600
    started = asyncio.get_running_loop().time()
    body = {"user": "ada", "items": [{"product_id": lamp, "quantity": 1}]}
    response = await service.http.post("/api/order", json=body, headers={"x-deadline-ms": "500"})
    assert response.status_code == 503
    # Without the deadline, orders would wait 20 s for products, and as long for each further attempt.
    assert asyncio.get_running_loop().time() - started < 15
    assert await stock.available(lamp) == 1


async def test_an_unavailable_inventory_opens_the_circuit_so_that_no_order_is_stored(
    make_settings: MakeSettings, catalogue: FakeCatalogue, migrated: None, documents: Any
) -> None:
    lamp, user = catalogue.add(), f"patient {uuid4()}"
    unreachable = {"target": f"127.0.0.1:{free_port()}"}
    async with serving(make_settings(inventory=unreachable), background=False) as cut_off:
        responses = [await cut_off.place([(lamp, 1)], user=user)]
        end = asyncio.get_running_loop().time() + PATIENCE
        # The open circuit breaker lets a call through from time to time; an order placed then is stored.
        while "order_id" in responses[-1].json() and (len(responses) < 12 or asyncio.get_running_loop().time() < end):
            responses.append(await cut_off.place([(lamp, 1)], user=user))
    assert {r.status_code for r in responses} == {503}
    stored = [r.json()["order_id"] for r in responses if "order_id" in r.json()]
    assert len(stored) == len(responses) - 1, "the circuit never opened"
    assert {str(d["_id"]) for d in documents.find({"user": user})} == set(stored)
    documents.delete_many({"user": user})
