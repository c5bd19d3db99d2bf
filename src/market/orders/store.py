"""All queries to MongoDB: the collection `orders`, one document per order.

Writes are `w: majority`, journaled, and conditional on the status; many callers' writes go out together.
What decides is read by id with `linearizable`; loops scan with `majority`. Times that loops compare are
the server's own, so that a pod with a wrong clock neither rejects orders under way nor steals claims.

Beside the order itself a document has: `since` (server's time of the intent), `release_due` (server's time
of the last attempt), `outbox`, `unsent_since`, `claimed_by`, `claimed_at`, `stuck_since`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pymongo
from bson import Timestamp
from msgspec import Struct
from pymongo import InsertOne, ReturnDocument, UpdateOne
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.read_concern import ReadConcern

from market.contracts import events
from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.resilience import CircuitBreaker, reraise_if_cancelled
from market.orders.documents import Document, Unreadable, document_of, entry_document, order_of, read_order, update_of
from market.orders.domain import CONFIRM, Entry, Move, Order, Reason, Shortage, Status
from market.orders.mongo import collection

T = TypeVar("T")

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)


class KeyTaken(Exception):
    """Another order has the idempotency key."""


class Listed(Struct, frozen=True):
    """A page as far as it goes, and how many there are in all."""

    orders: list[Order]
    total: int


class Figures(Struct, frozen=True):
    """What waits; counts stop at 10,000. Ages in seconds."""

    pending: int
    pending_age: float
    unsent: int
    unsent_age: float
    releases: int
    stuck: int


class Store:
    """Owns the collection and the queues of what goes out together. `me` names this process in claims."""

    def __init__(self, database: AsyncDatabase[Document], *, seconds: float, me: str) -> None:
        orders = collection(database)
        self.me = me
        self._database = database
        self._orders = orders
        self._deciding = orders.with_options(read_concern=ReadConcern("linearizable"))
        self._seconds = seconds
        self._circuit = CircuitBreaker("mongodb", failures=10, open_seconds=0.5, slow_after_seconds=seconds / 2)
        self._add: Batcher[Order, None] = Batcher(
            self._insert_many, name="orders.insert", max_batch_size=128, max_concurrency=2, cost=_weight, max_cost=4000
        )
        self._move: Batcher[tuple[UUID, Document, Document], bool] = Batcher(
            self._update_many, name="orders.update", max_batch_size=128, max_concurrency=2
        )
        # Apart from the moves: one of these that matches nothing must not make a batch of moves read again.
        self._settle: Batcher[tuple[UUID, Document, Document], bool] = Batcher(
            self._update_many, name="orders.settle", max_batch_size=128
        )
        self._keys: Batcher[str, tuple[UUID, bytes] | None] = Batcher(
            self._find_keys, name="orders.keys", max_batch_size=128, max_concurrency=2, dedupe=True
        )
        self._get: Batcher[UUID, Order | None] = Batcher(
            self._find_many, name="orders.get", max_batch_size=32, max_concurrency=4, dedupe=True
        )

    async def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The operation's result within its time. Raises Unavailable: the outcome is open. A KeyTaken or
        BulkWriteError is the operation's own."""

        async def timed() -> T:
            left = context.remaining(self._seconds)
            if left <= 0:
                raise DeadlineExceeded("the caller's time is over")
            try:
                with pymongo.timeout(left):
                    return await work()
            except BulkWriteError:
                raise
            except PyMongoError as e:
                reraise_if_cancelled()
                if e.timeout:
                    raise DeadlineExceeded("the order store did not answer in time") from e
                raise Unavailable("the order store does not answer") from e

        return await self._circuit(timed)

    @property
    def is_open(self) -> bool:
        """Whether calls are refused here, because the store did not answer lately."""
        return self._circuit.is_open

    # -- intents

    async def add(self, order: Order) -> None:
        """The intent is stored; also when it was before. Raises KeyTaken, or Unavailable when it may be stored or not."""
        await self._add(order)

    async def _insert_many(self, orders: list[Order]) -> Sequence[BaseException | None]:
        results: list[BaseException | None] = [None] * len(orders)
        documents = [document_of(order) for order in orders]

        async def insert() -> None:
            # Not insert_many: it adds nothing but a check for _id.
            await self._orders.bulk_write([InsertOne(d) for d in documents], ordered=False)

        try:
            await self._run(insert)
        except BulkWriteError as e:
            _unless_durable(e)
            for error in e.details["writeErrors"]:
                if error["code"] != 11000:
                    results[error["index"]] = Unavailable("the order store refused the order")
                elif "key" in error.get("keyPattern", {}):
                    results[error["index"]] = KeyTaken()
                # Else the id is there: our own earlier attempt.
        return results

    async def by_key(self, key: str) -> tuple[UUID, bytes] | None:
        """The id of the order that has the key, and its request's digest."""
        return await self._keys(key)

    async def _find_keys(self, keys: list[str]) -> Sequence[tuple[UUID, bytes] | None]:
        async def find() -> list[Document]:
            return await self._orders.find({"key": {"$in": keys}}, {"key": 1, "digest": 1}).to_list()

        found = {d["key"]: (d["_id"], bytes(d["digest"])) for d in await self._run(find)}
        return [found.get(key) for key in keys]

    # -- reads

    async def get(self, id: UUID) -> Order | None:
        """The order, as a majority of the servers has it."""
        return await self._get(id)

    async def _find_many(self, ids: list[UUID]) -> Sequence[Order | None]:
        async def find() -> list[Document]:
            return await self._orders.find({"_id": {"$in": ids}} if len(ids) > 1 else {"_id": ids[0]}).to_list()

        found = {d["_id"]: order_of(d) for d in await self._run(find)}
        return [found.get(id) for id in ids]

    async def read(self, id: UUID) -> Order | None:
        """The order as it is and no longer changes behind our back: for decisions. Dearer than `get`."""
        document = await self._run(lambda: self._deciding.find_one({"_id": id}))
        return order_of(document) if document else None

    async def listed(
        self, user: str, statuses: Sequence[Status], *, limit: int, offset: int, fits: Callable[[Order], bool]
    ) -> Listed:
        """The user's orders, newest first, as long as `fits` takes them."""
        where = {"user": user, "status": {"$in": [s.value for s in statuses]}}

        async def find() -> list[Order]:
            orders: list[Order] = []
            cursor = self._orders.find(where, sort=[("created_at", -1), ("_id", -1)], limit=limit, skip=offset)
            async with cursor:
                async for document in cursor:
                    order = order_of(document)
                    if not fits(order):
                        break
                    orders.append(order)
            return orders

        total = await self._run(lambda: self._orders.count_documents(where))
        return Listed(await self._run(find) if total > offset else [], total)

    # -- moves

    async def move(
        self,
        id: UUID,
        move: Move,
        *,
        at: datetime,
        entry: Entry | None = None,
        reason: Reason | None = None,
        shortages: Sequence[Shortage] = (),
    ) -> bool:
        """True: it was in the move's source, and is moved. False: it is not known to be; read it. Raises Unavailable."""
        where, change = update_of(id, move, at=at, entry=entry, reason=reason, shortages=shortages)
        if move is CONFIRM:
            # The events of an order that is confirmed here are published from here, without a claim of its own.
            change["$set"]["claimed_by"] = self.me
            change["$currentDate"] = {"claimed_at": True}
        return await self._move((id, where, change))

    async def move_and_read(self, id: UUID, move: Move, *, at: datetime, entry: Entry | None = None) -> Order | None:
        """As `move`, with the order as it is afterwards; None: it was not in the move's source."""
        where, change = update_of(id, move, at=at, entry=entry)
        found = await self._run(
            lambda: self._orders.find_one_and_update(where, change, return_document=ReturnDocument.AFTER)
        )
        return order_of(found) if found else None

    async def released(self, id: UUID) -> None:
        """Inventory has given the goods back: nothing is due any more."""
        await self._settle((id, {"_id": id, "release_due": {"$exists": True}}, {"$unset": {"release_due": 1}}))

    async def release_failed(self, id: UUID) -> None:
        """Puts the order to the end of the line of those whose goods are due."""
        await self._settle((id, {"_id": id, "release_due": {"$exists": True}}, {"$currentDate": {"release_due": True}}))

    async def _update_many(self, updates: list[tuple[UUID, Document, Document]]) -> Sequence[bool | BaseException]:
        matched = await self._bulk([UpdateOne(where, change) for _, where, change in updates])
        # A bulk write answers a count. Where it falls short nobody knows whose is missing: each caller reads.
        return [matched == len(updates)] * len(updates)

    # -- the outbox

    async def cleared(self, sent: Sequence[tuple[UUID, UUID]]) -> list[Order]:
        """Removes exactly those entries (order id, event id). Answers the orders of ours that have further events."""
        if not sent:
            return []
        empty = {"outbox": 1, "unsent_since": 1, "claimed_by": 1, "claimed_at": 1, "stuck_since": 1}
        updates = [UpdateOne({"_id": o, "outbox.id": e, "outbox": {"$size": 1}}, {"$unset": empty}) for o, e in sent]

        if await self._bulk(updates) == len(sent):
            return []
        left = []
        for order_id, event_id in sent:
            if order := await self._pull(order_id, event_id):
                left.append(order)
        return left

    async def _pull(self, order_id: UUID, event_id: UUID) -> Order | None:
        change: Document = {"$pull": {"outbox": {"id": event_id}}}
        mine = {"_id": order_id, "outbox.id": event_id, "claimed_by": self.me}
        renewed = {**change, "$currentDate": {"claimed_at": True}}
        found = await self._run(
            lambda: self._orders.find_one_and_update(mine, renewed, return_document=ReturnDocument.AFTER)
        )
        if found is None:
            # Claimed by another meanwhile, or gone already.
            await self._run(lambda: self._orders.update_one({"_id": order_id, "outbox.id": event_id}, change))
            await self._tidy(order_id)
            return None
        if found["outbox"]:
            return order_of(found)
        await self._tidy(order_id)
        return None

    async def _tidy(self, order_id: UUID) -> None:
        empty = {"outbox": 1, "unsent_since": 1, "claimed_by": 1, "claimed_at": 1, "stuck_since": 1}
        await self._run(lambda: self._orders.update_one({"_id": order_id, "outbox": {"$size": 0}}, {"$unset": empty}))

    async def claim(self, id: UUID, claim_seconds: float, now: datetime) -> Order | None:
        """The order, if its events are nobody's just now: they are ours for `claim_seconds` of the server's time."""
        free = {
            "_id": id,
            "unsent_since": {"$exists": True},
            "claimed_at": {"$not": {"$gte": now - timedelta(seconds=claim_seconds)}},
        }
        return await self._claim(free)

    async def claimed(self, id: UUID) -> Order | None:
        """The order, if its events are claimed by us; the claim begins anew."""
        return await self._claim({"_id": id, "unsent_since": {"$exists": True}, "claimed_by": self.me})

    async def _claim(self, where: Document) -> Order | None:
        change = {"$set": {"claimed_by": self.me}, "$currentDate": {"claimed_at": True}}
        found = await self._run(
            lambda: self._orders.find_one_and_update(where, change, return_document=ReturnDocument.AFTER)
        )
        return order_of(found) if found else None

    async def give_back(self, ids: Sequence[UUID]) -> None:
        """Ends our claims on those orders' events, where they are still ours: another relay may have them by now."""
        free = {"claimed_by": 1, "claimed_at": 1}
        updates = [UpdateOne({"_id": id, "claimed_by": self.me}, {"$unset": free}) for id in ids]
        await self._bulk(updates)

    async def _bulk(self, updates: Sequence[UpdateOne]) -> int:
        """How many matched. Raises Unavailable, also where the server took only some, or could not make sure of them."""

        async def write() -> int:
            return (await self._orders.bulk_write(updates, ordered=False)).matched_count

        try:
            return await self._run(write)
        except BulkWriteError as e:
            raise Unavailable("the order store did not take all of the changes") from e

    async def refused(self, order_id: UUID, event_id: UUID, reason: str, at: datetime) -> None:
        """Kafka will never take this event: it stays, with the reason, and is not tried again by itself."""
        where = {"_id": order_id, "outbox.id": event_id}
        change = {
            "$set": {"outbox.$.refused": reason, "outbox.$.refused_at": at, "stuck_since": at},
            "$unset": {"unsent_since": 1, "claimed_by": 1, "claimed_at": 1},
        }
        await self._run(lambda: self._orders.update_one(where, change))

    async def unsent(
        self, claim_seconds: float, now: datetime, limit: int, *, after: datetime | None = None
    ) -> tuple[list[UUID], datetime | None]:
        """Orders whose events nobody publishes just now and wait since later than `after`, oldest first; and the `after` to go
        on with, None: there are no more."""
        where = {
            "unsent_since": {"$gt": after or _NEVER},
            "claimed_at": {"$not": {"$gte": now - timedelta(seconds=claim_seconds)}},
        }

        async def find() -> list[Document]:
            return await self._orders.find(
                where, {"unsent_since": 1}, sort=[("unsent_since", 1)], limit=limit
            ).to_list()

        found = await self._run(find)
        return [d["_id"] for d in found], found[-1]["unsent_since"] if len(found) == limit else None

    async def publish_again(self, id: UUID, entry: Entry | None, at: datetime) -> bool:
        """Lets the relay publish the order's events, refused ones too, `entry` among them. Whether there was anything."""
        change: Document = {
            "$set": {"unsent_since": at},
            "$unset": {"claimed_by": 1, "claimed_at": 1, "stuck_since": 1},
        }
        where: Document = {"_id": id, "outbox.0": {"$exists": True}}
        if entry is not None:
            at_front = {"$position": 0} if entry.type == events.CREATED else {}
            change["$push"] = {"outbox": {"$each": [entry_document(entry)], **at_front}}
            where = {"_id": id, "outbox.id": {"$ne": entry.id}}
        result = await self._run(lambda: self._orders.update_one(where, change))
        return bool(result.matched_count)

    # -- what the loops look for

    async def now(self) -> datetime:
        """The server's time."""
        answer = await self._run(lambda: self._database.command("hello"))
        at: datetime = answer["localTime"]
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    async def overdue(self, before: datetime, limit: int) -> list[UUID]:
        """Orders that are pending since before then, oldest first."""
        return await self._ids({"status": Status.PENDING.value, "since": {"$lt": Timestamp(before, 0)}}, "since", limit)

    async def releases(self, before: datetime, limit: int) -> list[UUID]:
        """Orders whose goods are due, last tried before then."""
        return await self._ids({"release_due": {"$lt": before}}, "release_due", limit)

    async def _ids(self, where: Document, sort: str, limit: int) -> list[UUID]:
        async def find() -> list[Document]:
            return await self._orders.find(where, {"_id": 1}, sort=[(sort, 1)], limit=limit).to_list()

        return [d["_id"] for d in await self._run(find)]

    async def figures(self) -> Figures:
        """What waits, for the metrics."""
        now = await self.now()
        most = 10_000

        async def count(where: Document) -> int:
            return await self._run(lambda: self._orders.count_documents(where, limit=most))

        async def first(where: Document, sort: str) -> Any:
            found = await self._run(lambda: self._orders.find_one(where, {sort: 1}, sort=[(sort, 1)]))
            return found[sort] if found else None

        pending = {"status": Status.PENDING.value, "since": {"$gt": Timestamp(0, 1)}}
        unsent = {"unsent_since": {"$gt": _NEVER}}
        since = await first(pending, "since")
        unsent_since = await first(unsent, "unsent_since")
        return Figures(
            pending=await count(pending),
            pending_age=max(0.0, (now - since.as_datetime()).total_seconds()) if since else 0.0,
            unsent=await count(unsent),
            unsent_age=max(0.0, (now - unsent_since).total_seconds()) if unsent_since else 0.0,
            releases=await count({"release_due": {"$gt": _NEVER}}),
            stuck=await count({"stuck_since": {"$gt": _NEVER}}),
        )

    async def after(self, id: UUID | None, limit: int) -> list[Order | Unreadable]:
        """Orders in order of id, from the first above `id`: for reconciliation."""

        async def find() -> list[Document]:
            above = {"$gt": id} if id else {"$gte": _FIRST_ID}
            return await self._orders.find(
                {"_id": {**above, "$lte": _LAST_ID}}, sort=[("_id", 1)], limit=limit
            ).to_list()

        return [read_order(d) for d in await self._run(find)]

    async def foreign(self, limit: int) -> list[str]:
        """Ids that are no UUID: of documents that another program wrote. No order has one."""
        where = {"$or": [{"_id": {"$not": {"$gte": _FIRST_ID}}}, {"_id": {"$not": {"$lte": _LAST_ID}}}]}

        async def find() -> list[Document]:
            return await self._orders.find(where, {"_id": 1}, limit=limit).to_list()

        return [repr(d["_id"]) for d in await self._run(find)]

    async def estimate(self) -> int:
        """About how many orders there are."""
        return await self._run(lambda: self._orders.estimated_document_count())


def _unless_durable(e: BulkWriteError) -> None:
    """Raises Unavailable where the write itself may be undone, or was not all answered."""
    if e.details.get("writeConcernErrors"):
        raise Unavailable("the order store could not make sure of the write") from e


def _weight(order: Order) -> int:
    return len(order.lines)
