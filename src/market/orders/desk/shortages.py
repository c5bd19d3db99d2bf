"""What could not be sold: the shortages of rejected orders, by day and product."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from msgspec import Meta, Struct

from market.contracts import events
from market.orders.domain import Status
from market.orders.mongodb.collection import OrdersCollection, documents

_DAY = timedelta(days=1)


class DailyShortage(Struct, frozen=True):
    """The units of a product that could not be sold on one day: the day in UTC on which the orders were rejected."""

    day: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    product_id: events.IdText
    orders_rejected: Annotated[int, Meta(ge=1, description="Each attempt to place an order counts.")]
    units_requested: int
    units_short: Annotated[int, Meta(description="The requested units less those that were available.")]


DayOrdinal = Annotated[int, Meta(ge=date(1970, 1, 1).toordinal(), le=date(9998, 12, 31).toordinal())]


class ShortagePosition(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page of daily shortages ends. Cursors contain it, so its fields must not change."""

    day: DayOrdinal
    product_id: str


class ShortageRepository:
    """The shortages of the rejected orders in the collection. Methods may raise Unavailable."""

    def __init__(self, collection: OrdersCollection) -> None:
        self._collection = collection

    async def list_daily(
        self, first: date, last: date, *, product_id: str | None, limit: int, after: ShortagePosition | None = None
    ) -> list[DailyShortage]:
        """Return up to `limit` shortages of the days from `first` to `last`: the latest day first, then by product id.

        Makes two queries for each day that is returned. Reads no other days, except the day at which `after` stands.

        product_id: only shortages of this product. None: of all products
        after: the position at which the previous page ends
        """
        found: list[DailyShortage] = []
        before = last + _DAY
        after_product = None
        if after is not None and (day := date.fromordinal(after.day)) <= last:
            before, after_product = day + _DAY, after.product_id
        while len(found) < limit and before > first:
            day_with_shortages = await self._latest_day(first, before, product_id)
            if day_with_shortages is None:
                break
            if after is None or day_with_shortages.toordinal() != after.day:
                after_product = None
            found += await self._list_products(day_with_shortages, product_id, after_product, limit - len(found))
            before = day_with_shortages
        return found

    async def _latest_day(self, first: date, before: date, product_id: str | None) -> date | None:
        """Return the latest day before `before` on which an order was rejected for lack of stock, or None."""
        where = _rejected_between(first, before, product_id)
        found = await self._collection.find_one(where, {"rejected_at": 1}, sort=[("rejected_at", -1)])
        return found["rejected_at"].date() if found else None

    async def _list_products(
        self, day: date, product_id: str | None, after_product: str | None, limit: int
    ) -> list[DailyShortage]:
        products: documents.Document = {} if product_id is None else {"$eq": product_id}
        if after_product is not None:
            products["$gt"] = after_product
        pipeline: list[documents.Document] = [
            {"$match": _rejected_between(day, day + _DAY, product_id)},
            {"$unwind": "$shortages"},
            *([{"$match": {"shortages.product_id": products}}] if products else []),
            {
                "$group": {
                    "_id": "$shortages.product_id",
                    "orders": {"$sum": 1},
                    "wanted": {"$sum": "$shortages.wanted"},
                    "left": {"$sum": "$shortages.left"},
                }
            },
            {"$sort": {"_id": 1}},
            {"$limit": limit},
        ]
        return [
            DailyShortage(day.isoformat(), d["_id"], d["orders"], d["wanted"], d["wanted"] - d["left"])
            for d in await self._collection.aggregate(pipeline)
        ]


def _rejected_between(first: date, before: date, product_id: str | None) -> documents.Document:
    # MongoDB uses the partial index `shortages` only if the query contains the index's condition, `$exists`.
    where: documents.Document = {
        "status": Status.REJECTED.value,
        "shortages": {"$exists": True},
        "rejected_at": {"$gte": _midnight(first), "$lt": _midnight(before)},
    }
    return where if product_id is None else {**where, "shortages.product_id": product_id}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
