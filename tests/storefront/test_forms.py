"""Forms of other sites, cookies, redirections and headers."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from market.storefront.desk import routes as desk
from market.storefront.pages.routes import ROUTES
from tests.storefront.signed_in import SigningIn
from tests.storefront.visitor import Document, Shop, Visitor
from tests.system.whole_shop import retried


async def form_fields(visitor: Visitor, shop: Shop) -> dict[str, str]:
    product = await shop.create_product()
    page = await visitor.open(f"/products/{product['id']}")
    return dict(page.form("/basket").fields) | {"action": "add"}


async def basket_of(visitor: Visitor) -> str | None:
    return visitor.http.cookies.get("market_basket")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://["},
        {"referer": "https://evil.example/page"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_a_form_that_another_site_sends_changes_nothing(
    shop: Shop, visitor: Visitor, headers: dict[str, str]
) -> None:
    fields = await form_fields(visitor, shop)
    response = await visitor.http.post("/basket", data=fields, headers=headers)
    assert (response.status_code, await basket_of(visitor)) == (403, None)
    assert "This is not permitted" in Document(response.text).text


async def test_a_form_of_another_session_changes_nothing(shop: Shop, visitor: Visitor) -> None:
    fields = await form_fields(visitor, shop)
    async with shop.new_visitor() as other:
        await other.open("/")
        response = await other.http.post("/basket", data=fields, headers={"origin": shop.url})
        assert (response.status_code, await basket_of(other)) == (403, None)
        fields.pop("form_token")
        response = await other.http.post("/basket", data=fields, headers={"origin": shop.url})
        assert (response.status_code, await basket_of(other)) == (403, None)


async def test_a_cookie_that_was_changed_is_as_good_as_none(shop: Shop, visitor: Visitor) -> None:
    fields = await form_fields(visitor, shop)
    await visitor.http.post("/basket", data=fields, headers={"origin": shop.url})
    basket = visitor.http.cookies["market_basket"]
    for forged in (f"x{basket}", basket[:-1], "x", "a.b.c", "ü", "x" * 5000, visitor.http.cookies["market_session"]):
        async with httpx.AsyncClient(base_url=shop.url, timeout=60) as http:
            response = await http.get("/basket", headers={"cookie": f"market_basket={forged}".encode()})
            assert response.status_code == 200
            assert "Your basket is empty." in Document(response.text).text


async def test_cookies_cannot_be_read_by_scripts_or_sent_by_other_sites(shop: Shop, visitor: Visitor) -> None:
    fields = await form_fields(visitor, shop)
    response = await visitor.http.post("/basket", data=fields, headers={"origin": shop.url})
    [cookie] = response.headers.get_list("set-cookie")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= attributes
    assert "secure" not in attributes  # This shop has no https.


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example", "javascript:alert(1)", ""],
)
async def test_the_language_switch_leads_to_no_other_host(visitor: Visitor, target: str) -> None:
    form = (await visitor.open("/")).form("/language")
    response = await visitor.send(form, ("language", "ru"), next=target)
    assert (response.status_code, response.headers["location"]) == (303, "/")


async def test_the_language_switch_of_a_page_that_only_a_form_shows_leads_to_a_page(
    shop: Shop, visitor: Visitor
) -> None:
    order = str(uuid4())
    token = (await form_fields(visitor, shop))["form_token"]
    for path, there in {
        f"/orders/{order}/cancellation": f"/orders/{order}",
        "/language": "/",
        "/basket": "/basket",
        "/basket?q=a": "/basket?q=a",
    }.items():
        data = {"form_token": "wrong" if path == "/language" else token}
        response = await visitor.http.post(path, data=data, headers={"origin": shop.url})
        assert response.status_code in (400, 403, 404), path
        assert ("next", there) in Document(response.text).form("/language").fields
    # An address that no page has.
    for path in ("/language", f"/orders/{order}/cancellation"):
        response = await visitor.get(path)
        assert response.status_code == 405
        assert ("next", path.rpartition("/")[0] or "/") in Document(response.text).form("/language").fields


def test_every_page_that_only_a_form_shows_is_below_one_with_an_address() -> None:
    routes = {*ROUTES, *desk.ROUTES}
    for route in routes:
        path = route.removeprefix("POST ")
        if route.startswith("POST ") and f"GET {path}" not in routes:
            assert f"GET {path.rpartition('/')[0] or '/'}" in routes, route


async def test_what_the_shop_does_not_permit_is_not_called_an_old_form(world: SigningIn) -> None:
    async with world.new_browser() as browser:
        await browser.sign_in()
        world.gateway.code = "FORBIDDEN"
        response = await browser.get("/orders")
    assert response.status_code == 403
    text = Document(response.text).text
    assert "The shop does not let you see or change this." in text
    assert "The form is too old" not in text


async def test_the_language_is_the_browsers_until_it_is_chosen(shop: Shop, visitor: Visitor) -> None:
    visitor.http.headers["accept-language"] = "de, ru;q=0.8, en;q=0.5"
    response = await visitor.get("/?q=a")
    assert response.headers["content-language"] == "ru"
    response = await visitor.send(Document(response.text).form("/language"), ("language", "en"))
    assert response.headers["location"] == "/?q=a"
    assert (await visitor.get("/")).headers["content-language"] == "en"


async def test_every_page_forbids_frames_and_foreign_scripts(visitor: Visitor) -> None:
    for path in ("/", "/basket", "/orders", "/nothing"):
        headers = (await visitor.get(path)).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
        assert headers["cache-control"] == "private, no-store"


async def test_a_basket_holds_fifty_products_and_no_more(shop: Shop, visitor: Visitor) -> None:
    fields = await form_fields(visitor, shop)
    for i in range(50):
        filled = {**fields, "product": str(uuid4()), "quantity": str(999_999 - i)}
        response = await visitor.http.post("/basket", data=filled, headers={"origin": shop.url})
        assert response.status_code == 303
    response = await retried(lambda: visitor.http.post("/basket", data=fields, headers={"origin": shop.url}), 503)
    assert response.status_code == 400
    page = Document(response.text)
    assert "The basket is full" in page.text
    assert page.text.count("This product is no longer sold.") == 50
    assert len(visitor.http.cookies["market_basket"]) < 3900


@pytest.mark.parametrize("charset", ["unicode_escape", "punycode", "utf-16"])
async def test_a_form_with_a_file_is_read_as_utf_8_only(visitor: Visitor, charset: str) -> None:
    body = '--b\r\ncontent-disposition: form-data; name="form_token"\r\n\r\n\\ud800\r\n--b--\r\n'
    headers = {"origin": visitor.url, "content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = await visitor.http.post("/desk/import", content=body, headers=headers)
    assert response.status_code == 400
    headers["content-type"] = "multipart/form-data; boundary=b; charset=UTF-8"
    assert (await visitor.http.post("/desk/import", content=body, headers=headers)).status_code == 403


async def test_wrong_input_never_ends_in_an_internal_error(shop: Shop, visitor: Visitor) -> None:
    token = (await form_fields(visitor, shop))["form_token"]
    wrong = ["", "x", "-1", "1e9", "\x00", "'\"<>", "🫖" * 300, "1:2:3", "9" * 30, str(uuid4())]
    for path in ("/basket", "/checkout", "/checkout/pending", f"/orders/{uuid4()}/cancellation", "/language"):
        for value in wrong:
            names = ("product", "quantity", "action", "line", "key", "currency", "name", "email", "next", "language")
            fields = {**dict.fromkeys(names, value), "form_token": token}
            response = await visitor.http.post(path, data=fields, headers={"origin": shop.url})
            assert response.status_code != 500, (path, value, response.text)
            response = await visitor.http.post(
                path, content=value.encode(), headers={"origin": shop.url, "content-type": "text/plain"}
            )
            assert response.status_code in (403, 415), (path, value)
    for value in wrong:
        for path in ("/", "/suggestions", "/orders", "/products/x", "/checkout/pending"):
            parameters = {"q": value, "sort": value, "after": value, "name": value, "placed": value}
            response = await visitor.http.get(path, params=parameters)
            assert response.status_code != 500, (path, value)
