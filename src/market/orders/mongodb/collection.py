"""The collection `orders`, as all repositories use it: with deadline, circuit breaker and error mapping.

Writes are acknowledged once a majority of the servers has written them to the journal. Reads return majority-committed
data, which may be outdated while another server becomes the primary. Only `find_latest` returns every acknowledged
write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import pymongo
from bson import CodecOptions, Timestamp
from bson.binary import UuidRepresentation
from pymongo import ReadPreference, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from market.kit import context
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.process import logs
from market.kit.resilience import CircuitBreaker, backoff, reraise_if_cancelled
from market.orders.config import MongoDB
from market.orders.domain import Order, UnreadableOrder
from market.orders.metrics import UNREADABLE

# Re-exported: other packages import mongodb only through this module.
from market.orders.mongodb import documents as documents
from market.orders.mongodb.documents import Document

log = logs.get_logger("orders")

T = TypeVar("T")
Sort = Sequence[tuple[str, int]]

# Earlier than every stored time. The condition {"$gt": EPOCH} matches the documents that have the field.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The same for fields of BSON's type Timestamp.
MIN_TIMESTAMP = Timestamp(0, 1)
_MAX_LOGGED_UNREADABLE = 1000
# The code of MongoDB's errors for missing privileges.
_UNAUTHORIZED = 13
# The codes of its errors for a server that is no longer, or not yet, the primary, or is shutting down. If this happens
# while a write waits for a majority, the error is in the response to the write.
_NOT_PRIMARY = frozenset({91, 189, 10107, 11600, 11602, 13435, 13436})
# The maximum pause before a write is sent again for the second time, and each time after that.
_MAX_PAUSE_SECONDS = 0.2
_CODEC: CodecOptions[Document] = CodecOptions(tz_aware=True, uuid_representation=UuidRepresentation.STANDARD)


def create_client(config: MongoDB) -> AsyncMongoClient[Document]:
    """Return a client that connects, and reconnects, automatically.

    An operation fails after `timeout_seconds`. If a connection breaks, the driver retries the operation within this
    time. MongoDB applies a retried write only once (retryable writes). `OrdersCollection` itself repeats the writes of
    `insert`, `update_each` and `update_all`.
    """
    return AsyncMongoClient(
        config.uri,
        appname="market.orders",
        maxPoolSize=config.pool_size,
        minPoolSize=2,
        maxConnecting=8,
        timeoutMS=int(config.timeout_seconds * 1000),
        serverSelectionTimeoutMS=int(config.timeout_seconds * 1000),
        connectTimeoutMS=2000,
        heartbeatFrequencyMS=1000,
        retryWrites=True,
        retryReads=True,
        tz_aware=True,
        uuidRepresentation="standard",
    )


class OrdersCollection:
    """Runs every operation within the caller's deadline (at most `timeout_seconds`) and behind one circuit breaker.

    Methods may raise DeadlineExceeded or Unavailable; the outcome of a write is then unknown. `pymongo_collection` is
    PyMongo's own collection, to be called inside `run`. Only indexes.py calls it outside of `run`, before the service
    starts.
    """

    def __init__(self, database: AsyncDatabase[Document], *, timeout_seconds: float) -> None:
        self.pymongo_collection = database.get_collection(
            "orders",
            codec_options=_CODEC,
            write_concern=WriteConcern(w="majority", j=True),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )
        self._linearizable = self.pymongo_collection.with_options(read_concern=ReadConcern("linearizable"))
        # Contains one document, a counter: see `find_latest`.
        self._barriers = database.get_collection("barriers", write_concern=self.pymongo_collection.write_concern)
        self._logged_unauthorized = False
        self._database = database
        self._timeout_seconds = timeout_seconds
        self._circuit = CircuitBreaker(
            "mongodb", failure_threshold=10, open_seconds=0.5, ignore_deadlines_below_seconds=timeout_seconds / 2
        )
        self._logged_unreadable: set[UUID] = set()

    def read_order(self, document: Document) -> Order:
        """Return the order in a document. Raises UnreadableOrder, after counting it and logging it once per order."""
        try:
            return documents.document_to_order(document)
        except UnreadableOrder as e:
            UNREADABLE.inc()
            if e.order_id not in self._logged_unreadable:
                if len(self._logged_unreadable) >= _MAX_LOGGED_UNREADABLE:
                    self._logged_unreadable.clear()
                self._logged_unreadable.add(e.order_id)
                log.error("order unreadable", order_id=str(e.order_id), reason=e.reason)
            raise

    async def run(self, operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the operation and return its result."""

        async def timed() -> T:
            seconds = context.remaining(self._timeout_seconds)
            if seconds <= 0:
                raise DeadlineExceeded("deadline exceeded")
            try:
                with pymongo.timeout(seconds):
                    return await operation()
            except PyMongoError as e:
                reraise_if_cancelled()
                if e.timeout:
                    raise DeadlineExceeded("the order store did not respond in time") from e
                raise Unavailable("the order store is unavailable") from e

        return await self._circuit(timed)

    async def find(
        self,
        where: Mapping[str, Any],
        projection: Mapping[str, Any] | None = None,
        *,
        sort: Sort | None = None,
        limit: int = 0,
        skip: int = 0,
    ) -> list[Document]:
        """Return all matching documents, or the first `limit` after `skip`."""
        return await self.run(
            lambda: self.pymongo_collection.find(where, projection, sort=sort, limit=limit, skip=skip).to_list()
        )

    async def aggregate(self, pipeline: Sequence[Document]) -> list[Document]:
        """Run the aggregation pipeline, and return all documents of its result."""

        async def run() -> list[Document]:
            async with await self.pymongo_collection.aggregate(pipeline) as cursor:
                return await cursor.to_list()

        return await self.run(run)

    async def stream(
        self,
        where: Mapping[str, Any],
        projection: Mapping[str, Any] | None = None,
        *,
        sort: Sort,
        limit: int = 0,
        batch_size: int,
    ) -> AsyncIterator[Document]:
        """Yield all matching documents, or the first `limit`. Each batch is fetched with a deadline of its own."""
        cursor = self.pymongo_collection.find(where, projection, sort=sort, limit=limit, batch_size=batch_size)
        async with cursor:
            while batch := await self.run(lambda: cursor.to_list(batch_size)):
                for document in batch:
                    yield document

    async def find_one(self, where: Mapping[str, Any], projection: Mapping[str, Any], *, sort: Sort) -> Document | None:
        """Return the first matching document, or None."""
        return await self.run(lambda: self.pymongo_collection.find_one(where, projection, sort=sort))

    async def find_latest(self, filters: Sequence[Mapping[str, Any]]) -> list[Document]:
        """Return the documents that match one of the filters, including every write acknowledged before the call.

        Increments a counter (the barrier) first, and reads in the same causally consistent session. If the server is no
        longer the primary, the increment fails with DeadlineExceeded or Unavailable. docs/decisions/0020 says why this
        is sufficient.

        filters: each must contain an `_id`.
        """

        async def read() -> list[Document]:
            async with self._database.client.start_session(causal_consistency=True) as session:
                try:
                    # The update must change something: MongoDB does not replicate an update that changes nothing.
                    await self._barriers.update_one(
                        {"_id": "orders"}, {"$inc": {"count": 1}}, upsert=True, session=session
                    )
                except OperationFailure as e:
                    if e.code != _UNAUTHORIZED:
                        raise
                    return await self._find_linearizable(filters)
                where = {"$or": filters} if len(filters) > 1 else filters[0]
                return await self.pymongo_collection.find(where, session=session).to_list()

        return await self.run(read)

    async def _find_linearizable(self, filters: Sequence[Mapping[str, Any]]) -> list[Document]:
        """Return what `find_latest` returns, without using the barrier. Takes about 0.1 s.

        Used if the service's MongoDB account may not write to the collection `barriers`. Earlier releases did not need
        this privilege.
        """
        if not self._logged_unauthorized:
            self._logged_unauthorized = True
            log.warning("barrier not written, reads are slow", collection=self._barriers.name, reason="not authorized")
        # Linearizable reads require a filter that at most one document matches.
        found = await asyncio.gather(*map(self._linearizable.find_one, filters))
        return [document for document in found if document is not None]

    async def count(self, where: Mapping[str, Any], *, limit: int | None = None) -> int:
        """Return the number of matching documents; stop counting at `limit`."""
        options: dict[str, Any] = {} if limit is None else {"limit": limit}
        return await self.run(lambda: self.pymongo_collection.count_documents(where, **options))

    async def update_one(self, where: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
        """Apply the change to one matching document. Return whether one matched."""
        result = await self.run(lambda: self.pymongo_collection.update_one(where, change))
        return result.matched_count > 0

    async def update_and_get(self, where: Mapping[str, Any], change: Mapping[str, Any]) -> Document | None:
        """Apply the change to one matching document and return it as it is afterwards, or None if none matched."""
        return await self.run(
            lambda: self.pymongo_collection.find_one_and_update(where, change, return_document=ReturnDocument.AFTER)
        )

    async def insert(self, new: Sequence[Document]) -> Mapping[int, Document]:
        """Insert independent documents in one command. Return MongoDB's errors by the document's position in `new`.

        The command may be sent several times (see `_write`). A document that an earlier attempt has stored then has the
        error that its `_id` exists.
        """
        response = await self._write({"insert": self.pymongo_collection.name, "documents": new})
        return {error["index"]: error for error in response.get("writeErrors", ())}

    async def update_each(self, updates: Sequence[documents.ConditionalUpdate]) -> int:
        """Apply independent updates in one command and return how many matched a document.

        The command may be sent several times (see `_write`). An update that an earlier attempt has applied then counts
        only if it still matches. Also raises Unavailable if the server applied only some of the updates.
        """
        return await self._update([{"q": update.where, "u": update.change} for update in updates])

    async def update_all(self, where: Mapping[str, Any], change: Mapping[str, Any]) -> int:
        """Apply the change to all matching documents and return how many matched. Otherwise like `update_each`."""
        return await self._update([{"q": where, "u": change, "multi": True}])

    async def _update(self, updates: Sequence[Document]) -> int:
        response = await self._write({"update": self.pymongo_collection.name, "updates": updates})
        if "writeErrors" in response:
            raise Unavailable("the order store did not apply all changes")
        matched: int = response["n"]
        return matched

    async def _write(self, command: Mapping[str, Any]) -> Document:
        """Run a command with independent writes, and return the response.

        If the connection breaks, or the server is no longer the primary, run it again, until the deadline: an election
        takes several attempts. PyMongo's own methods do the same, but they make each write retryable, for which MongoDB
        stores another document per update: a third of its CPU time per order. Here a repeated command may find its own
        writes, so they must be conditional. Raises Unavailable if the server could not make the writes durable.
        """
        options = {"ordered": False, "writeConcern": self.pymongo_collection.write_concern.document}
        ends_at = time.monotonic() + context.remaining(self._timeout_seconds)

        async def send() -> Document | None:
            """Return the response, or None if the command must be sent again."""
            try:
                response = await self._database.command({**command, **options}, codec_options=_CODEC)
            except AutoReconnect:
                reraise_if_cancelled()
                if time.monotonic() >= ends_at:
                    raise
                return None
            is_interrupted = response.get("writeConcernError", {}).get("code") in _NOT_PRIMARY
            return None if is_interrupted and time.monotonic() < ends_at else response

        async def send_until_received() -> Document:
            failures = 0
            while (response := await send()) is None:
                # PyMongo waits for a primary, but a server may still call itself one while it no longer accepts writes.
                if failures:
                    await asyncio.sleep(backoff(failures, max_seconds=_MAX_PAUSE_SECONDS))
                failures += 1
            return response

        response = await self.run(send_until_received)
        if "writeConcernError" in response:
            raise Unavailable("the order store could not make the write durable")
        return response

    async def server_time(self) -> datetime:
        """Return the server's current time in UTC."""
        response = await self.run(lambda: self._database.command("hello"))
        at: datetime = response["localTime"]
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    async def ping(self) -> None:
        """Raise Unavailable if the server does not respond as a primary that accepts writes.

        Bypasses the circuit breaker.
        """
        try:
            response = await self._database.command("hello")
        except PyMongoError as e:
            # The rest of PyMongo's message contains elapsed times, so each attempt would be logged as a new reason.
            raise Unavailable(str(e).partition(" (configured timeouts")[0]) from e
        if not response.get("isWritablePrimary"):
            raise Unavailable("MongoDB has no primary")
