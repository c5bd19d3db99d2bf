"""The products of the desk: create, change, delete; two editors at once; what is sent twice, or has no outcome."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from market.storefront.desk.product_form import FIELDS
from tests.storefront.test_outages import dead
from tests.storefront.visitor import Document, Form, Shop, Visitor
from tests.support.waiting import until
from tests.system.whole_shop import retried


def product_values(**values: str) -> dict[str, str]:
    return {"name": f"Desk lamp {uuid4().hex}", "price": "19.90", "currency": "GBP", "stock": "5", **values}


async def read(shop: Shop, product_id: str) -> dict[str, Any]:
    """Return the product with its stock, as REST has it, once the stock is known."""
    url = f"{shop.stack.urls['products']}/api/product/{product_id}"

    async def known() -> dict[str, Any] | None:
        response = await retried(lambda: shop.http.get(url, params={"stock": "true"}), 503)
        product = dict(response.raise_for_status().json())
        return None if product["stock"] is None else product

    return await until(known, what="a known stock")


async def found(shop: Shop, name: str) -> list[dict[str, Any]]:
    """Return the products with the name."""
    url = f"{shop.stack.urls['products']}/api/product"
    response = await retried(lambda: shop.http.get(url, params={"q": f'"{name}"'}), 503)
    return [item for item in response.raise_for_status().json()["items"] if item["name"] == name]


async def edit_form(visitor: Visitor, product: dict[str, Any]) -> Form:
    path = f"/desk/products/{product['id']}"
    return (await visitor.open(path)).form(path)


async def send_once(visitor: Visitor, form: Form, **values: str) -> httpx.Response:
    """Return the response to the form, also if the outcome is not known."""
    headers = {"origin": visitor.url}
    return await visitor.http.post(form.action, data=dict(form.filled(**values)), headers=headers)


async def test_a_merchant_creates_a_product_and_sees_one_notice_of_it(shop: Shop, visitor: Visitor) -> None:
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    values = product_values(description="First line\r\nsecond line", image_url="/images/teapot.svg", price="7,5")
    response = await visitor.send(form, **values)
    assert response.status_code == 303
    path = response.headers["location"]
    page = await visitor.open(path)
    assert f"{values['name']} was created." in page.text
    assert "was created" not in (await visitor.open(path)).text
    product = await read(shop, path.rpartition("/")[2])
    assert {name: product[name] for name in ("name", "description", "price", "currency", "image_url", "stock")} == {
        "name": values["name"],
        "description": "First line\nsecond line",
        "price": "7.50",
        "currency": "GBP",
        "image_url": "/images/teapot.svg",
        "stock": 5,
    }


async def test_a_page_that_is_sent_several_times_creates_one_product(shop: Shop, visitor: Visitor) -> None:
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    values = product_values()
    twice = await asyncio.gather(visitor.send(form, **values), visitor.send(form, **values))
    again = await visitor.send(form, **values)
    [product] = await found(shop, values["name"])
    assert {r.headers["location"] for r in (*twice, again)} == {f"/desk/products/{product['id']}"}


async def test_a_page_that_has_created_a_product_asks_before_it_creates_another(shop: Shop, visitor: Visitor) -> None:
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    first, second = product_values(), product_values()
    await visitor.send(form, **first)
    response = await visitor.send(form, **second)
    assert response.status_code == 409
    page = Document(response.text)
    assert "This page has already created a product" in page.text
    assert await found(shop, second["name"]) == []
    await visitor.send(page.form("/desk/products"))
    assert len(await found(shop, second["name"])) == 1


async def test_wrong_fields_are_named_next_to_them_and_what_was_typed_is_kept(shop: Shop, visitor: Visitor) -> None:
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    wrong = {"name": "", "price": "1.2345", "currency": "GBP", "image_url": "http://plain.example/a.png", "stock": "3"}
    response = await visitor.send(form, description="kept text", **wrong)
    assert response.status_code == 400
    page = Document(response.text)
    described = {
        attributes["name"]: attributes.get("aria-describedby", "").split()
        for tag, attributes in page.elements
        if tag in ("input", "select", "textarea") and attributes.get("aria-invalid") == "true"
    }
    assert described == {
        "name": ["name-error"],
        "price": ["price-error"],
        "image_url": ["image_url-explanation", "image_url-error"],
    }
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {error for errors in described.values() for error in errors} <= ids
    assert {"#name", "#price", "#image_url"} <= set(page.links)
    kept = dict(page.form("/desk/products").fields)
    assert kept["price"] == "1.2345"
    assert kept["description"] == "kept text"
    response = await visitor.send(page.form("/desk/products"), stock="-1")
    assert "Please enter a whole number, 0 or more." in Document(response.text).text


async def test_a_picture_is_shown_before_anything_is_saved(shop: Shop, visitor: Visitor) -> None:
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    values = product_values(image_url="/images/teapot.svg")
    page = Document((await visitor.send(form, ("action", "preview"), **values)).text)
    [picture] = [attributes for tag, attributes in page.elements if tag == "img"]
    assert (picture["id"], picture["src"]) == ("preview", "/images/teapot.svg")
    assert dict(page.form("/desk/products").fields)["name"] == values["name"]
    assert await found(shop, values["name"]) == []


async def test_a_change_is_saved_and_leaves_the_stock_alone(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Old name", stock=7)
    response = await visitor.send(await edit_form(visitor, product), name="New name", price="20")
    assert response.headers["location"] == f"/desk/products/{product['id']}"
    now = await read(shop, product["id"])
    assert (now["name"], now["price"], now["stock"]) == ("New name", "20.00", 7)


@pytest.mark.parametrize(
    ("price", "code", "shown"), [("1.250", "KWD", "1.250"), ("100.00", "JPY", "100"), ("2.50", "GBP", "2.50")]
)
async def test_a_price_is_shown_and_kept_with_the_decimals_of_its_currency(
    shop: Shop, visitor: Visitor, price: str, code: str, shown: str
) -> None:
    product = await shop.create_product(price=price, currency=code)
    form = await edit_form(visitor, product)
    assert (dict(form.fields)["price"], dict(form.fields)["currency"]) == (shown, code)
    response = await visitor.send(form)
    assert response.status_code == 303
    assert (await read(shop, product["id"]))["price"] == price


async def test_a_long_description_and_a_name_with_markup_are_shown_and_kept_as_they_are(
    shop: Shop, visitor: Visitor
) -> None:
    name, description = "<script>alert(1)</script> & \"'", "\n<b>é</b>" + "ж" * 9_991
    product = await shop.create_product(name=name, description=description)
    path = f"/desk/products/{product['id']}"
    for page_path in (path, f"{path}/stock", f"{path}/deletion", "/desk/products"):
        assert "<script>alert" not in (await visitor.get(page_path)).text
    form = await edit_form(visitor, product)
    assert dict(form.fields)["description"] == description
    # Browsers send line ends as CR LF.
    response = await visitor.send(form, description=description.replace("\n", "\r\n"), price="21.00")
    assert response.status_code == 303
    now = await read(shop, product["id"])
    assert (now["name"], now["description"], now["price"]) == (name, description, "21.00")


async def test_two_editors_are_shown_the_difference_and_choose(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Vase", description="clay", price="10.00")
    async with shop.new_visitor() as other:
        mine, theirs = await edit_form(visitor, product), await edit_form(other, product)
        await other.send(theirs, name="Their vase", description="clay", price="11.00")
        response = await visitor.send(mine, name="My vase", description="glass")
        assert response.status_code == 409
        page = Document(response.text)
        assert "Somebody else has changed this product since you opened it." in page.text
        assert "My value My vase The other editor’s value Their vase" in page.text
        radios = {
            (a["name"], a["value"]): "checked" in a
            for tag, a in page.elements
            if tag == "input" and a.get("type") == "radio"
        }
        # What I have not touched is the other's, unless I choose mine. The rest I must choose.
        assert radios == {
            ("choice_name", "mine"): False,
            ("choice_name", "theirs"): False,
            ("choice_description", "mine"): False,
            ("choice_description", "theirs"): False,
            ("choice_price", "mine"): False,
            ("choice_price", "theirs"): True,
        }
        assert (await read(shop, product["id"]))["name"] == "Their vase"
        form = page.form(f"/desk/products/{product['id']}")
        form.fields = [(name, value) for name, value in form.fields if not name.startswith("choice_")]
        # Without a choice, nothing is saved.
        response = await visitor.send(form, choice_name="mine", choice_description="", choice_price="theirs")
        assert response.status_code == 409
        assert "Please choose a value for each of these fields." in Document(response.text).text
        assert (await read(shop, product["id"]))["name"] == "Their vase"
        response = await visitor.send(form, choice_name="theirs", choice_description="mine", choice_price="theirs")
        assert response.status_code == 303
        now = await read(shop, product["id"])
        assert (now["name"], now["description"], now["price"]) == ("Their vase", "glass", "11.00")


async def test_a_third_change_during_the_choice_is_shown_as_well(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Jug", price="10.00")
    mine = await edit_form(visitor, product)
    await shop.change_product(product, name="Second jug")
    page = Document((await visitor.send(mine, name="My jug")).text)
    await shop.change_product(product, name="Third jug")
    form = page.form(f"/desk/products/{product['id']}")
    form.fields = [(name, value) for name, value in form.fields if not name.startswith("choice_")]
    response = await visitor.send(form, choice_name="mine")
    assert response.status_code == 409
    assert "My value My jug The other editor’s value Third jug" in Document(response.text).text
    assert (await read(shop, product["id"]))["name"] == "Third jug"


async def test_a_change_that_is_sent_twice_is_no_conflict(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Cup")
    form = await edit_form(visitor, product)
    for _ in range(2):
        response = await visitor.send(form, name="Better cup")
        assert (response.status_code, response.headers["location"]) == (303, f"/desk/products/{product['id']}")


async def test_a_product_that_somebody_has_deleted_is_not_changed_and_nothing_typed_is_lost(
    shop: Shop, visitor: Visitor
) -> None:
    product = await shop.create_product()
    form = await edit_form(visitor, product)
    url = f"{shop.stack.urls['products']}/api/product/{product['id']}"
    await retried(lambda: shop.http.delete(url), 503)
    response = await visitor.send(form, name="Typed in vain")
    assert response.status_code == 404
    assert "Typed in vain" in Document(response.text).text


async def test_a_product_is_deleted_after_a_page_that_says_what_becomes_of_orders(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Short-lived lamp")
    path = f"/desk/products/{product['id']}/deletion"
    page = await visitor.open(path)
    assert "Orders that have been placed stay as they are" in page.text
    response = await visitor.send(page.form(path))
    assert response.headers["location"] == "/desk/products"
    assert "Short-lived lamp was deleted." in (await visitor.open("/desk/products")).text
    response = await visitor.send(page.form(path))
    assert response.headers["location"] == "/desk/products"
    assert "Short-lived lamp has been deleted already." in (await visitor.open("/desk/products")).text
    assert (await visitor.get(f"/products/{product['id']}")).status_code == 404


async def test_a_product_that_somebody_has_just_changed_is_not_deleted_without_asking(
    shop: Shop, visitor: Visitor
) -> None:
    product = await shop.create_product(name="Wanted lamp", price="10.00")
    path = f"/desk/products/{product['id']}/deletion"
    page = await visitor.open(path)
    await shop.change_product(product, price="12.00")
    response = await visitor.send(page.form(path))
    assert response.status_code == 409
    page = Document(response.text)
    assert "10.00 → 12.00" in page.text
    assert (await read(shop, product["id"]))["price"] == "12.00"
    assert (await visitor.send(page.form(path))).status_code == 303
    assert (await visitor.get(f"/products/{product['id']}")).status_code == 404


async def test_a_change_without_a_known_outcome_is_sent_again_safely(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Patient lamp", description="line\nline")
    form = await edit_form(visitor, product)
    path = f"/desk/products/{product['id']}"
    async with dead(shop, "products"):
        response = await send_once(visitor, form, name="Changed lamp", description="one\r\ntwo")
        assert response.status_code == 503
        page = Document(response.text)
        assert "We do not know yet whether this was done" in page.text
        assert path in page.links
    response = await visitor.send(page.form(path))
    assert response.headers["location"] == path
    now = await read(shop, product["id"])
    assert (now["name"], now["description"]) == ("Changed lamp", "one\ntwo")


async def test_without_inventory_products_are_shown_with_an_unknown_stock(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name=f"Unseen {uuid4().hex}", stock=4)
    form = (await visitor.open("/desk/products/new")).form("/desk/products")
    values = product_values()
    async with dead(shop, "inventory"):
        page = await visitor.open(f"/desk/products?q={product['name'].partition(' ')[2]}")
        assert f"{product['name']} £19.90 unknown" in page.text
        assert "Stock: unknown" in (await visitor.open(f"/desk/products/{product['id']}")).text
        response = await send_once(visitor, form, **values)
        assert response.status_code == 503
        again = Document(response.text).form("/desk/products")
    await visitor.send(again)
    await visitor.send(again)
    assert len(await found(shop, values["name"])) == 1


async def test_a_form_of_another_site_or_session_changes_no_product(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Guarded lamp")
    path = f"/desk/products/{product['id']}"
    pages = [("/desk/products/new", "/desk/products"), (path, path), (f"{path}/deletion", f"{path}/deletion")]
    async with shop.new_visitor() as other:
        await other.open("/")
        for page_path, action in pages:
            fields = dict((await visitor.open(page_path)).form(action).filled(**product_values(name="Forged")))
            for sender, origin in ((visitor, "https://evil.example"), (other, shop.url)):
                response = await sender.http.post(action, data=fields, headers={"origin": origin})
                assert response.status_code == 403, (action, origin)
    assert (await read(shop, product["id"]))["name"] == "Guarded lamp"
    assert await found(shop, "Forged") == []


async def test_a_notice_of_another_session_is_not_shown(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product()
    await visitor.send(await edit_form(visitor, product), name="Said once")
    notice = visitor.http.cookies["market_notice"]
    async with shop.new_visitor() as other:
        await other.open("/desk")
        for value in (notice, f"x{notice}", "x"):
            other.http.cookies.set("market_notice", value, domain="127.0.0.1")
            assert "was changed" not in (await other.open("/desk")).text
    assert "Said once was changed." in (await visitor.open("/desk")).text


async def test_wrong_input_never_ends_in_an_internal_error(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product()
    path = f"/desk/products/{product['id']}"
    names = (*FIELDS, "stock", "key", "version", "action", "seen_name", "seen_price")
    token = dict((await visitor.open("/desk/products/new")).form("/desk/products").fields)["form_token"]
    paths = ("/desk/products", path, f"{path}/deletion", "/desk/products/x", f"/desk/products/{uuid4()}/deletion")
    for action in paths:
        for value in ("", "x", "-1", "1e9", "sNaN", "\x00", "'\"<>", "🫖" * 300, "9" * 30, str(uuid4())):
            for version in (value, "7"):
                fields = {**dict.fromkeys(names, value), "version": version, "choice_name": value, "mine_name": value}
                response = await visitor.http.post(
                    action, data={**fields, "form_token": token}, headers={"origin": shop.url}
                )
                assert response.status_code < 500, (action, value, response.text)
    for value in ("", "x", "\x00", "🫖" * 300):
        response = await visitor.http.get("/desk/products", params={"q": value, "sort": value, "after": value})
        assert response.status_code in (200, 400), value
