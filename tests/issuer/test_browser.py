"""A person signs in from GraphiQL, in a real browser, at the issuer of the shop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.issuer.signed_in_shop import SignedInShop
from tests.support.browser import CHROMIUM, tab
from tests.support.graphiql import BAR, press, run_query

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(900),
]

TOKEN = "JSON.parse(sessionStorage.getItem('market.token')).token"
# What ann does on the page of the issuer.
CHOOSE = {
    "local": "document.querySelector('button[value=ann]')",
    "keycloak": "document.querySelector('#kc-login')",
}


async def test_ann_signs_in_from_graphiql_and_orders(shop: SignedInShop, tmp_path: Path) -> None:
    [product, *_] = (await shop.send("products", "GET", "/api/product?limit=1", None)).json()["items"]
    async with tab(tmp_path) as page:
        await page.open(f"{shop.up.urls['graphql']}/")
        await press(page, "Sign in")
        button = CHOOSE[shop.sign_in.kind]
        await page.until(f"{button} !== null")
        if shop.sign_in.password is not None:
            for name, value in {"username": "ann", "password": shop.sign_in.password}.items():
                await page.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")
        await page.evaluate(f"{button}.click()")
        signed_in = await page.until(f"{BAR}.startsWith('Signed in') && {BAR}")
        assert (
            signed_in
            == {"local": "Signed in as ann. Sign out", "keycloak": "Signed in as Ann Archer. Sign out"}[
                shop.sign_in.kind
            ]
        )
        token = await page.evaluate(TOKEN)
        assert await page.evaluate("location.href") == f"{shop.up.urls['graphql']}/graphql"
        line = f'{{productId: "{product["id"]}", quantity: 1}}'
        result = await run_query(page, f"mutation {{ createOrder(input: {{items: [{line}]}}) {{ user status }} }}")
        assert result == {"data": {"createOrder": {"user": shop.subjects["ann"], "status": "confirmed"}}}
        assert [url for url in page.requests if token in url] == []
    response = await shop.send("graphql", "POST", "/graphql", token, json={"query": "{ orders { items { user } } }"})
    users = {order["user"] for order in response.json()["data"]["orders"]["items"]}
    assert users <= {shop.subjects["ann"]}
