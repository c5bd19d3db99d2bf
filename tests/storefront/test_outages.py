"""What a visitor sees while a service is dead. The process is killed, and stays away until the end of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.storefront.test_purchase import asked, checkout_form, new_user, put_into_basket
from tests.storefront.visitor import Document, Shop, Visitor
from tests.support.waiting import until


@asynccontextmanager
async def dead(shop: Shop, service: str) -> AsyncIterator[None]:
    """Kill a service, and start it again afterwards."""
    shop.stack.kill(service, restart=False)
    try:
        yield
    finally:
        shop.stack.restart(service)
        await shop.stack.wait_ready([service], seconds=120)


async def shows(visitor: Visitor, path: str, *texts: str) -> Document:
    """Wait until the page at the path has the texts; a cache or a circuit breaker may take a moment."""
    document: list[Document] = []

    async def has_texts() -> bool:
        document[:] = [Document((await visitor.get_once(path)).text)]
        return all(text in document[0].text for text in texts)

    await until(has_texts, what=lambda: f"{texts} at {path}, not {document[0].text}")
    return document[0]


async def recovered(visitor: Visitor, path: str, text: str) -> None:
    """Wait until the page is whole again: circuit breakers close a little later than the service is ready."""
    await shows(visitor, path, text)


async def test_without_inventory_the_catalogue_says_that_availability_is_unknown(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Unseen lamp")
    path = f"/products/{product['id']}"
    async with dead(shop, "inventory"):
        page = await shows(visitor, path, "Unseen lamp", "Availability unknown at the moment")
        assert page.form("/basket").method == "post"
        await shows(visitor, "/?q=unseen", "Unseen lamp", "Availability unknown at the moment")
    await recovered(visitor, path, "In stock")


async def test_without_orders_one_can_look_and_fill_a_basket_and_an_order_is_placed_once_it_is_back(
    shop: Shop, visitor: Visitor
) -> None:
    product, user = await shop.create_product(name="Patient clock", price="30.00"), new_user()
    async with dead(shop, "orders"):
        await put_into_basket(visitor, product)
        assert "Total £30.00" in (await visitor.open("/basket")).text
        response = await visitor.send(await checkout_form(visitor, user))
        assert response.headers["location"] == "/checkout/pending?wait=1"
        response = await visitor.get("/checkout/pending?wait=1")
        assert response.status_code == 202
        page = Document(response.text)
        assert "We do not know yet whether your order was placed" in page.text
        assert ("meta", {"http-equiv": "refresh", "content": "2; url=/checkout/pending"}) in page.elements
        # The same order, not another one.
        assert (await visitor.get("/checkout")).headers["location"] == "/checkout/pending"
        assert (await visitor.get_once("/orders?name=x")).status_code == 503
    response = await asked(visitor)
    [order] = await shop.orders_of(user)
    assert response.headers["location"] == f"/orders/{order['id']}?placed=1"
    assert (order["status"], order["total"]) == ("confirmed", "30.00")
    assert (await visitor.get("/checkout/pending")).headers["location"] == "/orders"
    assert "Your basket is empty." in (await visitor.open("/basket")).text


async def test_a_price_that_changes_while_the_outcome_is_unknown_must_be_confirmed_again(
    shop: Shop, visitor: Visitor
) -> None:
    product, user = await shop.create_product(name="Moving clock", price="30.00"), new_user()
    async with dead(shop, "orders"):
        await put_into_basket(visitor, product)
        await visitor.send(await checkout_form(visitor, user))
        await shop.change_product(product, price="31.00")
    response = await asked(visitor)
    assert response.status_code == 409
    assert "Moving clock: the price was £30.00, and is now £31.00." in Document(response.text).text
    assert await shop.orders_of(user) == []


async def test_a_visitor_can_stop_waiting_for_an_outcome(shop: Shop, visitor: Visitor) -> None:
    product, user = await shop.create_product(), new_user()
    async with dead(shop, "orders"):
        await put_into_basket(visitor, product)
        await visitor.send(await checkout_form(visitor, user))
        page = Document((await visitor.get("/checkout/pending?wait=1")).text)
        assert (await visitor.send(page.form("/checkout/pending"))).headers["location"] == "/orders"
    assert (await visitor.get("/checkout/pending")).headers["location"] == "/orders"
    assert await shop.orders_of(user) == []
    assert visitor.http.cookies.get("market_basket") is not None
    await recovered(visitor, f"/orders?name={user}", "There are no orders.")


async def test_without_products_the_basket_is_kept_and_the_page_says_what_works(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Kept vase", price="8.00")
    await put_into_basket(visitor, product)
    async with dead(shop, "products"):
        response = await visitor.get_once("/basket")
        assert response.status_code == 503
        text = Document(response.text).text
        assert "Your basket is kept" in text
        assert "Orders can still be read and cancelled" in text
        response = await visitor.get_once("/")
        assert response.status_code == 503
        assert "What may still work:" in Document(response.text).text
        assert (await visitor.get("/orders?name=nobody")).status_code == 200
    await recovered(visitor, "/basket", "Kept vase")
    assert "Total £8.00" in (await visitor.open("/basket")).text


async def test_without_the_gateway_there_is_a_page_and_the_basket_is_kept(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Brave vase")
    await put_into_basket(visitor, product)
    async with dead(shop, "graphql"):
        for path in ("/", "/basket", "/checkout", "/orders?name=x", f"/products/{product['id']}", "/sitemap.xml"):
            response = await visitor.get_once(path)
            assert (response.status_code, response.headers["content-type"]) == (503, "text/html; charset=utf-8"), path
            assert "Traceback" not in response.text
        assert "Your basket is kept" in Document((await visitor.get_once("/basket")).text).text
    await recovered(visitor, "/basket", "Brave vase")
