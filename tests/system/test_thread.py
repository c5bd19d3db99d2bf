"""One product, one order, one mail, through all services but the storefront."""

from __future__ import annotations

import asyncio
from uuid import UUID

import httpx
from market_dev.commands import demo

from market.contracts import events
from tests.support.waiting import until
from tests.system.whole_shop import Mails, System, create_product, place, retried

# 200: a repeated request after a 503 found the order placed.
PLACED = (201, 200)


async def test_an_order_is_priced_reserved_and_mailed(shop: System, http: httpx.AsyncClient, mails: Mails) -> None:
    product = await create_product(http, shop, name="Milk jug", price="34.10", stock=3)
    body = {"user": "ada", "email": "ada@thread.example", "items": [{"product_id": product["id"], "quantity": 2}]}
    response = await place(http, shop, body, **{"X-Request-Id": "a-thread-through-five"})
    assert response.status_code in PLACED
    order = response.json()
    assert (order["status"], order["total"], order["currency"]) == ("confirmed", "68.20", "GBP")
    assert order["items"] == [{"product_id": product["id"], "name": "Milk jug", "quantity": 2, "unit_price": "34.10"}]
    assert (await http.get(shop.urls["orders"] + response.headers["Location"])).json() == order

    [mail] = await mails.wait_for("ada@thread.example")
    assert mail["headers"]["X-Request-Id"] == "a-thread-through-five"
    assert mail["to"] == ["ada@thread.example"]
    for part in (mail["text"], mail["html"]):
        assert "Milk jug" in part
        assert "34.10" in part
        assert "68.20" in part


async def test_a_price_in_dinars_has_three_decimals_everywhere(
    shop: System, http: httpx.AsyncClient, mails: Mails
) -> None:
    product = await create_product(http, shop, name="Incense burner", price="1.250", currency="KWD")
    assert product["price"] == "1.250"
    url = f"{shop.urls['products']}/api/product"
    assert (await http.get(f"{url}/{product['id']}")).json()["price"] == "1.250"
    refused = await http.put(url, json={**product, "price": "1.2505"})
    assert (refused.status_code, refused.json()["errors"]) == (
        422,
        [
            {
                "field": "price",
                "reason": 'must be a string of 1 to 8 digits, with at most three decimals after a point, got "1.2505"',
            }
        ],
    )
    with_thousandth = (await http.put(url, json={**product, "price": "1.255"})).raise_for_status().json()
    assert with_thousandth["price"] == "1.255"
    refused = await http.put(url, json={**with_thousandth, "currency": "GBP"})
    assert (refused.status_code, refused.json()["errors"]) == (
        422,
        [{"field": "price", "reason": "must be a number with at most 2 decimals in GBP, got 1.255"}],
    )
    (await http.put(url, json=product)).raise_for_status()

    body = {
        "user": "dia@thread.example",
        "items": [{"product_id": product["id"], "quantity": 3}],
        "expected_total": "3.750",
        "expected_currency": "KWD",
    }
    changed = await place(http, shop, {**body, "expected_total": "3.751"})
    assert (changed.status_code, changed.json()["total"], changed.json()["currency"]) == (409, "3.750", "KWD")
    response = await place(http, shop, body)
    assert response.status_code in PLACED
    order = response.json()
    assert (order["total"], order["currency"], order["items"][0]["unit_price"]) == ("3.750", "KWD", "1.250")
    query = f"""{{
        product(id: "{product["id"]}") {{ price currency }}
        order(id: "{order["id"]}") {{ total currency items {{ unitPrice }} }}
    }}"""
    answer = (await http.post(f"{shop.urls['graphql']}/graphql", json={"query": query})).json()
    assert answer["data"] == {
        "product": {"price": "1.250", "currency": "KWD"},
        "order": {"total": "3.750", "currency": "KWD", "items": [{"unitPrice": "1.250"}]},
    }

    [mail] = await mails.wait_for("dia@thread.example")
    assert "3 x 1.250 = 3.750" in mail["text"]
    assert "Total: 3.750 KWD" in mail["text"]
    assert "3.750 KWD" in mail["html"]


async def test_a_cancelled_order_releases_its_stock_and_is_mailed(
    shop: System, http: httpx.AsyncClient, mails: Mails
) -> None:
    product = await create_product(http, shop, stock=1)
    body = {"user": "bea@thread.example", "items": [{"product_id": product["id"], "quantity": 1}]}
    order = (await place(http, shop, body)).raise_for_status().json()
    refused = await place(http, shop, body)
    assert refused.status_code == 409
    assert refused.json()["shortages"] == [{"product_id": product["id"], "wanted": 1, "left": 0}]

    gone = await retried(lambda: http.delete(f"{shop.urls['orders']}/api/order/{order['id']}"), 202, 503)
    assert gone.status_code == 204
    assert (await http.get(f"{shop.urls['orders']}/api/order/{order['id']}")).json()["status"] == "cancelled"
    assert (await place(http, shop, body)).status_code in PLACED
    found = await mails.wait_for("bea@thread.example", 3)
    created, cancelled = (str(events.event_id(UUID(order["id"]), kind)) for kind in (events.CREATED, events.CANCELLED))
    ids = [mail["message_id"] for mail in found]
    assert len(ids) == 3
    assert sum(created in id for id in ids) == sum(cancelled in id for id in ids) == 1


async def test_a_product_is_shown_as_sold_out_soon_after_its_last_unit_is_sold(
    shop: System, http: httpx.AsyncClient
) -> None:
    product = await create_product(http, shop, stock=1)
    url = f"{shop.urls['products']}/api/product/{product['id']}"

    async def availability() -> bool | None:
        return (await http.get(url)).json()["available"]  # type: ignore[no-any-return]

    async def is_available() -> bool:
        # Unknown (null) if inventory does not respond within a second.
        return await availability() is True

    await until(is_available, what="shown as available", interval=0.1)
    body = {"user": "cid", "items": [{"product_id": product["id"], "quantity": 1}]}
    assert (await place(http, shop, body)).status_code in PLACED

    async def is_shown_as_sold_out() -> bool:
        return await availability() is False

    # The TTL is 5 s plus up to 20 %; the rest is for a slow machine.
    await until(is_shown_as_sold_out, what="shown as sold out", interval=0.1)


async def test_200_buyers_of_50_units_buy_exactly_50(shop: System, http: httpx.AsyncClient) -> None:
    product = await create_product(http, shop, stock=50)
    body = {"items": [{"product_id": product["id"], "quantity": 1}]}
    responses = await asyncio.gather(*(place(http, shop, {"user": f"racer-{n}", **body}) for n in range(200)))
    bought = [a.json()["id"] for a in responses if a.status_code in PLACED]
    assert len(set(bought)) == 50
    assert [a.status_code for a in responses].count(409) == 150
    assert all(
        a.json()["shortages"] == [{"product_id": product["id"], "wanted": 1, "left": 0}]
        for a in responses
        if a.status_code == 409
    )
    assert (await place(http, shop, {"user": "late", **body})).status_code == 409


async def test_the_gateway_serves_the_images_of_the_demo_catalogue(shop: System, http: httpx.AsyncClient) -> None:
    for product in demo.catalogue():
        response = await http.get(shop.urls["graphql"] + product.image)
        assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "image/svg+xml"), (
            product.slug
        )
        assert response.text.startswith("<svg ")
    assert (await http.get(f"{shop.urls['graphql']}/images/none.svg")).status_code == 404
