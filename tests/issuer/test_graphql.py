"""GraphQL and GraphiQL of a shop that requires sign-in, with tokens of a real issuer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.issuer.signed_in_shop import SignedInShop
from tests.support.browser import CHROMIUM, Tab, tab
from tests.support.graphiql import BAR, press, run_query
from tests.support.graphql_examples import run_example, signed_in_examples


async def test_every_example_with_sign_in_gives_the_answer_in_the_file(shop: SignedInShop) -> None:
    known: dict[str, Any] = {name: shop.subjects[name] for name in ("ann", "ben")}
    people = set()
    for example in signed_in_examples():
        token = None if example.person is None else shop.people[example.person]
        await run_example(example, known, shop.http, shop.up.urls["graphql"], token)
        people.add(example.person)
    assert people == {None, "ann", "ben", "mia"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
async def test_a_visitor_of_graphiql_signs_in_at_the_issuer_and_orders(shop: SignedInShop, tmp_path: Path) -> None:
    [product, *_] = (await shop.send("products", "GET", "/api/product?limit=1", None)).json()["items"]
    async with tab(tmp_path) as page:
        await page.open(f"{shop.up.urls['graphql']}/")
        await press(page, "Sign in")
        await _choose_ann(page, shop.sign_in.password)
        await page.until(f"{BAR}.startsWith('Signed in as ')")
        assert await page.evaluate("location.href") == f"{shop.up.urls['graphql']}/"
        line = f'{{productId: "{product["id"]}", quantity: 1}}'
        result = await run_query(page, f"mutation {{ createOrder(input: {{items: [{line}]}}) {{ user status }} }}")
        assert result == {"data": {"createOrder": {"user": shop.subjects["ann"], "status": "confirmed"}}}


async def _choose_ann(page: Tab, password: str | None) -> None:
    """Sign in as Ann on the issuer's page: the local provider's, which asks for no password, or Keycloak's."""
    if password is None:
        await page.until("document.querySelector('button[value=ann]') !== null")
        await page.evaluate("document.querySelector('button[value=ann]').click()")
        return
    await page.until("document.querySelector('#password') !== null")
    for field, value in (("username", "ann"), ("password", password)):
        await page.evaluate(f"document.querySelector('#{field}').value = {json.dumps(value)}")
    await page.evaluate("document.querySelector('#password').form.requestSubmit()")
