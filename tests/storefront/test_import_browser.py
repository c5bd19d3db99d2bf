"""The import of a file in a browser: it continues automatically, also after an outage, and its pages are accessible."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storefront.accessibility import set_screen
from tests.storefront.importing import PATH, codes, new_word, products_with, retail
from tests.storefront.test_accessibility import barriers
from tests.storefront.test_browser import MAIN, go, shown
from tests.storefront.test_outages import dead
from tests.storefront.visitor import Shop
from tests.support.browser import CHROMIUM, Tab, tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Tab]:
    async with tab(tmp_path) as page:
        yield page


# Lets the next step of the page wait, so that the page does not change while it is looked at.
HOLD = """(() => {
  const send = window.fetch;
  window.fetch = async (...request) => {
    window.held = true;
    while (!window.mayGoOn) await new Promise((resolve) => setTimeout(resolve, 50));
    return send(...request);
  };
})()"""


async def choose_file(page: Tab, data: bytes) -> None:
    """Put a file into the form, as a visitor does who chooses one."""
    await page.evaluate(
        "(() => { const files = new DataTransfer();"
        f"files.items.add(new File([{json.dumps(data.decode())}], 'products.csv', {{type: 'text/csv'}}));"
        "document.getElementById('file').files = files.files })()"
    )


def click(step: str) -> str:
    return f"document.querySelector('button[name=step][value={json.dumps(step)}]').click()"


async def test_an_import_continues_automatically_after_an_outage_and_its_pages_are_accessible(
    shop: Shop, page: Tab
) -> None:
    word, count = new_word(), 12
    existing = {"description": f"{word} 003. Stock code {word.upper()}003.", "price": "0.50"}
    await shop.create_product(name=f"{word} old", **existing)
    found: list[str] = []

    async def look(name: str) -> None:
        found.extend(f"{name}, {text}" for text in await barriers(page))
        await set_screen(page)

    await go(page, f"{shop.url}{PATH}", "#file")
    await look("the form")
    await choose_file(page, retail(*codes(word, count), f"{word};{word};many;1"))
    await page.evaluate(click("read"))
    await page.until(shown("button[value=start]"))
    text = await page.evaluate(MAIN)
    assert "Start: 12 products" in text
    assert f"Product name: {word} old → {word} 003" in text
    await look("the dry run")
    async with dead(shop, "products"):
        await page.evaluate(click("start"))
        await page.until(shown("form[data-step=run]"))
        await page.until(f"{MAIN}.includes('The shop does not respond. Nothing is lost')")
        await page.evaluate(HOLD)
        await page.until("window.held")
        await look("the progress")
        await page.evaluate("window.mayGoOn = window.untouched = true")
    # Nobody presses a button.
    await page.until(f"{MAIN}.includes('The import is done.')")
    assert await page.evaluate("window.untouched")
    assert await page.evaluate("document.activeElement.id") == "import-title"
    await look("the result")
    assert not found, "\n".join(found)
    assert page.complaints == []
    assert [(p["name"], p["price"]) for p in await products_with(shop, word)] == [
        (f"{word} {i:03}", f"{i + 1}.50") for i in range(count)
    ]


async def test_a_file_that_is_wrong_is_explained_on_the_form(shop: Shop, page: Tab) -> None:
    await go(page, f"{shop.url}{PATH}", "#file")
    await choose_file(page, b"id,title\n1,Rose\n")
    await page.evaluate(click("read"))
    await page.until(shown("[role=alert]"))
    assert "products.csv, line 1, column InvoiceNo: is missing" in await page.evaluate(MAIN)
    assert await barriers(page) == []
