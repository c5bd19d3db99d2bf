"""OrderRepository: stores and reads orders, and changes their status. One document per order.

A change of status is conditional on the current status, and concurrent callers share commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from market.kit.batching import Batcher, BatcherBySize
from market.kit.errors import Unavailable
from market.kit.paging import MAX_COUNT
from market.orders.domain import (
    CONFIRM,
    MAX_LARGE_ORDERS_BATCH_LINES,
    MAX_SMALL_ORDERS_BATCH_LINES,
    SMALL_ORDER_LINES,
    Order,
    OutboxEntry,
    Reason,
    Shortage,
    Status,
    Transition,
    UnreadableOrder,
)
from market.orders.idempotency.keys import IdempotencyKeyRepository, IdempotencyKeyTaken, KeyFieldTaken
from market.orders.listing.pages import PageOutline, Position, Selection
from market.orders.mongodb.collection import OrdersCollection, documents

_DUPLICATE_KEY = 11000
# The maximum number of stored bytes that are read at a time. A decoded order takes four times as many bytes in memory.
_CHUNK_BYTES = 1_048_576


class OrderLookup(NamedTuple):
    """An order to read. `owner`: the user that it must belong to, or None for any user."""

    order_id: UUID
    owner: str | None


class NewDocument(NamedTuple):
    """A pending order to insert, with or without the fields `idempotency_key` and `key` (mongodb/documents.py)."""

    order: Order
    with_idempotency_key: bool = True
    with_key: bool = True

    def without(self, field: str) -> NewDocument:
        """Return the document without the field."""
        if field == "idempotency_key":
            return self._replace(with_idempotency_key=False)
        return self._replace(with_key=False)


def _chunks(sizes: Mapping[UUID, int]) -> Iterator[list[UUID]]:
    """Divide the orders into chunks of at most 1 MiB. A larger order is a chunk of its own."""
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

    def __init__(self, collection: OrdersCollection, keys: IdempotencyKeyRepository, *, instance_id: str) -> None:
        self.collection = collection
        self._keys = keys
        self.instance_id = instance_id
        self._insert: BatcherBySize[NewDocument, None] = BatcherBySize(
            self._insert_many,
            name="orders.insert",
            max_batch_size=128,
            max_concurrency=2,
            cost=_cost,
            small_cost=SMALL_ORDER_LINES,
            max_cost=MAX_SMALL_ORDERS_BATCH_LINES,
            max_large_cost=MAX_LARGE_ORDERS_BATCH_LINES,
        )
        self._transitions: Batcher[documents.ConditionalUpdate, bool] = Batcher(
            self._update_many, name="orders.update", max_batch_size=128, max_concurrency=2
        )
        # Separate from the transitions, because these updates may match nothing. `_update_many` cannot tell which
        # update of a batch did not match, so the outcome of all transitions in the same batch would be unknown.
        self._releases: Batcher[documents.ConditionalUpdate, bool] = Batcher(
            self._update_many, name="orders.release-due", max_batch_size=128
        )
        # The batches are small, because one order may take 1 MiB or more, and four times that once it is decoded.
        self._reads: Batcher[OrderLookup, Order | None] = Batcher(
            self._find_many, name="orders.get", max_batch_size=8, max_concurrency=2, dedupe=True
        )
        self._latest_reads: Batcher[OrderLookup, Order | None] = Batcher(
            self._find_latest, name="orders.get-latest", max_batch_size=8, max_concurrency=2, dedupe=True
        )

    # Placing orders

    async def add(self, order: Order) -> None:
        """Store a pending order. Adding the same order again has no effect. Raises IdempotencyKeyTaken."""
        new = NewDocument(order)
        while True:
            try:
                await self._insert(new)
                return
            except KeyFieldTaken as e:
                if not await self._keys.is_kept_by_another_owner(order, e.field):
                    raise
                # An order of another owner has the same key in this field, and keeps it. Store our order without it.
                new = new.without(e.field)

    async def _insert_many(self, new: list[NewDocument]) -> Sequence[BaseException | None]:
        results: list[BaseException | None] = [None] * len(new)
        errors = await self.collection.insert(
            [
                documents.order_to_document(n.order, with_idempotency_key=n.with_idempotency_key, with_key=n.with_key)
                for n in new
            ]
        )
        for index, error in errors.items():
            if error["code"] != _DUPLICATE_KEY:
                results[index] = Unavailable("the order store rejected the order")
            elif "subject_key" in (pattern := error.get("keyPattern", {})):
                results[index] = IdempotencyKeyTaken()
            elif field := next((name for name in ("idempotency_key", "key") if name in pattern), None):
                results[index] = KeyFieldTaken(field)
            elif "_id" not in pattern:
                results[index] = Unavailable("the order store rejected the order")
            # Otherwise an earlier attempt stored this order.
        return results

    # Reading orders

    async def get(self, order_id: UUID, owner: str | None = None) -> Order | None:
        """Return the order, or None. Raises UnreadableOrder.

        Unlike `get_latest`, this may miss a write that was acknowledged a moment ago.

        owner: return only an order of this user. MongoDB compares the user, so the response time does not reveal
            whether another user has an order with this id.
        """
        return await self._reads(OrderLookup(order_id, owner))

    async def get_latest(self, order_id: UUID, owner: str | None = None) -> Order | None:
        """Return the order, or None. Raises UnreadableOrder.

        Includes every acknowledged write, but is slower than `get` (see `OrdersCollection.find_latest`).

        owner: return only an order of this user, as `get` does.
        """
        return await self._latest_reads(OrderLookup(order_id, owner))

    async def _find_many(self, lookups: list[OrderLookup]) -> Sequence[Order | BaseException | None]:
        filters = [documents.order_filter(order_id, owner) for order_id, owner in lookups]
        if all(owner is None for _, owner in lookups):
            where = {"_id": {"$in": [order_id for order_id, _ in lookups]}} if len(lookups) > 1 else filters[0]
        else:
            where = {"$or": filters} if len(lookups) > 1 else filters[0]
        return self._read_orders(lookups, await self.collection.find(where))

    async def _find_latest(self, lookups: list[OrderLookup]) -> Sequence[Order | BaseException | None]:
        filters = [documents.order_filter(order_id, owner) for order_id, owner in lookups]
        return self._read_orders(lookups, await self.collection.find_latest(filters))

    def _read_orders(
        self, lookups: list[OrderLookup], found_documents: list[documents.Document]
    ) -> Sequence[Order | BaseException | None]:
        """Return each lookup's order: None if the documents do not contain it, or the error if it is unreadable."""
        found = {document["_id"]: document for document in found_documents}
        read: dict[UUID, Order | BaseException] = {}
        for order_id, document in found.items():
            try:
                read[order_id] = self.collection.read_order(document)
            except UnreadableOrder as e:
                read[order_id] = e
        # Compare the owner again: another lookup of the batch may have found the order.
        return [
            read.get(order_id) if owner is None or found.get(order_id, {}).get("user") == owner else None
            for order_id, owner in lookups
        ]

    async def outline_page(
        self, selection: Selection, *, limit: int, offset: int = 0, after: Position | None = None
    ) -> PageOutline:
        """Return which orders are on a page of a list, newest first.

        after: the position at which the previous page ends.
        """
        status = selection.status
        if selection.user is not None:
            where: documents.Document = {
                "user": selection.user,
                "status": status.value if status else {"$ne": Status.REJECTED.value},
            }
        else:
            where = {"status": status.value if status else {"$in": await self._listed_statuses()}}
        page_filter = where | selection.filter_times(after)
        total, sizes = await asyncio.gather(
            self.collection.count(where | selection.filter_times(), limit=MAX_COUNT + 1),
            self._measure(page_filter, offset, limit + 1),
        )
        return PageOutline(page_filter, offset, limit, sizes, min(total, MAX_COUNT), total <= MAX_COUNT)

    async def _listed_statuses(self) -> list[str]:
        """Return the stored statuses except for `rejected`, including those that only a newer version knows.

        A query for these statuses can use the index `status`, which a query for "not rejected" cannot.
        """
        statuses = await self.collection.run(lambda: self.collection.pymongo_collection.distinct("status"))
        return [status for status in statuses if status != Status.REJECTED.value]

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
        """Yield the readable orders from the beginning of the page on. The caller stops when its page is full.

        At most 1 MiB of stored orders, or a single larger order, is read at a time.
        """
        skip, sizes = outline.skip, outline.sizes
        while sizes:
            for chunk in _chunks(sizes):
                for order in await self._find_many([OrderLookup(order_id, None) for order_id in chunk]):
                    if isinstance(order, Order):
                        yield order
            if len(sizes) <= outline.limit:
                return
            # The caller still needs orders, because some of these are unreadable.
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
        """Apply the transition if the order is in its source status. CONFIRM also leases the outbox to this instance.

        Return True if the transition was applied. After False it may or may not have been applied, so the caller has to
        read the order.
        """
        update = documents.transition_update(
            order_id, transition, at=at, entry=entry, reason=reason, shortages=shortages
        )
        if transition is CONFIRM:
            # Take the lease in the same write, so that publishing needs no write of its own.
            update.change["$set"]["claimed_by"] = self.instance_id
            update.change["$currentDate"] = {"claimed_at": True}
        return await self._transitions(update)

    async def transition_and_get(
        self, order_id: UUID, transition: Transition, *, at: datetime, entry: OutboxEntry | None = None
    ) -> Order | None:
        """Apply the transition and return the order as it is afterwards. Raises UnreadableOrder.

        Return None, and change nothing, if the order is not in the source status.
        """
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
        matched = await self.collection.update_each(updates)
        # MongoDB returns only how many updates matched. If one of them did not, every caller has to read its order.
        return [matched == len(updates)] * len(updates)


def _cost(new: NewDocument) -> int:
    return len(new.order.lines)
