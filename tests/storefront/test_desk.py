"""The desk: who may enter, its navigation, its headers, its errors, and the table of products."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from tests.storefront.signed_in import Browser, SigningIn
from tests.storefront.visitor import Document, Form, Shop, Visitor


def section_links(response: httpx.Response) -> set[str]:
    """Return the links of a page that lead to the desk."""
    return {link for link in Document(response.text).links if link.startswith("/desk")}


async def test_in_open_mode_everybody_enters_the_desk_from_the_shop_and_sees_that_it_is_open(
    visitor: Visitor,
) -> None:
    assert "/desk" in (await visitor.open("/")).links
    page = await visitor.open("/desk")
    assert "Open mode: nobody signs in" in page.text
    assert "/desk/products" in page.links


async def test_robots_and_caches_leave_the_desk_out(visitor: Visitor) -> None:
    assert "Disallow: /desk\n" in (await visitor.get("/robots.txt")).text
    for path in ("/desk", "/desk/products"):
        response = await visitor.get(path)
        assert response.headers["x-robots-tag"] == "noindex"
        assert response.headers["cache-control"] == "private, no-store"


async def test_a_merchant_enters_the_desk_and_sees_what_merchants_may_use(browser: Browser) -> None:
    response = await browser.sign_in("/desk", "mia")
    assert response.headers["location"] == "/desk"
    response = await browser.follow(response)
    assert response.status_code == 200
    assert "/desk/products" in section_links(response)
    assert "/desk" in section_links(await browser.get("/"))


async def test_an_operator_enters_the_desk_but_not_the_pages_of_merchants(world: SigningIn, browser: Browser) -> None:
    response = await browser.follow(await browser.sign_in("/desk", "olga"))
    assert response.status_code == 200
    assert "/desk/products" not in section_links(response)
    calls = len(world.gateway.authorizations)
    response = await browser.get("/desk/products")
    assert (response.status_code, len(world.gateway.authorizations)) == (403, calls)
    assert "This page is for merchants of the shop." in Document(response.text).text


async def test_the_import_is_for_merchants(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in("/desk/import", "ann")
    assert (await browser.get("/desk/import")).status_code == 403
    token = Document((await browser.get("/")).text).form("/language").fields
    calls = len(world.gateway.authorizations)
    response = await browser.http.post(
        "/desk/import",
        data={**dict(token), "step": "read"},
        files={"file": ("a.csv", b"InvoiceNo")},
        headers={"origin": world.url},
    )
    assert (response.status_code, len(world.gateway.authorizations)) == (403, calls)
    assert "This page is for merchants of the shop." in Document(response.text).text


async def test_a_buyer_sees_who_may_enter_the_desk(browser: Browser) -> None:
    response = await browser.follow(await browser.sign_in("/desk", "ann"))
    assert response.status_code == 403
    page = Document(response.text)
    assert "This page is for merchants and operators of the shop." in page.text
    assert "You have signed in as ann" in page.text
    assert "/desk/products" not in page.links
    assert "/desk" not in section_links(await browser.get("/"))


async def test_somebody_who_has_not_signed_in_is_sent_to_sign_in(world: SigningIn, browser: Browser) -> None:
    for path in ("/desk", "/desk/products"):
        response = await browser.get(path)
        assert (response.status_code, response.headers["location"].partition("?")[0]) == (303, "/sign-in")
    assert world.gateway.authorizations == []


@pytest.mark.parametrize(("person", "status"), [(None, 401), ("ann", 403), ("olga", 403)])
async def test_forms_for_products_are_refused_from_everybody_but_merchants(
    world: SigningIn, browser: Browser, person: str | None, status: int
) -> None:
    if person is not None:
        await browser.sign_in("/desk", person)
    page = Document((await browser.get("/")).text)
    token = dict(page.form("/language").fields)["form_token"]
    calls = len(world.gateway.authorizations)
    path = f"/desk/products/{uuid4()}"
    for action in ("/desk/products", path, f"{path}/deletion", f"{path}/stock-take"):
        form = Form(action, "post", [("form_token", token), ("version", "1"), ("key", "a"), ("counted", "1")])
        assert (await browser.send(form, name="x", stock="1")).status_code == status
    assert len(world.gateway.authorizations) == calls


async def test_what_the_shop_refuses_is_the_page_that_says_who_may(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in("/desk", "mia")
    world.gateway.code = "FORBIDDEN"
    response = await browser.get("/desk/products")
    assert response.status_code == 403
    assert "This page is for merchants of the shop." in Document(response.text).text


async def test_an_error_is_a_page_of_the_desk(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in("/desk", "mia")
    world.gateway.code = "UNAVAILABLE"
    response = await browser.get("/desk/products?q=a")
    assert response.status_code == 503
    assert {"/desk", "/desk/products", "/desk/products?q=a"} <= set(Document(response.text).links)


async def test_the_table_shows_price_and_stock_finds_sorts_and_turns_pages(shop: Shop, visitor: Visitor) -> None:
    word = "Zanzibar"
    for i in range(21):
        await shop.create_product(name=f"{word} {i:02}", price=f"{i + 1}.00", stock=1000 + i)
    form = (await visitor.open("/desk/products")).form("/desk/products")
    page = Document((await visitor.send(form, q=word, sort="price")).text)
    assert "21 products" in page.text
    assert f"{word} 00 £1.00 1,000" in page.text
    assert f"{word} 20" not in page.text
    [next_path] = [link for link in page.links if "after=" in link]
    page = await visitor.open(next_path)
    assert f"{word} 20 £21.00 1,020" in page.text
    assert f"{word} 19" not in page.text
