"""The stock of a product at the desk: a stock take sets what was counted, a delivery adds to it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.storefront.test_desk_products import read, send_once
from tests.storefront.test_outages import dead
from tests.storefront.test_purchase import checkout_form, new_user, put_into_basket, sent
from tests.storefront.visitor import Document, Form, Shop, Visitor
from tests.support.waiting import until


async def stock_page(visitor: Visitor, product: dict[str, Any]) -> Document:
    """Return the page once it shows the stock, which a busy machine may not find out in time."""

    async def known() -> Document | None:
        page = await visitor.open(f"/desk/products/{product['id']}/stock")
        return None if "The stock is unknown" in page.text else page

    return await until(known, what="a known stock")


def stock_take(page: Document, product: dict[str, Any]) -> Form:
    return page.form(f"/desk/products/{product['id']}/stock-take")


async def test_a_stock_take_shows_what_the_shop_thinks_and_sets_what_was_counted(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Counted lamp", stock=10, image_url="/images/teapot.svg")
    page = await stock_page(visitor, product)
    assert "The shop thinks that there are 10." in page.text
    response = await visitor.send(stock_take(page, product), counted="1200")
    assert response.headers["location"] == f"/desk/products/{product['id']}/stock"
    page = await visitor.open(f"/desk/products/{product['id']}/stock")
    assert "The stock of Counted lamp is 1,200." in page.text
    now = await read(shop, product["id"])
    assert now["stock"] == 1200
    assert {name: now[name] for name in ("name", "price", "image_url")} == {
        name: product[name] for name in ("name", "price", "image_url")
    }


async def test_units_that_are_sold_during_a_stock_take_are_shown_and_nothing_is_set(
    shop: Shop, visitor: Visitor
) -> None:
    product = await shop.create_product(name="Sold lamp", stock=10)
    form = stock_take(await stock_page(visitor, product), product)
    async with shop.new_visitor() as buyer:
        await put_into_basket(buyer, product, 2)
        await sent(buyer, await checkout_form(buyer, new_user()))
    response = await visitor.send(form, counted="12")
    assert response.status_code == 409
    page = Document(response.text)
    assert "The stock was 10, and is now 8:" in page.text
    assert (await read(shop, product["id"]))["stock"] == 8
    again = stock_take(page, product)
    assert dict(again.fields)["counted"] == "12"
    assert (await visitor.send(again)).status_code == 303
    assert (await read(shop, product["id"]))["stock"] == 12


async def test_two_stock_takes_at_once_are_shown_to_the_later_one(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    async with shop.new_visitor() as other:
        mine = stock_take(await stock_page(visitor, product), product)
        theirs = stock_take(await stock_page(other, product), product)
        await other.send(theirs, counted="7")
        response = await visitor.send(mine, counted="9")
    assert response.status_code == 409
    assert "The stock was 10, and is now 7:" in Document(response.text).text
    assert (await read(shop, product["id"]))["stock"] == 7


async def test_a_stock_take_that_is_sent_twice_is_no_conflict(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    form = stock_take(await stock_page(visitor, product), product)
    for _ in range(2):
        assert (await visitor.send(form, counted="11")).status_code == 303
    assert (await read(shop, product["id"]))["stock"] == 11


@pytest.mark.parametrize("counted", ["", "-1", "1.5", "ten", "2147483648", "9" * 30])
async def test_a_count_that_is_no_whole_number_is_named_and_kept(shop: Shop, visitor: Visitor, counted: str) -> None:
    product = await shop.create_product(stock=10)
    response = await visitor.send(stock_take(await stock_page(visitor, product), product), counted=counted)
    assert response.status_code == 400
    page = Document(response.text)
    assert "#counted" in page.links
    assert dict(stock_take(page, product).fields)["counted"] == counted
    assert (await read(shop, product["id"]))["stock"] == 10


async def test_without_inventory_a_stock_take_says_so_and_is_sent_again_safely(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    form = stock_take(await stock_page(visitor, product), product)
    async with dead(shop, "inventory"):
        page = await visitor.open(f"/desk/products/{product['id']}/stock")
        assert "The stock is unknown at the moment" in page.text
        # The merchant who saw no stock is shown it before their count replaces it.
        unseen = stock_take(page, product)
        response = await send_once(visitor, form, counted="12")
        assert response.status_code == 503
        page = Document(response.text)
        assert "We do not know yet whether this was done" in page.text
    response = await visitor.send(unseen, counted="11")
    assert response.status_code == 409
    assert "The stock was unknown, and is now 10:" in Document(response.text).text
    assert (await visitor.send(stock_take(page, product))).status_code == 303
    assert (await read(shop, product["id"]))["stock"] == 12


def delivery(page: Document, product: dict[str, Any]) -> Form:
    return page.form(f"/desk/products/{product['id']}/deliveries")


async def test_a_delivery_is_added_once_however_often_its_page_is_sent(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Delivered lamp", stock=10)
    form = delivery(await stock_page(visitor, product), product)
    twice = await asyncio.gather(visitor.send(form, quantity="1500"), visitor.send(form, quantity="1500"))
    again = await visitor.send(form, quantity="1500")
    assert [response.status_code for response in (*twice, again)] == [303] * 3
    page = await visitor.open(f"/desk/products/{product['id']}/stock")
    assert "A delivery of 1,500 was added to the stock of Delivered lamp." in page.text
    assert (await read(shop, product["id"]))["stock"] == 1510
    # Another page is another delivery.
    await visitor.send(delivery(page, product), quantity="1")
    now = await read(shop, product["id"])
    assert (now["stock"], now["name"], now["price"]) == (1511, product["name"], product["price"])


async def test_a_delivery_does_not_mind_sales_and_changes_meanwhile(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Busy lamp", stock=10)
    form = delivery(await stock_page(visitor, product), product)
    async with shop.new_visitor() as buyer:
        await put_into_basket(buyer, product, 2)
        await sent(buyer, await checkout_form(buyer, new_user()))
    await shop.change_product(product, name="Renamed lamp")
    assert (await visitor.send(form, quantity="5")).status_code == 303
    now = await read(shop, product["id"])
    assert (now["stock"], now["name"]) == (13, "Renamed lamp")


async def test_a_page_whose_delivery_was_added_adds_no_other_quantity(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    form = delivery(await stock_page(visitor, product), product)
    await visitor.send(form, quantity="5")
    response = await visitor.send(form, quantity="6")
    assert response.status_code == 400
    page = Document(response.text)
    assert "#quantity" in page.links
    assert (await read(shop, product["id"]))["stock"] == 15
    # The page that is shown then is that of another delivery.
    assert (await visitor.send(delivery(page, product))).status_code == 303
    assert (await read(shop, product["id"]))["stock"] == 21


@pytest.mark.parametrize("quantity", ["", "0", "-1", "1.5", "ten", "2147483648"])
async def test_a_delivery_that_is_no_whole_number_is_named_and_kept(
    shop: Shop, visitor: Visitor, quantity: str
) -> None:
    product = await shop.create_product(stock=10)
    response = await visitor.send(delivery(await stock_page(visitor, product), product), quantity=quantity)
    assert response.status_code == 400
    page = Document(response.text)
    assert "Please enter a whole number, 1 or more." in page.text
    assert dict(delivery(page, product).fields)["quantity"] == quantity
    assert (await read(shop, product["id"]))["stock"] == 10


async def test_a_delivery_without_a_known_outcome_is_sent_again_and_added_once(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    form = delivery(await stock_page(visitor, product), product)
    async with dead(shop, "inventory"):
        response = await send_once(visitor, form, quantity="5")
        assert response.status_code == 503
        page = Document(response.text)
        assert "We do not know yet whether this was done" in page.text
    for _ in range(2):
        assert (await visitor.send(delivery(page, product))).status_code == 303
    assert (await read(shop, product["id"]))["stock"] == 15


async def test_a_form_of_another_site_changes_no_stock(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(stock=10)
    page = await stock_page(visitor, product)
    for form in (form for form in page.forms if "/desk/products/" in form.action):
        fields = dict(form.filled(counted="99", quantity="99"))
        response: httpx.Response = await visitor.http.post(
            form.action, data=fields, headers={"origin": "https://evil.example"}
        )
        assert response.status_code == 403
    assert (await read(shop, product["id"]))["stock"] == 10
