"""Whose an order is, and where its mail goes, as a signed-in person sees it across the services."""

from __future__ import annotations

from typing import Any

import pytest

from tests.authorization.calls import create_target
from tests.authorization.shop import Shop
from tests.support.waiting import until


@pytest.fixture
async def product_id(shop: Shop) -> str:
    return (await create_target(shop)).product_id


async def wait_for_mails(shop: Shop, address: str, count: int = 1) -> list[dict[str, Any]]:
    async def arrived() -> list[dict[str, Any]]:
        found = await shop.stores.mails_to(address)
        return found if len(found) >= count else []

    return await until(arrived, what=f"{count} mails to {address}")


async def test_an_order_belongs_to_the_tokens_subject_and_its_mail_goes_to_the_verified_address(
    shop: Shop, product_id: str
) -> None:
    token = shop.issuer.token("cleo", email="cleo@home.example")
    order = await shop.place_order(token, product_id)
    assert (order["user"], order["email"]) == ("cleo", "cleo@home.example")
    [mail] = await wait_for_mails(shop, "cleo@home.example")
    assert mail["to"] == ["cleo@home.example"]


@pytest.mark.parametrize("verified", [False, None, "true", 1])
async def test_an_address_that_is_not_verified_gets_no_mail(shop: Shop, product_id: str, verified: Any) -> None:
    subject = f"dan-{verified}"
    token = shop.issuer.token(subject, email="dan@victim.example", email_verified=verified)
    order = await shop.place_order(token, product_id)
    assert order["email"] is None
    await shop.stores.settled()
    assert await shop.stores.mails_to("dan@victim.example") == []


async def test_a_subject_that_looks_like_an_address_gets_no_mail_there(shop: Shop, product_id: str) -> None:
    """Anybody may be able to choose a subject; only the issuer can say that an address is verified."""
    await shop.place_order(shop.issuer.token("eve@victim.example"), product_id)
    marker = await shop.place_order(shop.issuer.token("finn", email="finn@home.example"), product_id)
    assert marker["email"] == "finn@home.example"
    await wait_for_mails(shop, "finn@home.example")
    await shop.stores.settled()
    assert await shop.stores.mails_to("eve@victim.example") == []


async def test_only_merchants_name_another_address_or_another_buyer(shop: Shop, product_id: str) -> None:
    items = [{"product_id": product_id, "quantity": 1}]
    refused_for = [{"email": "gus@victim.example"}, {"user": "gus"}, {"user": "hal", "email": "gus@victim.example"}]
    for fields in refused_for:
        body = {"items": items, **fields}
        refused = await shop.rest("orders", "POST", "/api/order", shop.token("hal"), json=body)
        assert refused.status_code == 403, refused.text
    assert await shop.stores.orders_of("gus") == await shop.stores.orders_of("hal") == []

    order = await shop.place_order(shop.token("mia", "merchant"), product_id, user="gus", email="gus@home.example")
    assert (order["user"], order["email"]) == ("gus", "gus@home.example")
    [mail] = await wait_for_mails(shop, "gus@home.example")
    assert mail["to"] == ["gus@home.example"]


async def test_a_buyer_sees_its_own_list_and_a_merchant_and_an_operator_see_all(shop: Shop, product_id: str) -> None:
    orders = [await shop.place_order(shop.token(subject), product_id) for subject in ("ida", "jan", "ida")]
    ids = [order["id"] for order in reversed(orders)]

    listed = (await shop.rest("orders", "GET", "/api/order", shop.token("ida"))).json()
    assert [order["id"] for order in listed["items"]] == [ids[0], ids[2]]
    for role in ("merchant", "operator"):
        token = shop.token("kim", role)
        first = (await shop.rest("orders", "GET", "/api/order?limit=2", token)).json()
        second = await shop.rest("orders", "GET", "/api/order", token, params={"limit": 1, "after": first["next"]})
        assert [order["id"] for order in (*first["items"], *second.json()["items"])] == ids
        of_one = (await shop.rest("orders", "GET", "/api/order?user=jan", token)).json()
        assert [order["id"] for order in of_one["items"]] == [ids[1]]
    everybody = await shop.graphql("{orders(limit: 3) {items {id user}}}", shop.token("kim", "operator"))
    assert [order["id"] for order in everybody.json()["data"]["orders"]["items"]] == ids


async def test_equal_idempotency_keys_of_two_subjects_place_two_orders(shop: Shop, product_id: str) -> None:
    first = await shop.place_order(shop.token("lea"), product_id, key="the-same-key")
    second = await shop.place_order(shop.token("max"), product_id, key="the-same-key")
    by_merchant = await shop.place_order(shop.token("mia", "merchant"), product_id, key="the-same-key", user="lea")
    assert len({first["id"], second["id"], by_merchant["id"]}) == 3
    assert (await shop.place_order(shop.token("lea"), product_id, key="the-same-key"))["id"] == first["id"]
