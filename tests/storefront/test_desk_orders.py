"""The desk's orders, what could not be sold, and unfinished orders, on the whole shop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import httpx
import pytest

from tests.storefront.signed_in import SigningIn
from tests.storefront.test_outages import dead, recovered, shows
from tests.storefront.visitor import Document, Shop, Visitor
from tests.system.whole_shop import retried


async def place_order(shop: Shop, user: str, product: dict[str, Any], quantity: int = 1) -> httpx.Response:
    """Place an order by REST, and return the response."""
    body = {"user": user, "items": [{"product_id": product["id"], "quantity": quantity}]}
    headers = {"Idempotency-Key": uuid4().hex}
    url = f"{shop.stack.urls['orders']}/api/order"
    return await retried(lambda: shop.http.post(url, json=body, headers=headers), 503)


def order_links(page: Document) -> list[str]:
    """Return the paths of the orders that a page lists, once each."""
    return list(dict.fromkeys(link for link in page.links if link.startswith("/desk/orders/")))


async def test_orders_are_filtered_by_the_address_and_paged(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=100)
    user = f"ann {uuid4()}"
    orders = [(await place_order(shop, user, product)).json() for _ in range(27)]
    await shop.http.delete(f"{shop.stack.urls['orders']}/api/order/{orders[0]['id']}")
    page = await visitor.open("/desk/orders?" + urlencode({"user": user}))
    assert "27 orders" in page.text
    newest_first = [f"/desk/orders/{order['id']}" for order in reversed(orders)]
    assert order_links(page) == newest_first[:25]
    [following] = [link for link in page.links if "after=" in link]
    page = await visitor.open(following)
    assert order_links(page) == newest_first[25:]
    cancelled = await visitor.open("/desk/orders?" + urlencode({"user": user, "status": "cancelled"}))
    assert order_links(cancelled) == [newest_first[-1]]
    # The days include both limits; orders near midnight are on one of two days.
    today = datetime.now(UTC).date()
    days = {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=1))}
    assert len(order_links(await visitor.open("/desk/orders?" + urlencode({"user": user, **days})))) == 25
    before = {"to": str(today - timedelta(days=2))}
    page = await visitor.open("/desk/orders?" + urlencode({"user": user, **before}))
    assert "There are no such orders." in page.text
    page = await visitor.open("/desk/orders?" + urlencode({"user": user, "from": "2026-02-02", "to": "2026-02-01"}))
    assert "The first day must not be after the last one." in page.text


async def test_an_order_is_found_looked_at_and_cancelled(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Copper kettle", stock=5)
    user = f"bob {uuid4()}"
    order = (await place_order(shop, user, product, 2)).json()
    [path] = order_links(await visitor.open("/desk/orders?" + urlencode({"user": user})))
    page = await visitor.open(path)
    for text in (order["id"], user, "Copper kettle", "Confirmed", "What happened when"):
        assert text in page.text
    times = [named["datetime"] for tag, named in page.elements if tag == "time"]
    assert [datetime.fromisoformat(t) for t in times] == [
        datetime.fromisoformat(order[name]) for name in ("created_at", "confirmed_at")
    ]
    question = await visitor.open(f"{path}/cancellation")
    response = await visitor.send(question.form(f"{path}/cancellation"))
    assert (response.status_code, response.headers["location"]) == (303, path)
    page = await visitor.open(path)
    assert "The order was cancelled. Its units go back to the stock." in page.text
    assert len([tag for tag, _ in page.elements if tag == "time"]) == 3
    assert f"{path}/cancellation" not in page.links
    # Somebody else has the question open, and confirms it.
    await visitor.send(question.form(f"{path}/cancellation"))
    assert "Nothing was done: the order had been cancelled already." in (await visitor.open(path)).text


async def test_a_form_of_another_page_cancels_nothing(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product()
    order = (await place_order(shop, f"cat {uuid4()}", product)).json()
    path = f"/desk/orders/{order['id']}/cancellation"
    form = (await visitor.open(path)).form(path)
    for headers, token in (({"origin": "https://evil.example"}, None), ({"origin": visitor.url}, "wrong")):
        data = dict(form.fields) | ({"form_token": token} if token else {})
        assert (await visitor.http.post(path, data=data, headers=headers)).status_code == 403
        data["order"] = order["id"]
        assert (await visitor.http.post("/desk/unfinished", data=data, headers=headers)).status_code == 403
    [stored] = await shop.orders_of(order["user"])
    assert stored["status"] == "confirmed"


async def test_what_could_not_be_sold_is_shown_by_product_and_day(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name=f"Rare vase {uuid4().hex[:6]}", stock=2)
    user = f"eve {uuid4()}"
    for quantity in (5, 4):
        assert (await place_order(shop, user, product, quantity)).status_code == 409
    page = await visitor.open("/desk/shortages")
    assert product["name"] in page.text
    rejected = await visitor.open("/desk/orders?" + urlencode({"user": user, "status": "rejected"}))
    assert "2 orders" in rejected.text
    detail = await visitor.open(order_links(rejected)[0])
    assert "There were not enough units in stock." in detail.text
    assert "2 left at that moment" in detail.text
    for wrong in ({"from": "2026-02-02", "to": "2026-02-01"}, {"from": "2026-01-01", "to": "2026-12-31"}):
        assert "a period has at most 92 days" in (await visitor.open("/desk/shortages?" + urlencode(wrong))).text


async def test_the_pages_are_in_russian_too(shop: Shop) -> None:
    async with shop.new_visitor(**{"accept-language": "ru"}) as visitor:
        assert "Заказы" in (await visitor.open("/desk/orders")).text
        assert "Не продано" in (await visitor.open("/desk/shortages")).text
        assert "Незавершённые заказы" in (await visitor.open("/desk/unfinished")).text


async def test_unfinished_orders_have_a_count_by_kind(visitor: Visitor) -> None:
    page = await visitor.open("/desk/unfinished")
    for kind in ("Pending for too long", "Stock not released", "Event not sent", "Event stuck"):
        assert kind in page.text
    page = await visitor.open("/desk/unfinished?kind=stuck")
    assert "No order is unfinished." in page.text


PAGES = ("/desk/orders", "/desk/shortages", "/desk/unfinished")


@pytest.mark.parametrize(("person", "status"), [("ann", 403), (None, 303)])
async def test_buyers_see_none_of_it(world: SigningIn, person: str | None, status: int) -> None:
    async with world.new_browser() as browser:
        if person:
            await browser.sign_in("/desk", person)
        for path in (*PAGES, f"/desk/orders/{uuid4()}", f"/desk/orders/{uuid4()}/cancellation"):
            assert (await browser.get(path)).status_code == status, path
        assert world.gateway.authorizations == []


async def test_operators_do_not_cancel_and_merchants_do_not_retry(world: SigningIn) -> None:
    """The page says so before the services would."""
    for person, path in (
        ("olga", f"/desk/orders/{uuid4()}/cancellation"),
        ("mia", "/desk/unfinished"),
    ):
        async with world.new_browser() as browser:
            await browser.sign_in("/desk", person)
            fields = Document((await browser.get("/desk")).text).form("/language").fields
            calls = len(world.gateway.authorizations)
            response = await browser.http.post(
                path, data={**dict(fields), "order": str(uuid4())}, headers={"origin": world.url}
            )
            assert (response.status_code, len(world.gateway.authorizations)) == (403, calls), person


async def test_a_wrong_address_is_not_an_internal_error(shop: Shop, visitor: Visitor) -> None:
    assert (await visitor.get_once(f"/desk/orders/{UUID(int=1)}")).status_code == 404
    assert (await visitor.get_once("/desk/orders/lamp")).status_code == 404
    assert (await visitor.get_once("/desk/orders?after=lamp")).status_code == 400
    assert (await visitor.get_once("/desk/unfinished?after=lamp")).status_code == 400
    assert (await visitor.get_once("/desk/shortages?after=lamp")).status_code == 400


async def test_without_orders_the_desk_says_what_is_not_known(shop: Shop, visitor: Visitor) -> None:
    async with dead(shop, "orders"):
        await shows(visitor, "/desk/shortages", "What could not be sold is not known at the moment")
        await shows(visitor, "/desk/unfinished", "Which orders are unfinished is not known at the moment")
        await shows(visitor, "/desk/orders", "A part of the shop does not respond.")
        for path in ("/desk/shortages", "/desk/unfinished", "/desk/orders"):
            response = await visitor.get_once(path)
            assert (response.status_code, response.headers.get("retry-after", "").isdigit()) == (503, True), path
        assert (await visitor.get("/desk/products")).status_code == 200
    await recovered(visitor, "/desk/unfinished", "No order is unfinished.")
    await recovered(visitor, "/desk/shortages", "Each attempt to order counts.")
    await recovered(visitor, "/desk/orders", "Buyer (exact)")


async def test_without_products_the_shortages_have_ids_in_place_of_names(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=1)
    assert (await place_order(shop, f"fay {uuid4()}", product, 3)).status_code == 409
    async with dead(shop, "products"):
        await shows(visitor, "/desk/shortages", product["id"], "The names of the products are not known at the moment.")
    await recovered(visitor, "/desk/shortages", product["name"])
