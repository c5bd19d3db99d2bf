"""The purchase in a real browser: by mouse, by keyboard, on a narrow screen, and when a service dies meanwhile."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storefront.test_outages import dead
from tests.storefront.test_purchase import new_user
from tests.storefront.visitor import Shop
from tests.support.browser import CHROMIUM, Tab, tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

MAIN = "document.getElementById('main').innerText"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Tab]:
    async with tab(tmp_path) as page:
        yield page


async def go(page: Tab, url: str, selector: str) -> None:
    """Open a page, and wait until its script has run and the element is there."""
    await page.open(url)
    await page.until(shown(selector))


def shown(selector: str) -> str:
    return (
        f"document.readyState === 'complete' && document.documentElement.classList.contains('script') "
        f"&& document.querySelector({json.dumps(selector)}) !== null"
    )


async def fill(page: Tab, **values: str) -> None:
    for name, value in values.items():
        await page.evaluate(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")


async def put_into_basket(page: Tab, shop: Shop, **fields: object) -> dict[str, object]:
    product = await shop.create_product(**fields)
    await go(page, f"{shop.url}/products/{product['id']}", "button[value=add]")
    await page.evaluate("document.querySelector('button[value=add]').click()")
    await page.until("location.pathname === '/basket' && " + shown(".line"))
    return product


async def test_a_quantity_changes_the_total_without_a_reload(shop: Shop, page: Tab) -> None:
    await put_into_basket(page, shop, price="3.00")
    await page.evaluate("window.untouched = true")
    await page.evaluate(
        "(() => { const field = document.querySelector('.line .quantity'); field.value = 4; field.focus();"
        "field.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    await page.until(f"{MAIN}.includes('£12.00')")
    assert await page.evaluate("window.untouched")
    assert await page.evaluate("document.activeElement.className") == "quantity"
    assert await page.evaluate("document.getElementById('basket-count').textContent") == "4"


async def test_a_double_click_and_the_back_button_make_one_order(shop: Shop, page: Tab) -> None:
    user = new_user()
    await put_into_basket(page, shop)
    await go(page, f"{shop.url}/checkout", "#name")
    await fill(page, name=user, email=f"{user}@example.test")
    await page.evaluate(
        "(() => { const button = document.querySelector('main form button'); button.click(); button.click() })()"
    )
    await page.until("location.pathname.startsWith('/orders/') && " + shown("h1"))
    address = await page.evaluate("location.pathname")
    await page.evaluate("history.back()")
    await page.until("!location.pathname.startsWith('/orders/') && " + shown("h1"))
    if await page.evaluate("document.querySelector('form[action=\"/checkout\"] button') !== null"):
        # The browser has kept the page.
        await page.evaluate("document.querySelector('form[action=\"/checkout\"] button').click()")
        await page.until(f"location.pathname === {json.dumps(address)}")
    [order] = await shop.orders_of(user)
    assert address == f"/orders/{order['id']}"


async def test_a_purchase_by_keyboard_alone(shop: Shop, page: Tab) -> None:
    user = new_user()
    product = await shop.create_product(name=f"Keyboard {user}")

    async def key(name: str, text: str = "") -> None:
        code = {"Tab": 9, "Enter": 13}.get(name, 0)
        values = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        await page.call("Input.dispatchKeyEvent", type="keyDown", **values, **({"text": text} if text else {}))
        await page.call("Input.dispatchKeyEvent", type="keyUp", **values)

    async def tab_to(selector: str) -> None:
        for _ in range(60):
            if await page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            await key("Tab")
        raise AssertionError(f"{selector} is not reached by the key Tab")

    await go(page, f"{shop.url}/?q=keyboard", ".card-link")
    await key("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await tab_to(f".card-link[href='/products/{product['id']}']")
    await key("Enter", "\r")
    await page.until(shown("button[value=add]"))
    await tab_to("button[value=add]")
    await key("Enter", "\r")
    await page.until("location.pathname === '/basket' && " + shown("a[href='/checkout']"))
    await tab_to("a[href='/checkout']")
    await key("Enter", "\r")
    await page.until(shown("#name"))
    await tab_to("#name")
    await page.call("Input.insertText", text=user)
    await tab_to("#email")
    await page.call("Input.insertText", text=f"{user}@example.test")
    await tab_to("form[action='/checkout'] button")
    await key("Enter", "\r")
    await page.until("location.pathname.startsWith('/orders/') && " + shown("h1"))
    assert [order["status"] for order in await shop.orders_of(user)] == ["confirmed"]


async def test_a_service_dies_in_the_middle_of_a_purchase_and_there_is_one_order(shop: Shop, page: Tab) -> None:
    user = new_user()
    await put_into_basket(page, shop)
    await go(page, f"{shop.url}/checkout", "#name")
    await fill(page, name=user, email=f"{user}@example.test")
    async with dead(shop, "orders"):
        await page.evaluate("document.querySelector('form[action=\"/checkout\"] button').click()")
        await page.until("location.pathname === '/checkout/pending' && " + shown("[data-pending]"))
    # The page finds out without the visitor.
    await page.until("location.pathname.startsWith('/orders/') && " + shown("h1"))
    assert "Thank you for your order" in await page.evaluate(MAIN)
    assert [order["status"] for order in await shop.orders_of(user)] == ["confirmed"]


@pytest.mark.parametrize("width", [320, 640])
async def test_no_page_scrolls_sideways_on_a_narrow_screen(shop: Shop, page: Tab, width: int) -> None:
    await page.call("Emulation.setDeviceMetricsOverride", width=width, height=640, deviceScaleFactor=1, mobile=True)
    product = await put_into_basket(page, shop, name="A" * 60, image_url="/images/teapot.svg")
    for path in ("/", f"/products/{product['id']}", "/basket", "/checkout", "/orders?name=nobody", "/nothing"):
        await go(page, f"{shop.url}{path}", "h1")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, path


async def test_no_request_goes_to_another_host_and_no_policy_is_broken(shop: Shop, page: Tab) -> None:
    await page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.broken = [];"
        "addEventListener('securitypolicyviolation', (e) => window.broken.push(e.violatedDirective))",
    )
    product = await shop.create_product(image_url="/images/teapot.svg")
    for path in ("/", f"/products/{product['id']}", "/basket", "/orders"):
        await go(page, f"{shop.url}{path}", "h1")
        assert await page.evaluate("window.broken") == []
    assert {url for url in page.requests if not url.startswith(shop.url)} <= {"about:blank"}


async def test_suggestions_appear_while_one_types(shop: Shop, page: Tab) -> None:
    await shop.create_product(name="Velvet xylophone")
    await go(page, shop.url, "#q")
    await page.evaluate("document.getElementById('q').focus()")
    await page.call("Input.insertText", text="xylo")
    await page.until("document.querySelector('#suggestions option')?.value === 'Velvet xylophone'")
