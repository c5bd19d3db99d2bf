"""The list of everybody's orders, which merchants and operators get if they name no user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from market.kit.ids import new_id
from market.orders.domain import Order, OrderLine, Status
from market.orders.listing.pages import Position, Selection
from market.orders.mongodb.documents import order_to_document

from .sign_in import Caller, Shop

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def stored_order(second: float, status: str = "confirmed") -> dict[str, Any]:
    """Return the document of an order of a buyer of its own, placed that many seconds after TIME."""
    line = OrderLine(str(uuid4()), "Lamp", 1, Decimal("1.00"))
    order = Order(new_id(), f"buyer {uuid4()}", None, (line,), Decimal(1), "GBP", TIME + timedelta(seconds=second))
    return {**order_to_document(order), "status": status}


@pytest.fixture
def merchant(own_shop: Shop) -> Caller:
    return own_shop.sign_in("mia", "merchant")


async def test_it_has_all_orders_but_rejected_ones_newest_first(own_shop: Shop, merchant: Caller) -> None:
    statuses = ["confirmed", "pending", "cancelled", "rejected", "shipped", "confirmed"]
    documents = [stored_order(n, status) for n, status in enumerate(statuses)]
    await own_shop.documents.insert_many(documents)
    expected = [str(d["_id"]) for d in reversed(documents) if d["status"] != "rejected"]
    for caller in (merchant, own_shop.sign_in("otto", "operator")):
        page = (await caller.list()).json()
        assert [order["id"] for order in page["items"]] == expected
        assert (page["total"], page["total_exact"], page["next"]) == (5, True, None)
    page = (await merchant.list(status="confirmed")).json()
    assert ([order["id"] for order in page["items"]], page["total"]) == ([expected[0], expected[4]], 2)
    page = (await merchant.list(limit=2, offset=2)).json()
    assert [order["id"] for order in page["items"]] == expected[2:4]
    buyer = (await own_shop.sign_in(documents[0]["user"]).list()).json()
    assert [order["id"] for order in buyer["items"]] == [str(documents[0]["_id"])]


async def test_without_orders_it_is_empty(merchant: Caller) -> None:
    page = (await merchant.list()).json()
    assert page == {"items": [], "total": 0, "limit": 100, "offset": 0, "total_exact": True, "next": None}


async def test_a_walk_by_cursor_returns_each_order_once_while_others_are_placed(
    own_shop: Shop, merchant: Caller
) -> None:
    # Several orders of the same time, with different statuses.
    statuses = ["confirmed", "cancelled", "pending"]
    documents = [stored_order(n // 5, statuses[n % 3]) for n in range(31)]
    await own_shop.documents.insert_many(documents)
    newest_first = sorted(documents, key=lambda d: (d["created_at"], d["_id"]), reverse=True)
    found: list[UUID] = []
    parameters: dict[str, Any] = {"limit": 4}
    while True:
        page = (await merchant.list(**parameters)).json()
        found += [UUID(order["id"]) for order in page["items"]]
        if page["next"] is None:
            break
        await own_shop.documents.insert_one(stored_order(100))
        parameters["after"] = page["next"]
    assert found == [d["_id"] for d in newest_first]
    # A cursor of everybody's list is not one of a user's list.
    assert (await merchant.list(user="ann", after=parameters["after"])).status_code == 422


async def test_it_counts_up_to_ten_thousand(own_shop: Shop, merchant: Caller) -> None:
    await own_shop.documents.insert_many([stored_order(n) for n in range(10_001)])
    page = (await merchant.list(limit=1)).json()
    assert (page["total"], page["total_exact"]) == (10_000, False)
    await own_shop.documents.delete_one({})
    page = (await merchant.list(limit=1)).json()
    assert (page["total"], page["total_exact"]) == (10_000, True)


@pytest.mark.parametrize("status", [None, Status.CANCELLED])
async def test_a_page_reads_only_its_own_part_of_the_index(own_shop: Shop, status: Status | None) -> None:
    """MongoDB's own plan: it neither scans the collection nor sorts, and it reads the documents of the page only."""
    statuses = ["confirmed"] * 50 + ["rejected"] * 49 + ["cancelled"]
    await own_shop.documents.insert_many([stored_order(n, statuses[n % 100]) for n in range(4000)])
    orders = own_shop.service.deps.orders
    outline = await orders.outline_page(Selection(None, status), limit=10)
    last = [order async for order in orders.read_page(outline)][9]
    following = await orders.outline_page(Selection(None, status), limit=10, after=Position.of(last))
    for page in (outline, following):
        listing = [{"$match": page.page_filter}, {"$sort": {"created_at": -1, "_id": -1}}, {"$limit": 11}]
        stages, statistics = await explain(own_shop, listing)
        assert "IXSCAN" in stages
        assert not stages & {"COLLSCAN", "SORT"}, stages
        assert statistics["nReturned"] == 11
        # The parts of the two statuses are merged, so one more of the other part is read, and each part is positioned.
        assert statistics["totalDocsExamined"] <= 11 + 1
        assert statistics["totalKeysExamined"] <= 11 + 3
    stages, statistics = await explain(
        own_shop, [{"$match": outline.page_filter}, {"$limit": 1000}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
    )
    assert "COLLSCAN" not in stages
    assert statistics["totalDocsExamined"] == 0


async def test_the_statuses_are_read_from_one_entry_of_the_index_each(own_shop: Shop) -> None:
    await own_shop.documents.insert_many([stored_order(n, ["confirmed", "shipped"][n % 2]) for n in range(200)])
    command = {"distinct": "orders", "key": "status"}
    plan = await own_shop.documents.database.command("explain", command, verbosity="executionStats")
    assert "DISTINCT_SCAN" in stage_names(plan)
    assert plan["executionStats"]["totalDocsExamined"] == 0
    assert plan["executionStats"]["totalKeysExamined"] <= 2 + 1


async def explain(shop: Shop, pipeline: list[dict[str, Any]]) -> tuple[set[str], dict[str, Any]]:
    """Return the stages of the pipeline's plan, and the statistics of its execution."""
    plan = await shop.documents.database.command(
        "explain",
        {"aggregate": "orders", "pipeline": pipeline, "cursor": {}},
        verbosity="executionStats",
        codec_options=shop.documents.codec_options,
    )
    # With a stage that the query itself cannot have, the query is the first of several stages.
    query = plan["stages"][0]["$cursor"] if "stages" in plan else plan
    return set(stage_names(query)), query["executionStats"]


def stage_names(plan: Any) -> list[str]:
    """Return the names of all stages in an explained plan."""
    if isinstance(plan, list):
        return [name for item in plan for name in stage_names(item)]
    if not isinstance(plan, dict):
        return []
    own = [plan["stage"]] if isinstance(plan.get("stage"), str) else []
    return own + [name for key, value in plan.items() if key != "rejectedPlans" for name in stage_names(value)]
