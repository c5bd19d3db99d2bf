"""The desk in a real browser, with and without JavaScript: create, change, two editors at once, stock, orders."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.storefront.test_browser import MAIN, fill
from tests.storefront.test_desk_orders import place_order
from tests.storefront.test_desk_products import found, read
from tests.storefront.visitor import Shop
from tests.support.browser import CHROMIUM, Tab, tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
with_and_without_script = pytest.mark.parametrize("has_script", [True, False], ids=["JavaScript", "no JavaScript"])


async def prepare(page: Tab, *, has_script: bool) -> None:
    await page.call("Emulation.setScriptExecutionDisabled", value=not has_script)


async def go(page: Tab, url: str, selector: str, *, has_script: bool) -> None:
    """Open a page, and wait until it is complete, its script has run, and the element is there."""
    await prepare(page, has_script=has_script)
    await page.open(url)
    await page.until(f"location.href === {json.dumps(url)} && {shown(selector, has_script=has_script)}")


def shown(selector: str, *, has_script: bool) -> str:
    return (
        "document.readyState === 'complete' && "
        f"document.documentElement.classList.contains('script') === {json.dumps(has_script)} && "
        f"document.querySelector({json.dumps(selector)}) !== null"
    )


async def press(page: Tab, selector: str, *, text: str, times: int = 1) -> None:
    """Press a button, and wait until the content of the page that follows has the text."""
    button = f"document.querySelector({json.dumps(selector)})"
    await page.evaluate(f"(() => {{ const button = {button}; {'button.click();' * times} }})()")
    await page.until(f"document.readyState === 'complete' && {MAIN}.includes({json.dumps(text)})")


@with_and_without_script
async def test_a_product_is_created_once_and_changed(shop: Shop, tmp_path: Path, has_script: bool) -> None:
    name = f"Browser lamp {uuid4().hex}"
    async with tab(tmp_path) as page:
        await go(page, f"{shop.url}/desk/products/new", "#product", has_script=has_script)
        await fill(page, name=name, price="12.50", currency="GBP", stock="4", image_url="/images/teapot.svg")
        await press(page, "#product button", text=f"{name} was created.", times=2)
        [product] = await found(shop, name)
        path = f"/desk/products/{product['id']}"
        assert await page.evaluate("location.pathname") == path
        assert await page.evaluate("document.getElementById('preview').getAttribute('src')") == "/images/teapot.svg"
        await fill(page, name=f"{name} 2", price="1")
        await press(page, "#product button", text=f"{name} 2 was changed.")
        now = await read(shop, product["id"])
        assert (now["name"], now["price"], now["stock"]) == (f"{name} 2", "1.00", 4)


async def test_a_mistake_has_the_focus_and_leads_to_its_field(shop: Shop, tmp_path: Path) -> None:
    async with tab(tmp_path) as page:
        await go(page, f"{shop.url}/desk/products/new", "#product", has_script=False)
        await fill(page, name="x" * 10, price="cheap", currency="GBP")
        await press(page, "#product button", text="Nothing was saved. Please check:")
        await page.until("document.activeElement.matches('.box.bad')")
        await page.evaluate("document.querySelector('.box a[href=\"#price\"]').click()")
        await page.until("document.activeElement.id === 'price'")
        assert await page.evaluate("document.getElementById('price').value") == "cheap"


@with_and_without_script
async def test_two_editors_in_two_browsers_lose_nothing(shop: Shop, tmp_path: Path, has_script: bool) -> None:
    product = await shop.create_product(name="Shared lamp", description="clay", price="10.00")
    url = f"{shop.url}/desk/products/{product['id']}"
    async with tab(tmp_path / "mine") as mine, tab(tmp_path / "theirs") as theirs:
        await go(mine, url, "#product", has_script=has_script)
        await go(theirs, url, "#product", has_script=has_script)
        await fill(theirs, name="Their lamp", price="11.00")
        await press(theirs, "#product button", text="Their lamp was changed.")
        await fill(mine, name="My lamp", description="glass")
        await press(mine, "#product button", text="Somebody else has changed this product since you opened it.")
        assert (await read(shop, product["id"]))["name"] == "Their lamp"
        for choice in ("choice_name'][value='mine", "choice_description'][value='mine"):
            await mine.evaluate(f"document.querySelector(\"[name='{choice}']\").click()")
        await press(mine, "form[action^='/desk/products/'] button", text="My lamp was changed.")
    now = await read(shop, product["id"])
    assert (now["name"], now["description"], now["price"]) == ("My lamp", "glass", "11.00")


@with_and_without_script
async def test_a_stock_take_sets_and_a_delivery_adds_once(shop: Shop, tmp_path: Path, has_script: bool) -> None:
    product = await shop.create_product(name="Stocked lamp", stock=10)
    async with tab(tmp_path) as page:
        await go(page, f"{shop.url}/desk/products/{product['id']}/stock", "#counted", has_script=has_script)
        await fill(page, counted="7")
        await press(page, "form[action$='/stock-take'] button", text="The stock of Stocked lamp is 7.")
        assert (await read(shop, product["id"]))["stock"] == 7
        await fill(page, quantity="5")
        await press(page, "form[action$='/deliveries'] button", text="A delivery of 5 was added", times=2)
    assert (await read(shop, product["id"]))["stock"] == 12


@with_and_without_script
async def test_an_order_is_found_by_a_filter_and_cancelled(shop: Shop, tmp_path: Path, has_script: bool) -> None:
    product = await shop.create_product(name="Copper kettle", stock=5)
    user = f"browser {uuid4()}"
    order = (await place_order(shop, user, product, 2)).json()
    path = f"/desk/orders/{order['id']}"
    async with tab(tmp_path) as page:
        await go(page, f"{shop.url}/desk/orders", "#filter-user", has_script=has_script)
        await fill(page, **{"filter-status": "confirmed", "filter-user": user})
        await press(page, "form.filters button", text="1 order")
        await press(page, f"main a[href='{path}']", text="What happened when")
        await press(page, f"main a[href='{path}/cancellation']", text="Cancel the order?")
        await page.until(f"location.pathname === {json.dumps(path + '/cancellation')}")
        await press(page, f"form[action='{path}/cancellation'] button", text="The order was cancelled.", times=2)
        assert await page.evaluate("location.pathname") == path
    url = f"{shop.stack.urls['orders']}/api/order/{order['id']}"
    assert (await shop.http.get(url)).json()["status"] == "cancelled"
    assert (await read(shop, product["id"]))["stock"] == 5


async def test_no_page_of_the_desk_scrolls_sideways_or_breaks_the_policy(shop: Shop, tmp_path: Path) -> None:
    product = await shop.create_product(name="W" * 100, image_url="/images/teapot.svg", price="99999999.99")
    path = f"/desk/products/{product['id']}"
    async with tab(tmp_path) as page:
        await page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
        for path_of_page in (
            "/desk",
            "/desk/products",
            "/desk/products/new",
            path,
            f"{path}/stock",
            f"{path}/deletion",
        ):
            await go(page, f"{shop.url}{path_of_page}", "h1", has_script=True)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320, path_of_page
        assert {url for url in page.requests if not url.startswith(shop.url)} <= {"about:blank"}
