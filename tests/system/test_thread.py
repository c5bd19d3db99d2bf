"""One product, one order, one mail, through all five services."""

from __future__ import annotations

import asyncio
from uuid import UUID

import httpx
from whole_shop import Mails, System, make_product

from market.contracts import events
from market.local import demo


async def test_an_order_is_priced_reserved_and_mailed(shop: System, http: httpx.AsyncClient, mails: Mails) -> None:
    product = await make_product(http, shop, name="Milk jug", price="34.10", stock=3)
    body = {"user": "ada", "email": "ada@thread.example", "items": [{"product_id": product["id"], "quantity": 2}]}
    answer = await http.post(f"{shop.urls['orders']}/api/order", json=body, headers={"X-Request-Id": "a-thread-through-five"})
    assert answer.status_code == 201
    order = answer.json()
    assert (order["status"], order["total"], order["currency"]) == ("confirmed", "68.20", "GBP")
    assert order["items"] == [{"product_id": product["id"], "name": "Milk jug", "quantity": 2, "unit_price": "34.10"}]
    assert (await http.get(shop.urls["orders"] + answer.headers["Location"])).json() == order

    [mail] = await mails.wait_for("ada@thread.example")
    assert mail["headers"]["X-Request-Id"] == "a-thread-through-five"
    assert mail["to"] == ["ada@thread.example"]
    for part in (mail["text"], mail["html"]):
        assert "Milk jug" in part
        assert "34.10" in part
        assert "68.20" in part


async def test_a_cancelled_order_gives_its_goods_back_and_is_mailed(shop: System, http: httpx.AsyncClient, mails: Mails) -> None:
    product = await make_product(http, shop, stock=1)
    body = {"user": "bea@thread.example", "items": [{"product_id": product["id"], "quantity": 1}]}
    order = (await http.post(f"{shop.urls['orders']}/api/order", json=body)).raise_for_status().json()
    refused = await http.post(f"{shop.urls['orders']}/api/order", json=body)
    assert refused.status_code == 409
    assert refused.json()["shortages"] == [{"product_id": product["id"], "wanted": 1, "left": 0}]

    assert (await http.delete(f"{shop.urls['orders']}/api/order/{order['id']}")).status_code == 204
    assert (await http.get(f"{shop.urls['orders']}/api/order/{order['id']}")).json()["status"] == "cancelled"
    assert (await http.post(f"{shop.urls['orders']}/api/order", json=body)).status_code == 201
    found = await mails.wait_for("bea@thread.example", 3)
    created, cancelled = (str(events.event_id(UUID(order["id"]), kind)) for kind in (events.CREATED, events.CANCELLED))
    ids = [mail["message_id"] for mail in found]
    assert len(ids) == 3
    assert sum(created in id for id in ids) == sum(cancelled in id for id in ids) == 1


async def test_a_good_is_shown_as_sold_out_soon_after_its_last_unit_is_sold(shop: System, http: httpx.AsyncClient) -> None:
    product = await make_product(http, shop, stock=1)
    url = f"{shop.urls['products']}/api/product/{product['id']}"
    assert (await http.get(url)).json()["available"] is True
    body = {"user": "cid", "items": [{"product_id": product["id"], "quantity": 1}]}
    assert (await http.post(f"{shop.urls['orders']}/api/order", json=body)).status_code == 201
    for _ in range(70):  # TTL 5 s + 20 %, and a second for a slow machine
        if (await http.get(url)).json()["available"] is False:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("still shown as available after 7 s")


async def test_200_buyers_of_50_units_buy_exactly_50(shop: System, http: httpx.AsyncClient) -> None:
    product = await make_product(http, shop, stock=50)
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    answers = await asyncio.gather(
        *(http.post(f"{shop.urls['orders']}/api/order", json={"user": f"racer-{n}", **body}) for n in range(200))
    )
    assert sorted(a.status_code for a in answers) == [201] * 50 + [409] * 150
    assert all(a.json()["shortages"] == [{"product_id": product["id"], "wanted": 1, "left": 0}] for a in answers if a.status_code == 409)
    assert (await http.post(f"{shop.urls['orders']}/api/order", json={"user": "late", **body})).status_code == 409


async def test_the_gateway_serves_the_pictures_of_the_demo_catalogue(shop: System, http: httpx.AsyncClient) -> None:
    for good in demo.catalogue():
        answer = await http.get(shop.urls["graphql"] + good.image)
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "image/svg+xml"), good.slug
        assert answer.text.startswith("<svg ")
    assert (await http.get(f"{shop.urls['graphql']}/images/none.svg")).status_code == 404
