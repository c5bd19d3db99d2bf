"""A purchase: basket, checkout, order, cancellation; and what is sent twice, changed or refused meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx

from tests.storefront.visitor import Document, Form, Shop, Visitor
from tests.support.waiting import until
from tests.system.whole_shop import retried


async def put_into_basket(visitor: Visitor, product: dict[str, Any], quantity: int = 1) -> httpx.Response:
    page = await visitor.open(f"/products/{product['id']}")
    return await visitor.send(page.form("/basket"), ("action", "add"), quantity=str(quantity))


async def checkout_form(visitor: Visitor, user: str) -> Form:
    form = (await visitor.open("/checkout")).form("/checkout")
    form.fields = form.filled(name=user, email=f"{user}@example.test")
    return form


async def sent(visitor: Visitor, form: Form, **values: str) -> httpx.Response:
    """Return the response to the checkout form, following the page that does not know the outcome yet."""
    response = await visitor.send(form, **values)
    if response.headers.get("location") == "/checkout/pending?wait=1":
        response = await asked(visitor)
    return response


async def asked(visitor: Visitor) -> httpx.Response:
    async def known() -> httpx.Response | None:
        response = await visitor.get("/checkout/pending")
        return None if response.status_code == 202 else response

    return await until(known, what="a known outcome")


def new_user() -> str:
    return f"buyer-{uuid4().hex}"


async def test_a_stranger_buys_a_teapot_and_gets_a_mail(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Teapot", price="19.90", stock=5)
    user = new_user()
    response = await put_into_basket(visitor, product, 2)
    assert (response.status_code, response.headers["location"]) == (303, "/basket")
    basket = await visitor.open("/basket")
    assert "Total £39.80" in basket.text
    response = await sent(visitor, await checkout_form(visitor, user))
    page = await visitor.open(response.headers["location"])
    assert "Thank you for your order" in page.text
    assert "2 × £19.90 £39.80 Total £39.80" in page.text
    [order] = await shop.orders_of(user)
    assert (order["status"], order["total"], order["email"]) == ("confirmed", "39.80", f"{user}@example.test")
    assert "Your basket is empty." in (await visitor.open("/basket")).text
    mine = await visitor.open("/orders")
    assert f"/orders/{order['id']}" in mine.links

    async def mailed() -> bool:
        query = {"to": f"{user}@example.test"}
        found = await shop.http.get(f"{shop.stack.urls['mail']}/api/messages", params=query)
        return bool(found.json()["total"])

    await until(mailed, what="the mail")


async def test_an_order_is_cancelled_on_its_page(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(), new_user()
    await put_into_basket(visitor, product)
    response = await sent(visitor, await checkout_form(visitor, user))
    page = await visitor.open(response.headers["location"])
    [order] = await shop.orders_of(user)
    response = await visitor.send(page.form(f"/orders/{order['id']}/cancellation"))
    assert response.headers["location"] == f"/orders/{order['id']}"
    assert "Cancelled" in (await visitor.open(response.headers["location"])).text
    [order] = await shop.orders_of(user)
    assert order["status"] == "cancelled"


async def test_a_checkout_page_that_is_sent_several_times_places_one_order(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(), new_user()
    await put_into_basket(visitor, product)
    form = await checkout_form(visitor, user)
    twice = await asyncio.gather(visitor.send(form), visitor.send(form))
    again = await sent(visitor, form)
    [order] = await shop.orders_of(user)
    known = {r.headers["location"] for r in (*twice, again) if "pending" not in r.headers["location"]}
    assert known == {f"/orders/{order['id']}?placed=1"}


async def test_a_checkout_page_sent_again_leaves_what_was_put_into_the_basket_since(
    shop: Shop, visitor: Visitor
) -> None:
    product = await shop.create_product()
    await put_into_basket(visitor, product)
    form = await checkout_form(visitor, new_user())
    await sent(visitor, form)
    await put_into_basket(visitor, product)
    await sent(visitor, form)
    assert "Total £19.90" in (await visitor.open("/basket")).text


async def test_a_checkout_page_with_other_details_places_no_second_order(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(), new_user()
    await put_into_basket(visitor, product)
    form = await checkout_form(visitor, user)
    await sent(visitor, form)
    response = await sent(visitor, form, email="other@example.test")
    assert response.status_code == 409
    assert "This page has already placed an order" in Document(response.text).text
    assert len(await shop.orders_of(user)) == 1


async def test_a_changed_price_is_shown_with_the_difference_and_must_be_confirmed_again(
    shop: Shop, visitor: Visitor
) -> None:
    product, user = await shop.create_product(name="Kettle", price="10.00"), new_user()
    await put_into_basket(visitor, product, 2)
    form = await checkout_form(visitor, user)
    await shop.change_product(product, price="12.50")
    response = await sent(visitor, form)
    assert response.status_code == 409
    page = Document(response.text)
    assert "Kettle: the price was £10.00, and is now £12.50." in page.text
    assert "The total was £20.00, and is now £25.00." in page.text
    assert await shop.orders_of(user) == []
    await sent(visitor, page.form("/checkout"))
    [order] = await shop.orders_of(user)
    assert order["total"] == "25.00"


async def test_a_changed_currency_is_shown_and_must_be_confirmed_again(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(name="Jug", price="10.00"), new_user()
    await put_into_basket(visitor, product)
    form = await checkout_form(visitor, user)
    await shop.change_product(product, currency="EUR")
    response = await sent(visitor, form)
    assert response.status_code == 409
    assert "Jug: the price was £10.00, and is now €10.00." in Document(response.text).text
    assert await shop.orders_of(user) == []


async def test_a_shortage_is_shown_with_what_is_left_and_must_be_confirmed_again(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(name="Pan", price="10.00", stock=2), new_user()
    await put_into_basket(visitor, product, 3)
    response = await sent(visitor, await checkout_form(visitor, user))
    assert response.status_code == 409
    page = Document(response.text)
    assert "Pan: you wanted 3, and 2 are left." in page.text
    await sent(visitor, page.form("/checkout"))
    confirmed = [order for order in await shop.orders_of(user) if order["status"] == "confirmed"]
    assert [order["total"] for order in confirmed] == ["20.00"]


async def test_a_product_that_is_sold_out_or_deleted_meanwhile_leaves_the_order(shop: Shop, visitor: Visitor) -> None:
    kept, gone = await shop.create_product(name="Kept"), await shop.create_product(name="Gone")
    user = new_user()
    await put_into_basket(visitor, kept)
    await put_into_basket(visitor, gone)
    form = await checkout_form(visitor, user)
    url = f"{shop.stack.urls['products']}/api/product/{gone['id']}"
    # 404 if a first request has deleted it, and its response was a 503.
    assert (await retried(lambda: shop.http.delete(url), 503)).status_code in (204, 404)
    response = await sent(visitor, form)
    assert response.status_code == 409
    page = Document(response.text)
    assert "A product is no longer sold, and was removed." in page.text
    await sent(visitor, page.form("/checkout"))
    [order] = await shop.orders_of(user)
    assert [item["name"] for item in order["items"]] == ["Kept"]


async def test_a_missing_name_and_a_wrong_address_are_named_at_their_fields(shop: Shop, visitor: Visitor) -> None:
    await put_into_basket(visitor, await shop.create_product())
    form = (await visitor.open("/checkout")).form("/checkout")
    response = await visitor.send(form, name=" ", email="ann")
    page = Document(response.text)
    assert response.status_code == 400
    assert "Please enter a name of 1 to 200 characters." in page.text
    assert "Please enter an address such as ann@example.com." in page.text
    # The shop's rule for addresses is stricter than the page's.
    response = await sent(visitor, page.form("/checkout"), name="Ann", email="ann@-.-")
    assert response.status_code == 400
    assert "Please enter an address such as ann@example.com." in Document(response.text).text


async def test_quantities_are_changed_and_lines_removed(shop: Shop, visitor: Visitor) -> None:
    first, second = await shop.create_product(price="3.00"), await shop.create_product(price="5.00")
    await put_into_basket(visitor, first)
    await put_into_basket(visitor, second)
    page = await visitor.open("/basket")
    await visitor.send(page.form("/basket", product=first["id"]), ("action", "set"), quantity="4")
    page = await visitor.open("/basket")
    assert "Total £17.00" in page.text
    await visitor.send(page.form("/basket", product=second["id"]), ("action", "remove"))
    assert "Total £12.00" in (await visitor.open("/basket")).text
    for wrong in ("-1", "1.5", "many", "1000001", ""):
        response = await visitor.send(page.form("/basket", product=first["id"]), ("action", "set"), quantity=wrong)
        assert response.status_code == 400
        document = Document(response.text)
        assert "Please enter a whole number from 1 to 1,000,000." in document.text
        [field] = [attributes for _, attributes in document.elements if "aria-invalid" in attributes]
        assert field["id"] == f"quantity-{first['id']}"
    assert "Total £12.00" in (await visitor.open("/basket")).text


async def test_products_in_different_currencies_are_not_ordered_together(shop: Shop, visitor: Visitor) -> None:
    await put_into_basket(visitor, await shop.create_product(price="3.00"))
    await put_into_basket(visitor, await shop.create_product(price="5.00", currency="EUR"))
    page = await visitor.open("/basket")
    assert "Total £3.00 Total €5.00" in page.text
    assert "can only be ordered separately" in page.text
    assert "/checkout" not in page.links
