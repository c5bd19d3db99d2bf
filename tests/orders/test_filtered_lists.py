"""Lists of orders by user, status and time, and what MongoDB reads for them."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any
from uuid import UUID

from market.orders.domain import Status
from market.orders.listing.pages import PageOutline, Selection

from .service import MakeSettings, on_new_database, serving
from .sign_in import Caller, Shop
from .test_everybodys_orders import explain, stored_order

FROM, TO = "2026-01-01T00:00:10Z", "2026-01-01T00:00:20Z"
BEGIN, END = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 14, tzinfo=UTC)


def order_of(user: str, second: float, status: str = "confirmed") -> dict[str, Any]:
    return {**stored_order(second, status), "user": user}


def ids(documents: list[dict[str, Any]]) -> list[str]:
    newest_first = sorted(documents, key=lambda d: (d["created_at"], d["_id"]), reverse=True)
    return [str(d["_id"]) for d in newest_first]


def plan_of(outline: PageOutline) -> list[dict[str, Any]]:
    """Return the pipeline that reads a page."""
    return [{"$match": outline.page_filter}, {"$sort": {"created_at": -1, "_id": -1}}, {"$limit": 11}]


async def walk(caller: Caller, **parameters: Any) -> list[str]:
    """Return the ids of all orders of the list, read in pages of two."""
    found: list[str] = []
    while True:
        page = (await caller.list(limit=2, **parameters)).raise_for_status().json()
        found += [order["id"] for order in page["items"]]
        if page["next"] is None:
            return found
        parameters["after"] = page["next"]


async def test_an_interval_has_its_beginning_and_not_its_end(own_shop: Shop) -> None:
    """Orders a millisecond before, at and after each limit, several of them at the same time."""
    seconds = [9.999, 10, 10, 10.001, 19.999, 19.999, 20, 20, 20.001]
    documents = [order_of("ann", second) for second in seconds]
    await own_shop.documents.insert_many(documents)
    merchant = own_shop.sign_in("mia", "merchant")
    for user in ({}, {"user": "ann"}):
        for status in ({}, {"status": "confirmed"}):
            both = {**user, **status}
            assert await walk(merchant, created_from=FROM, created_to=TO, **both) == ids(documents[1:6])
            assert await walk(merchant, created_from=FROM, **both) == ids(documents[1:])
            assert await walk(merchant, created_to=TO, **both) == ids(documents[:6])
    page = (await merchant.list(created_from=FROM, created_to=TO, limit=2)).json()
    assert (page["total"], page["total_exact"]) == (5, True)
    # The same limits with another offset, and limits between two milliseconds.
    there = {"created_from": "2026-01-01T03:00:10+03:00", "created_to": "2025-12-31T19:00:20-05:00"}
    assert await walk(merchant, **there) == ids(documents[1:6])
    between = {"created_from": "2026-01-01T00:00:09.9995Z", "created_to": "2026-01-01T00:00:19.9985Z"}
    assert await walk(merchant, **between) == ids(documents[1:4])


async def test_rejected_and_pending_orders_are_listed_if_requested(own_shop: Shop) -> None:
    documents = {status: order_of("ann", 10, status) for status in ("pending", "confirmed", "cancelled", "rejected")}
    other = {status: order_of("bob", 11, status) for status in documents}
    await own_shop.documents.insert_many([*documents.values(), *other.values()])
    for status, document in documents.items():
        for caller in (own_shop.sign_in("mia", "merchant"), own_shop.sign_in("otto", "operator")):
            assert await walk(caller, status=status) == ids([document, other[status]])
            assert await walk(caller, status=status, user="ann") == ids([document])
        # A buyer sees their own orders only.
        ann = own_shop.sign_in("ann")
        assert await walk(ann, status=status, created_from=FROM) == ids([document])
        assert (await ann.list(status=status, user="bob")).status_code == 403
    everybody = await walk(own_shop.sign_in("mia", "merchant"))
    assert everybody == ids([d for d in (*documents.values(), *other.values()) if d["status"] != "rejected"])


async def test_a_cursor_belongs_to_its_interval(own_shop: Shop) -> None:
    await own_shop.documents.insert_many([order_of("ann", second) for second in (11, 12, 13)])
    merchant = own_shop.sign_in("mia", "merchant")
    after = (await merchant.list(limit=1, created_from=FROM)).json()["next"]
    assert (await merchant.list(limit=1, created_from=FROM, after=after)).status_code == 200
    for other in ({}, {"created_to": TO}, {"created_from": "2026-01-01T00:00:11Z"}):
        response = await merchant.list(limit=1, after=after, **other)
        assert [error["field"] for error in response.json()["errors"]] == ["after"], other


async def test_a_page_of_an_interval_reads_only_its_part_of_an_index(own_shop: Shop) -> None:
    """Of 4,000 orders, 400 are in the interval: 200 of each user, of which 20 are pending."""
    statuses = ["confirmed"] * 5 + ["rejected"] * 3 + ["cancelled", "pending"]
    documents = [order_of(("ann", "bob")[n // 10 % 2], n / 100, statuses[n % 10]) for n in range(4000)]
    await own_shop.documents.insert_many(documents)
    known = [status for status in Status if status is not Status.UNKNOWN]
    for user, status in product((None, "ann"), (None, *known)):
        outline = await own_shop.service.deps.orders.outline_page(Selection(user, status, BEGIN, END), limit=10)
        expected = [
            d
            for d in documents
            if BEGIN <= d["created_at"] < END
            and user in (None, d["user"])
            and (d["status"] == status if status else d["status"] != "rejected")
        ]
        assert outline.total == len(expected)
        assert [str(order_id) for order_id in outline.sizes] == ids(expected)[:11]
        stages, statistics = await explain(own_shop, plan_of(outline))
        assert not stages & {"COLLSCAN", "SORT"}, (user, status, stages)
        assert statistics["totalKeysExamined"] <= 400, (user, status)
        # A user's pending orders may be looked for among everybody's, which are few at a time.
        most = 40 if (user, status) == ("ann", Status.PENDING) else 11 + len(known)
        assert statistics["totalDocsExamined"] <= most, (user, status)


async def test_the_index_of_ended_orders_finds_the_few_of_a_user_with_many(own_shop: Shop) -> None:
    documents = [order_of("ann", n, "rejected" if n % 1000 == 0 else "confirmed") for n in range(3000)]
    await own_shop.documents.insert_many(documents)
    orders = own_shop.service.deps.orders
    outline = await orders.outline_page(Selection("ann", Status.REJECTED), limit=10)
    assert [UUID(i) for i in ids([documents[0], documents[1000], documents[2000]])] == list(outline.sizes)
    stages, statistics = await explain(own_shop, plan_of(outline))
    assert not stages & {"COLLSCAN", "SORT"}, stages
    assert (statistics["totalDocsExamined"], statistics["totalKeysExamined"]) == (3, 3)


async def test_in_mode_open_everybodys_orders_are_listed_without_a_user(
    make_settings: MakeSettings, migrated: None
) -> None:
    settings = await on_new_database(make_settings)
    async with serving(settings(), background=False) as service:
        documents = [order_of("ann", 1), order_of("bob", 2)]
        await service.documents.insert_many(documents)
        page = (await service.http.get("/api/order")).json()
        assert [order["id"] for order in page["items"]] == ids(documents)
