"""Work that the services do for many callers at once: each item stays its own caller's."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

from tests.authorization.callers import OWNER
from tests.authorization.calls import create_target
from tests.authorization.shop import Shop
from tests.support.waiting import until

SUBJECTS = [f"batch-{n}" for n in range(64)]


def address(subject: str) -> str:
    return f"{subject}@people.example"


async def inserts(shop: Shop) -> Counter[str]:
    """Return in how many calls (`count`) orders has inserted how many orders (`sum`)."""
    found = re.findall(
        r'^market_batch_items_(count|sum){batcher="orders.insert"} (.+)$', await metrics(shop), re.MULTILINE
    )
    return Counter({name: int(float(value)) for name, value in found})


async def in_flight(shop: Shop) -> int:
    """Return how many requests orders is handling."""
    found = re.search(r"^market_http_requests_in_flight (.+)$", await metrics(shop), re.MULTILINE)
    assert found
    return int(float(found[1]))


async def metrics(shop: Shop) -> str:
    return (await shop.http.get(f"{shop.admin['orders']}/metrics")).text


async def test_orders_of_64_subjects_in_one_batch_stay_their_own(shop: Shop, mongodb: Any) -> None:
    products = [
        await shop.create_product(name=f"Product of {subject}", price=f"{n}.25", stock=10)
        for n, subject in enumerate(SUBJECTS, start=1)
    ]

    async def place(n: int) -> dict[str, Any]:
        """Place an order, every second one through GraphQL."""
        token, product_id = shop.token(SUBJECTS[n]), products[n]["id"]
        if n % 2:
            return await shop.place_order(token, product_id)
        document = f"""mutation {{
            createOrder(input: {{items: [{{productId: "{product_id}", quantity: 1}}]}}) {{id user email total}}
        }}"""
        response = (await shop.graphql(document, token)).json()
        assert "errors" not in response, response
        return dict(response["data"]["createOrder"])

    before = await inserts(shop)
    # While MongoDB does not respond to the first, the others wait for their turn together.
    mongodb.pause()
    try:
        placing = [asyncio.create_task(place(n)) for n in range(len(SUBJECTS))]
        await until(lambda: _are_in_flight(shop, len(SUBJECTS)), what="all orders in flight")
    finally:
        mongodb.resume()
    placed = await asyncio.gather(*placing)
    made = await inserts(shop) - before
    assert made["sum"] == len(SUBJECTS)
    assert made["count"] <= len(SUBJECTS) / 4

    for n, (subject, order) in enumerate(zip(SUBJECTS, placed, strict=True), start=1):
        assert (order["user"], order["email"], order["total"]) == (subject, address(subject), f"{n}.25")
        [stored] = await shop.stores.orders_of(subject)
        assert (str(stored["_id"]), stored["user"], stored["email"]) == (order["id"], subject, address(subject))
        assert [item["name"] for item in stored["items"]] == [f"Product of {subject}"]
    mails = await until(lambda: _all_mails(shop), what="a mail for each subject")
    for subject, order in zip(SUBJECTS, placed, strict=True):
        [mail] = mails[subject]
        assert mail["to"] == [address(subject)]
        assert order["id"] in mail["text"]
        assert f"Product of {subject}" in mail["text"]


async def _are_in_flight(shop: Shop, count: int) -> bool:
    return await in_flight(shop) >= count


async def _all_mails(shop: Shop) -> dict[str, list[dict[str, Any]]]:
    """Return the mails by subject, once everybody has one."""
    found = {subject: await shop.stores.mails_to(address(subject)) for subject in SUBJECTS}
    return found if all(found.values()) else {}


async def test_reads_of_one_order_at_the_same_time_show_it_to_its_buyer_alone(shop: Shop) -> None:
    target = await create_target(shop)
    path, document = f"/api/order/{target.order_id}", f'{{order(id: "{target.order_id}") {{user}}}}'
    strangers = [shop.token(subject) for subject in SUBJECTS[:31]]

    async def read(n: int) -> tuple[bool, int, Any]:
        """Return whether the owner has read it, the status and the order's user; one of four reads is by GraphQL."""
        is_owner = n % 2 == 0
        token = shop.token(OWNER) if is_owner else strangers[n % len(strangers)]
        if n % 8 < 6:
            response = await shop.rest("orders", "GET", path, token)
            return is_owner, response.status_code, response.json().get("user")
        shown = (await shop.graphql(document, token)).json()["data"]["order"]
        return is_owner, 404 if shown is None else 200, shown and shown["user"]

    read_by = Counter(await asyncio.gather(*(read(n) for n in range(128))))
    assert read_by == {(True, 200, OWNER): 64, (False, 404, None): 64}


async def test_reads_that_share_a_query_show_stock_to_merchants_alone(shop: Shop) -> None:
    product = await shop.create_product(stock=41)
    path, merchant, buyer = f"/api/product/{product['id']}", shop.token("mia", "merchant"), shop.token("ann")

    async def read(n: int) -> tuple[str, int, Any]:
        token, query = [(merchant, "?stock=true"), (buyer, ""), (buyer, "?stock=true"), (None, "")][n % 4]
        response = await shop.rest("products", "GET", path + query, token)
        return f"{n % 4}", response.status_code, response.json().get("stock")

    counted = Counter(await asyncio.gather(*(read(n) for n in range(128))))
    assert counted == {("0", 200, 41): 32, ("1", 200, None): 32, ("2", 403, None): 32, ("3", 200, None): 32}


async def test_documents_of_the_gateway_show_stock_to_merchants_alone(shop: Shop) -> None:
    product = await shop.create_product(stock=43)
    document = f'{{product(id: "{product["id"]}") {{name stock}}}}'
    tokens = [shop.token("mia", "merchant"), shop.token("ann"), None]

    async def read(n: int) -> tuple[int, Any, bool]:
        result = (await shop.graphql(document, tokens[n % 3])).json()
        return n % 3, (result["data"]["product"] or {}).get("stock"), "errors" in result

    counted = Counter(await asyncio.gather(*(read(n) for n in range(96))))
    assert counted == {(0, 43, False): 32, (1, None, True): 32, (2, None, True): 32}
