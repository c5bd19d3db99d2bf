"""OrderRepository: stores and reads orders, and changes their status. One document per order.

A change of status is conditional on the current status, and concurrent callers share bulk writes. Ages are measured by
MongoDB's clock, so that an instance with a wrong clock cannot reject orders in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from market.kit.batching import Batcher, BatcherBySize
from market.kit.errors import Unavailable
from market.kit.paging import MAX_COUNT
from market.orders.domain import (
    CONFIRM,
    KEY_HOLDING_STATUSES,
    MAX_BATCH_LINES,
    MAX_LARGE_BATCH_LINES,
    SMALL_ORDER_LINES,
    Order,
    OutboxEntry,
    Reason,
    Shortage,
    Status,
    Transition,
    UnreadableOrder,
)
from market.orders.mongodb.collection import EPOCH, OrdersCollection, documents

_DUPLICATE_KEY = 11000
# The maximum number of stored bytes that are read at a time. Decoded, an order takes four times its stored size.
_CHUNK_BYTES = 1_048_576


class IdempotencyKeyTaken(Exception):
    """Another order has the idempotency key: one of this user or, temporarily, a pending one of another user."""


class SharedKeyTaken(IdempotencyKeyTaken):
    """Another order, of any user, has the key in the field `key`, which earlier versions use."""


class UserKey(NamedTuple):
    """An idempotency key with the user that it belongs to."""

    user: str
    key: str


class NewDocument(NamedTuple):
    """A pending order to insert, with or without the key field of earlier versions (mongodb/documents.py)."""

    order: Order
    shared_key: bool


class IdempotencyKeyHolder(Struct, frozen=True):
    """The order that has an idempotency key, and the digest of the request that placed it."""

    order_id: UUID
    digest: bytes


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

    def filter_following(self) -> documents.Document:
        """Return the filter for the orders that follow in the list: the older ones."""
        time = EPOCH + self.created_at * _MILLISECOND
        # The first condition bounds the scan of the index, the second one decides between orders of the same time.
        return {"created_at": {"$lte": time}, "$or": [{"created_at": {"$lt": time}}, {"_id": {"$lt": self.order_id}}]}


class PageOutline(Struct, frozen=True):
    """Which orders are on a page of a list, without their content.

    page_filter: the MongoDB filter of the page; for a page after a cursor, it matches only what follows the cursor
    skip: how many of the matching orders come before the page
    limit: the maximum number of orders on the page
    sizes: the stored bytes of each order by id, newest first: the page's orders, and the first one after them
    total: the number of orders in the whole list; a lower bound if `total_exact` is False
    """

    page_filter: documents.Document
    skip: int
    limit: int
    sizes: dict[UUID, int]
    total: int
    total_exact: bool


def _chunks(sizes: Mapping[UUID, int]) -> Iterator[list[UUID]]:
    """Divide the orders into chunks of at most 1 MiB, or of one order."""
    chunk: list[UUID] = []
    size = 0
    for order_id, order_size in sizes.items():
        if chunk and size + order_size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(order_id)
        size += order_size
    if chunk:
        yield chunk


class OrderRepository:
    """The orders in MongoDB. Owns the queues in which the operations of concurrent callers are batched.

    `instance_id` identifies this instance of the service as the owner of outbox leases. Every method may raise
    Unavailable; the outcome of a write is then unknown.
    """

    def __init__(self, collection: OrdersCollection, *, instance_id: str) -> None:
        self.collection = collection
        self.instance_id = instance_id
        self._insert: BatcherBySize[NewDocument, None] = BatcherBySize(
            self._insert_many,
            name="orders.insert",
            max_batch_size=128,
            max_concurrency=2,
            cost=_cost,
            small_cost=SMALL_ORDER_LINES,
            max_cost=MAX_BATCH_LINES,
            max_large_cost=MAX_LARGE_BATCH_LINES,
        )
        self._transitions: Batcher[documents.ConditionalUpdate, bool] = Batcher(
            self._update_many, name="orders.update", max_batch_size=128, max_concurrency=2
        )
        # Separate from the transitions, because these updates may match nothing. `_update_many` cannot tell which
        # update of a batch did not match, so the outcome of all transitions in the same batch would be unknown.
        self._releases: Batcher[documents.ConditionalUpdate, bool] = Batcher(
            self._update_many, name="orders.release-due", max_batch_size=128
        )
        self._idempotency_keys: Batcher[UserKey, IdempotencyKeyHolder | None] = Batcher(
            self._find_idempotency_keys, name="orders.keys", max_batch_size=128, max_concurrency=2, dedupe=True
        )
        # Small, because an order may take up 1 MiB, and four times that once decoded.
        self._reads: Batcher[UUID, Order | None] = Batcher(
            self._find_many, name="orders.get", max_batch_size=8, max_concurrency=2, dedupe=True
        )

    # Placing orders

    async def add(self, order: Order) -> None:
        """Store a pending order. Adding the same order again has no effect. Raises IdempotencyKeyTaken."""
        try:
            await self._insert(NewDocument(order, shared_key=True))
        except SharedKeyTaken:
            if not await self._is_key_of_another_user(order):
                raise
            await self._insert(NewDocument(order, shared_key=False))

    async def _is_key_of_another_user(self, order: Order) -> bool:
        """Return whether another user's order has permanently taken the key in the field `key`.

        This is not so while that order is pending: it may still be rejected. Then `key` would be free, and an earlier
        version, which does not read `idempotency_key`, would place this order a second time.
        """
        found = await self.collection.find({"key": order.idempotency_key}, {"user": 1, "status": 1})
        return any(d["user"] != order.user and d["status"] in KEY_HOLDING_STATUSES for d in found)

    async def _insert_many(self, new: list[NewDocument]) -> Sequence[BaseException | None]:
        results: list[BaseException | None] = [None] * len(new)
        inserts = [InsertOne(documents.order_to_document(n.order, shared_key=n.shared_key)) for n in new]

        async def insert() -> None:
            # Not insert_many, which does the same after checking every document for an _id.
            await self.collection.pymongo_collection.bulk_write(inserts, ordered=False)

        try:
            await self.collection.run(insert)
        except BulkWriteError as e:
            if e.details.get("writeConcernErrors"):
                raise Unavailable("the order store could not make the write durable") from e
            for error in e.details["writeErrors"]:
                if error["code"] != _DUPLICATE_KEY:
                    results[error["index"]] = Unavailable("the order store rejected the order")
                elif "key" in error.get("keyPattern", {}):
                    results[error["index"]] = SharedKeyTaken()
                elif "idempotency_key" in error.get("keyPattern", {}):
                    results[error["index"]] = IdempotencyKeyTaken()
                # Otherwise the id exists already: an earlier attempt stored this order.
        return results

    async def find_by_idempotency_key(self, user: str, key: str) -> IdempotencyKeyHolder | None:
        """Return the user's order that has the idempotency key, or None if the key is free for this user."""
        return await self._idempotency_keys(UserKey(user, key))

    async def _find_idempotency_keys(self, user_keys: list[UserKey]) -> Sequence[IdempotencyKeyHolder | None]:
        keys = list({user_key.key for user_key in user_keys})
        by_user = {
            "user": {"$in": list({user_key.user for user_key in user_keys})},
            "idempotency_key": {"$in": keys},
            "digest": {"$exists": True},
        }
        # The orders of earlier versions have only `key`.
        where = {"$or": [by_user, {"key": {"$in": keys}}]}
        found = await self.collection.find(where, {"user": 1, "idempotency_key": 1, "key": 1, "digest": 1})
        holders = {
            (d["user"], documents.held_key(d)): IdempotencyKeyHolder(d["_id"], bytes(d["digest"]))
            for d in found
            if isinstance(d.get("digest"), bytes)
        }
        return [holders.get(user_key) for user_key in user_keys]

    # Reading orders

    async def get(self, order_id: UUID) -> Order | None:
        """Return the order, or None. It may miss a write that was acknowledged a moment ago; `get_latest` does not.

        Raises UnreadableOrder.
        """
        return await self._reads(order_id)

    async def _find_many(self, order_ids: list[UUID]) -> Sequence[Order | BaseException | None]:
        where = {"_id": {"$in": order_ids}} if len(order_ids) > 1 else {"_id": order_ids[0]}
        orders: dict[UUID, Order | BaseException] = {}
        for document in await self.collection.find(where):
            try:
                orders[document["_id"]] = self.collection.read_order(document)
            except UnreadableOrder as e:
                orders[document["_id"]] = e
        return [orders.get(order_id) for order_id in order_ids]

    async def get_latest(self, order_id: UUID) -> Order | None:
        """Return the order, or None, with a linearizable read: no acknowledged write is missed. Slower than `get`."""
        document = await self.collection.find_latest(order_id)
        return self.collection.read_order(document) if document else None

    async def list_for_user(
        self,
        user: str,
        status: Status | None,
        *,
        limit: int,
        offset: int = 0,
        after: Position | None = None,
    ) -> PageOutline:
        """Return which orders are on a page of a user's list, newest first.

        status: only orders with this status. None: all but rejected ones, including those with an unknown status.
        after: the position at which the previous page ends.
        """
        where: documents.Document = {"user": user, "status": status.value if status else {"$ne": Status.REJECTED.value}}
        page_filter = where if after is None else where | after.filter_following()
        total, sizes = await asyncio.gather(
            self.collection.count(where, limit=MAX_COUNT + 1), self._measure(page_filter, offset, limit + 1)
        )
        return PageOutline(page_filter, offset, limit, sizes, min(total, MAX_COUNT), total <= MAX_COUNT)

    async def _measure(self, where: documents.Document, skip: int, limit: int) -> dict[UUID, int]:
        """Return the stored bytes of orders by id, newest first."""
        pipeline: list[documents.Document] = [
            {"$match": where},
            {"$sort": {"created_at": -1, "_id": -1}},
            {"$skip": skip},
            {"$limit": limit},
            {"$project": {"size": {"$bsonSize": "$$ROOT"}}},
        ]

        async def run() -> dict[UUID, int]:
            async with await self.collection.pymongo_collection.aggregate(pipeline) as cursor:
                return {document["_id"]: document["size"] async for document in cursor}

        return await self.collection.run(run)

    async def read_page(self, outline: PageOutline) -> AsyncIterator[Order]:
        """Yield the readable orders of a page, and later ones that fill the places of unreadable orders.

        Orders that follow the page may be yielded as well: the caller stops after `limit` orders. At most 1 MiB of
        stored orders is read at a time, or a single larger order.
        """
        skip, sizes = outline.skip, outline.sizes
        while sizes:
            for chunk in _chunks(sizes):
                for order in await self._find_many(chunk):
                    if isinstance(order, Order):
                        yield order
            if len(sizes) <= outline.limit:
                return
            # Unreadable orders were skipped, so more orders are needed to fill the page.
            skip += len(sizes)
            sizes = await self._measure(outline.page_filter, skip, outline.limit + 1)

    # Status changes

    async def transition(
        self,
        order_id: UUID,
        transition: Transition,
        *,
        at: datetime,
        entry: OutboxEntry | None = None,
        reason: Reason | None = None,
        shortages: Sequence[Shortage] = (),
    ) -> bool:
        """Apply the transition if the order is in its source status. Return True if it was applied.

        False means that it may or may not have been applied: read the order. CONFIRM also leases the order's outbox to
        this instance.
        """
        update = documents.transition_update(
            order_id, transition, at=at, entry=entry, reason=reason, shortages=shortages
        )
        if transition is CONFIRM:
            # The lease is taken in the same write, so that publishing does not need a separate one.
            update.change["$set"]["claimed_by"] = self.instance_id
            update.change["$currentDate"] = {"claimed_at": True}
        return await self._transitions(update)

    async def transition_and_get(
        self, order_id: UUID, transition: Transition, *, at: datetime, entry: OutboxEntry | None = None
    ) -> Order | None:
        """Apply the transition and return the order as it is afterwards; None if it was not in the source status."""
        update = documents.transition_update(order_id, transition, at=at, entry=entry)
        document = await self.collection.update_and_get(update.where, update.change)
        return self.collection.read_order(document) if document else None

    async def clear_release_due(self, order_id: UUID) -> None:
        """Record that inventory has released the order's stock."""
        await self._releases(
            documents.ConditionalUpdate(
                {"_id": order_id, "release_due": {"$exists": True}}, {"$unset": {"release_due": 1}}
            )
        )

    async def postpone_release(self, order_id: UUID) -> None:
        """Put the order at the end of the queue of stock releases that are due."""
        await self._releases(
            documents.ConditionalUpdate(
                {"_id": order_id, "release_due": {"$exists": True}}, {"$currentDate": {"release_due": True}}
            )
        )

    async def _update_many(self, updates: list[documents.ConditionalUpdate]) -> Sequence[bool]:
        matched = await self.collection.bulk_update([UpdateOne(u.where, u.change) for u in updates])
        # A bulk write returns only how many matched. If some did not, every caller has to read its order.
        return [matched == len(updates)] * len(updates)


def _cost(new: NewDocument) -> int:
    return len(new.order.lines)
