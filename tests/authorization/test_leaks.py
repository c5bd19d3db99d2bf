"""Tokens and client secrets appear in no log, span, metric, store or mail."""

from __future__ import annotations

import base64
import secrets

import pytest

from tests.authorization.calls import create_target
from tests.authorization.leaks import assert_nothing_leaked, find_leaks, outputs
from tests.authorization.shop import SECRETS, Shop
from tests.support.issuer import Issuer, SigningKey
from tests.support.waiting import until


async def test_a_signed_in_run_writes_no_token_anywhere(shop: Shop) -> None:
    target = await create_target(shop)
    token = shop.token("ann")
    invalid = shop.issuer.token("ann", key=SigningKey())
    for sent in (token, invalid, invalid[:-20], f"{token}x"):
        await shop.rest("orders", "GET", f"/api/order/{target.order_id}", sent)
        await shop.graphql(f'{{order(id: "{target.order_id}") {{id}} products(limit: 1) {{items {{id}}}}}}', sent)
    # An outage is logged at length.
    await shop.graphql('{product(id: "x") {id}}', token)
    await shop.rest("orders", "DELETE", f"/api/order/{target.order_id}", token)
    await shop.stores.settled()
    # Each service exports its spans in sequence, so those of the run come before these.
    last = secrets.token_bytes(16)
    traced = {"traceparent": f"00-{last.hex()}-{'1' * 16}-01"}
    for service, path in (
        ("products", "/api/product?limit=1&availability=false"),
        ("orders", "/api/order?limit=1"),
        ("graphql", "/graphql?query={__typename}"),
    ):
        await shop.rest(service, "GET", path, token, headers=traced)
    await until(lambda: sum(last in export for export in shop.collector.exports) >= 3, what="the spans of the run")

    written = await outputs(shop)
    # All of it is really read: each log, and spans of each service that serves requests.
    assert all("request handled" in written[f"log of {name}"] for name in ("products", "orders", "graphql"))
    assert all(name in written["spans"] for name in ("products", "orders", "graphql", "inventory"))
    await assert_nothing_leaked(shop)


@pytest.mark.parametrize("cut", [slice(None), slice(30, None), slice(0, 30), slice(0, -10)])
def test_the_search_finds_tokens_whole_and_in_part(cut: slice) -> None:
    issuer = Issuer(1)
    token = issuer.token("ann")
    assert find_leaks(f'{{"event": "call failed", "reason": "Bearer {token[cut]}"}}', [token]) != []
    assert find_leaks('{"event": "call failed", "reason": "the token has expired"}', [token]) == []
    assert find_leaks(f"password={SECRETS['orders']}", []) == [SECRETS["orders"]]
    assert find_leaks(base64.urlsafe_b64encode(b'{"iss": "x", "sub": "y"}').decode(), []) != []
