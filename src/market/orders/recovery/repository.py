"""DueOrders: finds orders with work that is due, for recovery and the metrics."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from bson import Timestamp
from msgspec import Struct

from market.kit.paging import MAX_COUNT
from market.orders.domain import KNOWN_STATUSES, Status
from market.orders.mongodb.collection import EPOCH, MIN_TIMESTAMP, OrdersCollection, documents


class DuePage(Struct, frozen=True):
    """Ids of orders with work that is due, oldest first. Pass `next_after` as `after` to get the next page.

    `next_after`: a value of the sort field, or None on the last page
    """

    order_ids: list[UUID]
    next_after: Any


class Statistics(Struct, frozen=True):
    """How many orders have work that is due or in progress, and the age of the oldest, or 0 if there is none.

    Counting stops at 10,000.
    """

    pending: int
    oldest_pending_seconds: float
    unsent: int
    oldest_unsent_seconds: float
    releases_due: int
    with_stuck_events: int


class DueOrders:
    """The orders with work that is due. Every method may raise Unavailable."""

    def __init__(self, collection: OrdersCollection) -> None:
        self._collection = collection

    async def list_pending(self, before: datetime, limit: int, after: Timestamp = MIN_TIMESTAMP) -> DuePage:
        """Return up to `limit` pending orders that were stored before `before`, by MongoDB's clock."""
        where = {"status": Status.PENDING.value, "since": {"$gt": after, "$lt": Timestamp(before, 0)}}
        return await self._list_due(where, "since", limit)

    async def list_releases_due(self, before: datetime, limit: int, after: datetime = EPOCH) -> DuePage:
        """Return up to `limit` orders whose stock release became due, or was postponed, before `before`.

        Orders with an unknown status are left out: only a newer version can release their stock.
        """
        statuses = [status.value for status in KNOWN_STATUSES]
        where = {"release_due": {"$gt": after, "$lt": before}, "status": {"$in": statuses}}
        return await self._list_due(where, "release_due", limit)

    async def _list_due(self, where: documents.Document, sort: str, limit: int) -> DuePage:
        found = await self._collection.find(where, {sort: 1}, sort=[(sort, 1)], limit=limit)
        return DuePage([d["_id"] for d in found], found[-1][sort] if len(found) == limit else None)

    async def statistics(self) -> Statistics:
        """Return the counts and ages for the metrics."""
        now = await self._collection.server_time()

        async def first(where: documents.Document, sort: str) -> Any:
            found = await self._collection.find_one(where, {sort: 1}, sort=[(sort, 1)])
            return found[sort] if found else None

        async def count(where: documents.Document) -> int:
            return await self._collection.count(where, limit=MAX_COUNT)

        pending = {"status": Status.PENDING.value, "since": {"$gt": MIN_TIMESTAMP}}
        unsent = {"unsent_since": {"$gt": EPOCH}}
        since = await first(pending, "since")
        unsent_since = await first(unsent, "unsent_since")
        return Statistics(
            pending=await count(pending),
            oldest_pending_seconds=max(0.0, (now - since.as_datetime()).total_seconds()) if since else 0.0,
            unsent=await count(unsent),
            oldest_unsent_seconds=max(0.0, (now - unsent_since).total_seconds()) if unsent_since else 0.0,
            releases_due=await count({"release_due": {"$gt": EPOCH}}),
            with_stuck_events=await count({"stuck_since": {"$gt": EPOCH}}),
        )
