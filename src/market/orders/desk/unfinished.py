"""Unfinished orders: lists orders with work that should have been done by now, and retries the work of one order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from bson import Timestamp
from msgspec import UNSET, Meta, Struct, UnsetType

from market.contracts import events
from market.kit.auth import audit
from market.kit.errors import NotFound, Unavailable
from market.kit.paging import MAX_COUNT
from market.orders.domain import Status, timestamp
from market.orders.mongodb.collection import EPOCH, MIN_TIMESTAMP, OrdersCollection, documents
from market.orders.recovery.recover import Result, recover_order
from market.orders.service import Deps

# A summary says since when the oldest stock release has been due. There is no index for this time, so the summary looks
# only at this many releases.
_MAX_RELEASE_TIMES = 1000


class Kind(StrEnum):
    """Why an order is unfinished. An order may be of several kinds."""

    PENDING = "pending"
    RELEASE_DUE = "release-due"
    UNSENT = "unsent"
    STUCK = "stuck"


# The field by which the orders of a kind are sorted. It has an index.
_FIELDS: Mapping[Kind, str] = {
    Kind.PENDING: "since",
    Kind.RELEASE_DUE: "release_due",
    Kind.UNSENT: "unsent_since",
    Kind.STUCK: "stuck_since",
}


class UnfinishedOrder(Struct, frozen=True):
    """An unfinished order of one kind, and since when it has been unfinished."""

    order_id: events.IdText
    kind: Annotated[str, Meta(extra_json_schema={"enum": [kind.value for kind in Kind]})]
    since: events.TimeText
    status: events.StatusText
    user: str
    reason: Annotated[str, Meta(description="Why Kafka rejected the event; only of stuck events.")] | UnsetType = UNSET


class KindSummary(Struct, frozen=True):
    """The number of unfinished orders of one kind, and since when the oldest of them has been unfinished."""

    kind: Annotated[str, Meta(extra_json_schema={"enum": [kind.value for kind in Kind]})]
    total: Annotated[int, Meta(ge=0)]
    total_exact: Annotated[bool, Meta(description=f"False if only {MAX_COUNT} were counted, and there are more.")]
    since: events.TimeText | None


class UnfinishedPosition(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page of unfinished orders ends. Cursors contain it, so its fields must not change.

    time, increment: the last order's sort field. For a date: milliseconds since 1970, and 0. For a BSON timestamp: its
        two parts
    skip: how many orders with the same kind, time and increment have been on this page and earlier ones
    """

    kind: Kind
    time: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
    increment: Annotated[int, Meta(ge=0, lt=2**32)]
    skip: Annotated[int, Meta(ge=0, le=10_000)]


@dataclass(frozen=True)
class Ages:
    """How old work must be to count as unfinished, in seconds. A stuck event counts at once.

    pending: the age of a pending order, after which recovery rejects it
    other: the age of an unsent event or a stock release
    """

    pending: float
    other: float


class _Found(Struct, frozen=True):
    """An unfinished order with the value of its sort field."""

    order: UnfinishedOrder
    time: int
    increment: int


class UnfinishedOrders:
    """The unfinished orders. Every method may raise Unavailable."""

    def __init__(self, collection: OrdersCollection, ages: Ages) -> None:
        self._collection = collection
        self._ages = ages

    async def summarize(self) -> list[KindSummary]:
        """Return a summary of each kind."""
        now = await self._collection.server_time()
        return list(await asyncio.gather(*(self._summarize_kind(kind, now) for kind in Kind)))

    async def list_page(
        self, kinds: Sequence[Kind], *, limit: int, after: UnfinishedPosition | None = None
    ) -> tuple[list[UnfinishedOrder], UnfinishedPosition | None]:
        """Return a page of unfinished orders, and the position at which it ends (None on the last page).

        The orders are sorted by kind. In a kind, the oldest is first, but stock releases are sorted by when they were
        last tried.

        after: the position at which the previous page ends
        """
        now = await self._collection.server_time()
        found: list[_Found] = []
        if after is not None:
            kinds = kinds[kinds.index(after.kind) :]
        for kind in kinds:
            start = after if after is not None and after.kind is kind else None
            found += await self._list_kind(kind, now, limit + 1 - len(found), start)
            if len(found) > limit:
                last = found[limit - 1]
                same = [f for f in found[:limit] if (f.order.kind, f.time, f.increment) == _key(last)]
                skip = len(same)
                if after is not None and (after.kind, after.time, after.increment) == _key(last):
                    skip += after.skip
                position = UnfinishedPosition(Kind(last.order.kind), last.time, last.increment, skip)
                return [f.order for f in found[:limit]], position
        return [f.order for f in found], None

    async def is_overdue(self, order_id: UUID) -> bool:
        """Return whether the order has been pending for too long."""
        where = self._filter(Kind.PENDING, await self._collection.server_time())
        return await self._collection.count({"_id": order_id, **where}, limit=1) > 0

    async def is_stuck(self, order_id: UUID) -> bool:
        """Return whether the order has a stuck event."""
        return await self._collection.count({"_id": order_id, "stuck_since": {"$exists": True}}, limit=1) > 0

    async def _list_kind(self, kind: Kind, now: datetime, limit: int, after: UnfinishedPosition | None) -> list[_Found]:
        field = _FIELDS[kind]
        where = self._filter(kind, now)
        if after is not None:
            where = {**where, field: {**where[field], "$gte": _sort_value(kind, after)}}
            where[field].pop("$gt")
        found = await self._collection.find(
            where, _PROJECTION | {field: 1}, sort=[(field, 1)], limit=limit, skip=after.skip if after else 0
        )
        return [_read(kind, document) for document in found]

    async def _summarize_kind(self, kind: Kind, now: datetime) -> KindSummary:
        field, where = _FIELDS[kind], self._filter(kind, now)
        ended_at: documents.Document = {
            "$min": {"$ifNull": [_date_or_null(name) for name in ("cancelled_at", "rejected_at", field)]}
        }
        pipeline: list[documents.Document] = [
            {"$match": where},
            {"$sort": {field: 1}},
            {"$limit": _MAX_RELEASE_TIMES if kind is Kind.RELEASE_DUE else 1},
            {"$group": {"_id": None, "since": ended_at if kind is Kind.RELEASE_DUE else {"$min": f"${field}"}}},
        ]
        total, oldest = await asyncio.gather(
            self._collection.count(where, limit=MAX_COUNT + 1), self._collection.aggregate(pipeline)
        )
        since = _as_datetime(oldest[0]["since"]) if oldest else None
        return KindSummary(
            kind.value, min(total, MAX_COUNT), total <= MAX_COUNT, None if since is None else timestamp(since)
        )

    def _filter(self, kind: Kind, now: datetime) -> documents.Document:
        if kind is Kind.PENDING:
            before = Timestamp(now - timedelta(seconds=self._ages.pending), 0)
            return {"status": Status.PENDING.value, "since": {"$gt": MIN_TIMESTAMP, "$lt": before}}
        overdue_before = now - timedelta(seconds=self._ages.other)
        if kind is Kind.UNSENT:
            return {"unsent_since": {"$gt": EPOCH, "$lt": overdue_before}}
        if kind is Kind.STUCK:
            return {"stuck_since": {"$gt": EPOCH}}
        # The age is counted from the order's end, because each failed attempt sets `release_due` to a later time.
        is_recent = {"$gte": overdue_before}
        return {
            "release_due": {"$gt": EPOCH},
            "cancelled_at": {"$not": is_recent},
            "rejected_at": {"$not": is_recent},
        }


