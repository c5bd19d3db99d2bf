"""A list of orders and its pages: what a list contains, where a page ends, and which orders are on it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from market.orders.domain import Order, Status
from market.orders.mongodb.collection import EPOCH, documents

_MILLISECOND = timedelta(milliseconds=1)


class Position(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page of orders ends: the time of the last order, in milliseconds since 1970, and its id.

    Cursors contain it, and clients keep cursors, so its fields must not change.
    """

    created_at: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
    order_id: UUID

    @classmethod
    def of(cls, order: Order) -> Position:
        """Return the position of an order."""
        return cls((order.created_at - EPOCH) // _MILLISECOND, order.id)

    @property
    def time(self) -> datetime:
        """The time of the last order."""
        return EPOCH + self.created_at * _MILLISECOND


class Selection(Struct, frozen=True):
    """The orders that a list contains.

    user: whose orders. None: everybody's.
    status: only orders with this status. None: all except rejected ones, including those with an unknown status.
    created_from, created_to: only orders that were placed in this half-open interval. The limits are in whole
        milliseconds. None: no limit.
    """

    user: str | None
    status: Status | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None

    def filter_times(self, after: Position | None = None) -> documents.Document:
        """Return the filter for the orders in the interval. `after`: only orders that follow this position."""
        times: documents.Document = {}
        if self.created_from is not None:
            times["$gte"] = self.created_from
        if self.created_to is not None:
            times["$lt"] = self.created_to
        if after is None:
            return {"created_at": times} if times else {}
        # Match created_at < after.time, or created_at == after.time and _id < after.order_id. With `$lte` outside of
        # `$or`, MongoDB starts at this position in the index.
        if self.created_to is None or after.time < self.created_to:
            times.pop("$lt", None)
            times["$lte"] = after.time
        return {"created_at": times, "$or": [{"created_at": {"$lt": after.time}}, {"_id": {"$lt": after.order_id}}]}


class PageOutline(Struct, frozen=True):
    """Which orders are on a page of a list, without their content.

    page_filter: the MongoDB filter of the list; for a page after a cursor, only of the orders after the cursor
    skip: how many of the matching orders come before the page
    limit: the maximum number of orders on the page
    sizes: the stored bytes of each order by id, newest first. If there are more than `limit` orders, the last one is
        the first order after the page
    total: the number of orders in the whole list; a lower bound if `total_exact` is False
    """

    page_filter: documents.Document
    skip: int
    limit: int
    sizes: dict[UUID, int]
    total: int
    total_exact: bool
