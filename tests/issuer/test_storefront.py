"""People sign in to the storefront, in a real browser, at the issuer of the shop: a buyer, and then a merchant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.issuer.signed_in_shop import SignedInShop
from tests.support.browser import CHROMIUM, Tab, tab
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(900),
]

PERSON = "document.querySelector('form.person > span')"
TRY_AGAIN = "document.querySelector('main form button')"
# How the page's header names them.
NAMES = {
    "local": {"ann": "ann", "mia": "mia merchant"},
    "keycloak": {"ann": "Ann Archer", "mia": "Mia Mercer merchant"},
}


def found(selector: str) -> str:
    return f"(document.readyState === 'complete' && document.querySelector({json.dumps(selector)}) !== null)"


async def go(page: Tab, url: str, selector: str) -> None:
    """Open a page of the shop that has the element, again if the shop could not show it in time."""

    async def is_shown() -> bool:
        await page.open(url)
        await page.until("document.readyState === 'complete'")
        return bool(await page.evaluate(found(selector)))

    await until(is_shown, what=f"{url} shows {selector}")


async def press(page: Tab, selector: str) -> None:
    await page.until(found(selector))
    await page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


async def sign_in(page: Tab, shop: SignedInShop, person: str) -> None:
    """Enter the name on the issuer's page, which is open, and return to the shop."""
    password = shop.sign_in.password
    if password is None:
        await press(page, f"button[value={person}]")
    else:
        await page.until(found("#kc-login"))
        for name, value in {"username": person, "password": password}.items():
            await page.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")
        await press(page, "#kc-login")
    shown = await page.until(f"{PERSON} !== null && {PERSON}.innerText")
    assert " ".join(shown.split()) == f"Signed in as {NAMES[shop.sign_in.kind][person]}"


async def sign_out(page: Tab, url: str) -> None:
    """Sign out, which leads to the issuer and back to the shop."""
    await press(page, "form.person button")
    invitation = found("a[href^='/sign-in']")
    await page.until(f"location.href === {json.dumps(url + '/')} && {invitation}")
    assert await page.evaluate(f"{PERSON} === null")


async def test_ann_buys_and_mia_works_at_the_desk(shop: SignedInShop, tmp_path: Path) -> None:
    url = shop.up.urls["storefront"]
    [product, *_] = (await shop.send("products", "GET", "/api/product?limit=1", None)).json()["items"]
    path = f"/desk/products/{product['id']}"
    async with tab(tmp_path) as page:
        # A buyer, who signs in on the way to the checkout.
        await go(page, f"{url}/products/{product['id']}", "button[value=add]")
        await press(page, "button[value=add]")
        await page.until("location.pathname === '/basket'")
        await page.open(f"{url}/checkout")
        await sign_in(page, shop, "ann")
        await go(page, f"{url}/checkout", "main form button.big")
        await press(page, "main form button.big")
        order_path = await page.until("location.pathname.startsWith('/orders/') && location.pathname")
        order = await shop.send("orders", "GET", f"/api/order/{order_path.rpartition('/')[2]}", shop.people["ann"])
        assert (order.json()["user"], order.json()["status"]) == (shop.subjects["ann"], "confirmed")
        await go(page, f"{url}{order_path}", "form.person")
        await sign_out(page, url)

        # A merchant, in the same browser. The issuer asks who they are, because ann has signed out there, too.
        await page.open(f"{url}/desk/products")
        await sign_in(page, shop, "mia")
        await go(page, f"{url}/desk{order_path}", "main dl")
        await go(page, f"{url}{path}", "#description")
        await page.evaluate("document.getElementById('description').value = 'As mia describes it.'")
        await press(page, f"main form[action='{path}'] button.big")

        async def is_saved() -> bool:
            # Where the shop did not respond in time, a page asks to send the form again.
            await page.evaluate(f"{found('main form')} && !{found('#description')} && {TRY_AGAIN}.click()")
            response = await shop.send("products", "GET", f"/api/product/{product['id']}", None)
            return bool(response.json().get("description") == "As mia describes it.")

        await until(is_saved, interval=0.5)
        await go(page, f"{url}/desk", "form.person")
        await sign_out(page, url)
        # Nobody is signed in any more, at the shop or at the issuer.
        await page.open(f"{url}/desk")
        await page.until(found("button[value=mia]" if shop.sign_in.password is None else "#kc-login"))
