"""GET /api/shortages: what could not be sold, by day and product."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from market.kit.process.lifecycle import Process

from .catalogue import FakeCatalogue
from .service import MakeSettings, Service, on_new_database, serving
from .sign_in import Caller, Shop
from .stock import Stock
from .test_everybodys_orders import explain, stored_order

LAMP, CHAIR, DESK = (f"00000000-0000-4000-8000-00000000000{n}" for n in "123")


def rejected(at: str, **shortages: tuple[int, int]) -> dict[str, Any]:
    """Return the document of an order that was rejected at that time. `shortages`: wanted and left, by product."""
    products = {"lamp": LAMP, "chair": CHAIR, "desk": DESK}
    return {
        **stored_order(0, "rejected"),
        "rejected_at": datetime.fromisoformat(at).replace(tzinfo=UTC),
        "reason": "out-of-stock",
        "shortages": [
            {"product_id": products[name], "wanted": wanted, "left": left} for name, (wanted, left) in shortages.items()
        ],
    }


async def report(caller: Caller, **parameters: Any) -> Any:
    return (await caller.http.get("/api/shortages", params=parameters, headers=caller.headers)).json()


async def rows(caller: Caller, **parameters: Any) -> list[tuple[str, str, int, int, int]]:
    """Return the rows of all pages of two."""
    names = {LAMP: "lamp", CHAIR: "chair", DESK: "desk"}
    found: list[Any] = []
    while True:
        page = await report(caller, limit=2, **parameters)
        found += page["items"]
        if page["next"] is None:
            break
        parameters["after"] = page["next"]
    fields = ("orders_rejected", "units_requested", "units_short")
    return [(r["day"], names[r["product_id"]], *(r[field] for field in fields)) for r in found]


# Over two midnights, and with orders that are not counted.
ORDERS = [
    rejected("2026-01-30T23:59:59.999", lamp=(100, 0)),
    rejected("2026-01-31T00:00:00.000", lamp=(5, 2), chair=(3, 1)),
    rejected("2026-01-31T12:00:00.000", lamp=(4, 0)),
    rejected("2026-01-31T23:59:59.999", desk=(7, 6)),
    rejected("2026-02-01T00:00:00.000", lamp=(2, 1)),
    rejected("2026-02-01T00:00:00.001", lamp=(9, 8), chair=(1, 0), desk=(2, 0)),
    # The order itself is older, or was not rejected for lack of stock.
    {**rejected("2026-02-03T08:00:00", chair=(2, 0)), "created_at": datetime(2026, 1, 31, tzinfo=UTC)},
    {**stored_order(0, "rejected"), "rejected_at": datetime(2026, 2, 1, tzinfo=UTC), "reason": "expired"},
]
OF_JANUARY_31 = [
    ("2026-01-31", "lamp", 2, 9, 7),
    ("2026-01-31", "chair", 1, 3, 2),
    ("2026-01-31", "desk", 1, 7, 1),
]
OF_FEBRUARY_1 = [("2026-02-01", "lamp", 2, 11, 2), ("2026-02-01", "chair", 1, 1, 1), ("2026-02-01", "desk", 1, 2, 2)]


async def test_units_are_added_up_by_product_and_day_in_utc(own_shop: Shop) -> None:
    await own_shop.documents.insert_many(ORDERS)
    merchant = own_shop.sign_in("mia", "merchant")
    assert await rows(merchant, **{"from": "2026-01-31", "to": "2026-02-01"}) == OF_FEBRUARY_1 + OF_JANUARY_31
    assert await rows(merchant, **{"from": "2026-01-31", "to": "2026-01-31"}) == OF_JANUARY_31
    everything = await rows(merchant, **{"from": "2026-01-01", "to": "2026-02-28"})
    assert everything == [
        ("2026-02-03", "chair", 1, 2, 2),
        *OF_FEBRUARY_1,
        *OF_JANUARY_31,
        ("2026-01-30", "lamp", 1, 100, 100),
    ]
    of_lamps = await rows(merchant, **{"from": "2026-01-01", "to": "2026-02-28", "product": LAMP.upper()})
    assert of_lamps == [row for row in everything if row[1] == "lamp"]
    # Each page size has the same rows.
    for limit in (1, 3, 4, 8):
        page = await report(merchant, **{"from": "2026-01-01", "to": "2026-02-28", "limit": limit})
        assert len(page["items"]) == limit
        assert (page["from"], page["to"]) == ("2026-01-01", "2026-02-28")


async def test_a_list_without_days_keeps_its_period_over_midnight(make_settings: MakeSettings, migrated: None) -> None:
    now = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    settings = await on_new_database(make_settings)
    async with serving(settings(), process=Process(clock=lambda: now), background=False) as service:
        await service.documents.insert_many(ORDERS)
        caller = Caller(service.http, "")
        first = await report(caller, limit=2)
        now += timedelta(seconds=2)
        second = await report(caller, limit=2, after=first["next"])
        assert [(row["day"], row["units_requested"]) for row in first["items"] + second["items"]] == [
            *((day, requested) for day, _, _, requested, _ in OF_JANUARY_31),
            ("2026-01-30", 100),
        ]
        assert [(page["from"], page["to"]) for page in (first, second)] == [("2026-01-02", "2026-01-31")] * 2
        assert second["next"] is None
        # A list that begins now has the new day.
        assert (await report(caller))["to"] == "2026-02-01"
        # The cursor belongs to the list without days only.
        problem = await report(caller, limit=2, after=first["next"], to="2026-01-31")
        assert [error["field"] for error in problem["errors"]] == ["after"]


async def test_a_rejected_request_is_in_the_report_of_the_last_days(
    service: Service, catalogue: FakeCatalogue, stock: Stock
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 2)
    for quantity in (5, 3):
        assert (await service.place([(lamp, quantity)])).status_code == 409
    page = (await service.http.get("/api/shortages", params={"product": lamp})).json()
    # Two rows if midnight came between the two orders.
    assert sum(row["orders_rejected"] for row in page["items"]) == 2
    assert sum(row["units_requested"] for row in page["items"]) == 8
    assert sum(row["units_short"] for row in page["items"]) == 4
    days = datetime.fromisoformat(page["to"]) - datetime.fromisoformat(page["from"])
    assert days == timedelta(days=29)


@pytest.mark.parametrize(
    ("parameters", "field", "reason"),
    [
        ({"from": "2026-01-32"}, "from", "must be a date such as 2026-01-31"),
        ({"from": "20260131"}, "from", "must be a date such as 2026-01-31"),
        ({"to": "9999-12-31"}, "to", "must be from 1970-01-01 to 9998-12-31, got 9999-12-31"),
        (
            {"from": "2026-02-01", "to": "2026-01-31"},
            "from",
            "must not be after `to`, which is 2026-01-31",
        ),
        (
            {"from": "2026-01-01", "to": "2026-04-03"},
            "from",
            "the period must have at most 92 days, got 93 until 2026-04-03",
        ),
        ({"product": "lamp"}, "product", "must be a UUID"),
        ({"after": "x"}, "after", "is not a cursor: it must be the `next` of a page, unchanged"),
        ({"limit": "1001"}, "limit", "must be a whole number from 1 to 1000"),
    ],
)
async def test_a_wrong_parameter_is_explained(
    own_shop: Shop, parameters: dict[str, str], field: str, reason: str
) -> None:
    problem = await report(own_shop.sign_in("otto", "operator"), **parameters)
    assert problem["errors"] == [{"field": field, "reason": reason}]


async def test_ninety_two_days_are_permitted(own_shop: Shop) -> None:
    page = await report(own_shop.sign_in("otto", "operator"), **{"from": "2026-01-01", "to": "2026-04-02"})
    assert page == {"items": [], "from": "2026-01-01", "to": "2026-04-02", "limit": 100, "next": None}


async def test_a_cursor_belongs_to_its_period_and_product(own_shop: Shop) -> None:
    await own_shop.documents.insert_many([rejected("2026-01-31T00:00", lamp=(1, 0), chair=(1, 0), desk=(1, 0))])
    merchant = own_shop.sign_in("mia", "merchant")
    period = {"from": "2026-01-31", "to": "2026-01-31"}
    after = (await report(merchant, **period, limit=1))["next"]
    assert len((await report(merchant, **period, after=after))["items"]) == 2
    for other in ({"to": "2026-02-01"}, {"product": LAMP}):
        problem = await report(merchant, **{**period, **other}, after=after)
        assert problem["errors"][0]["field"] == "after"


async def test_the_report_reads_the_orders_of_its_days_only(own_shop: Shop) -> None:
    """MongoDB's own plan, among many orders that were rejected on other days, or not at all."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    others = [{**stored_order(n), "_id": UUID(int=n)} for n in range(500)]
    short = [rejected((start + timedelta(hours=n)).replace(tzinfo=None).isoformat(), lamp=(2, 1)) for n in range(240)]
    await own_shop.documents.insert_many([*others, *short])
    await report(own_shop.sign_in("mia", "merchant"), **{"from": "2026-01-05", "to": "2026-01-05"})
    day = {"$gte": datetime(2026, 1, 5, tzinfo=UTC), "$lt": datetime(2026, 1, 6, tzinfo=UTC)}
    where = {"status": "rejected", "shortages": {"$exists": True}, "rejected_at": day}
    # With $unwind and $group as in the service, and the search for the latest day.
    for pipeline in (
        [{"$match": where}, {"$unwind": "$shortages"}, {"$group": {"_id": "$shortages.product_id"}}],
        [{"$match": {**where, "shortages.product_id": LAMP}}, {"$unwind": "$shortages"}],
    ):
        stages, statistics = await explain(own_shop, pipeline)
        assert "IXSCAN" in stages
        assert statistics["totalDocsExamined"] == 24, pipeline
        # One key more, where the scan ends.
        assert statistics["totalKeysExamined"] <= 25, pipeline
    latest = [{"$match": where}, {"$sort": {"rejected_at": -1}}, {"$limit": 1}]
    stages, statistics = await explain(own_shop, latest)
    assert not stages & {"COLLSCAN", "SORT"}
    assert statistics["totalDocsExamined"] == 1


@pytest.mark.parametrize("path", ["/api/shortages", "/api/unfinished-orders"])
async def test_merchants_and_operators_may_see_it_and_buyers_may_not(own_shop: Shop, path: str) -> None:
    async def status(caller: Caller) -> int:
        return (await caller.http.get(path, headers=caller.headers)).status_code

    assert await status(own_shop.sign_in("mia", "merchant")) == 200
    assert await status(own_shop.sign_in("otto", "operator")) == 200
    assert await status(own_shop.sign_in("ann")) == 403
    assert await status(own_shop.anonymous()) == 401