_PROJECTION: documents.Document = {
    "user": 1,
    "status": 1,
    "cancelled_at": 1,
    "rejected_at": 1,
    "outbox.refused": 1,
}


def _date_or_null(field: str) -> documents.Document:
    """Return an expression for the field's value. It is null if the field is missing or not a date."""
    return {"$cond": [{"$eq": [{"$type": f"${field}"}, "date"]}, f"${field}", None]}


def _key(found: _Found) -> tuple[str, int, int]:
    return found.order.kind, found.time, found.increment


def _read(kind: Kind, d: documents.Document) -> _Found:
    """Return the unfinished order in a document, even if other fields of the document are unreadable."""
    value = d[_FIELDS[kind]]
    since: Any = value
    if kind is Kind.RELEASE_DUE:
        since = next((at for at in (d.get("cancelled_at"), d.get("rejected_at")) if isinstance(at, datetime)), value)
    refused = _rejections(d.get("outbox"))
    order = UnfinishedOrder(
        str(d["_id"]),
        kind.value,
        timestamp(_as_datetime(since)),
        str(d.get("status", "")),
        str(d.get("user", "")),
        refused[0] if kind is Kind.STUCK and refused else UNSET,
    )
    if isinstance(value, Timestamp):
        return _Found(order, value.time, value.inc)
    return _Found(order, (value - EPOCH) // timedelta(milliseconds=1), 0)


def _rejections(outbox: object) -> list[str]:
    """Return why Kafka rejected events in the outbox. What is not a list of entries is ignored."""
    entries = [entry for entry in outbox if isinstance(entry, dict)] if isinstance(outbox, list) else []
    return [str(entry["refused"]) for entry in entries if entry.get("refused")]


def _as_datetime(value: datetime | Timestamp) -> datetime:
    return value.as_datetime() if isinstance(value, Timestamp) else value


def _sort_value(kind: Kind, position: UnfinishedPosition) -> datetime | Timestamp:
    if kind is Kind.PENDING:
        return Timestamp(min(position.time, 2**32 - 1), position.increment)
    return EPOCH + timedelta(milliseconds=position.time)


async def retry_order(deps: Deps, unfinished: UnfinishedOrders, order_id: UUID) -> None:
    """Do at once what is due for the order. Do nothing if nothing is due.

    Rejects an overdue pending order, releases stock, and publishes events, including stuck ones. Publishing is started,
    but not awaited. Raises NotFound if there is no such order. Raises Unavailable if inventory or MongoDB is
    unavailable, or if the order is unreadable.
    """
    if await deps.orders.get_latest(order_id) is None:
        raise NotFound("order", order_id)
    audit.record("order retried", target=f"order {order_id}")
    result = await recover_order(deps, order_id, overdue=await unfinished.is_overdue(order_id))
    if result is Result.UNAVAILABLE:
        raise Unavailable("the work was not finished: inventory or MongoDB is unavailable", order_id=str(order_id))
    if result is Result.ERROR:
        raise Unavailable("the order could not be recovered; the log has the reason", order_id=str(order_id))
    if await unfinished.is_stuck(order_id):
        await deps.relay.outbox.requeue(order_id, None, deps.clock())
    await deps.relay.publish_now(order_id)
