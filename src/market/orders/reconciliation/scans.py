"""Reads the whole collection in pages, including documents that cannot be read as orders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from market.orders.domain import Order, UnreadableOrder
from market.orders.mongodb.collection import OrdersCollection, documents

_PAGE_SIZE = 1_000
_BATCH_SIZE = 25
_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)


class Scans:
    """Read-only scans of the collection. Every method may raise Unavailable."""

    def __init__(self, collection: OrdersCollection) -> None:
        self._collection = collection

    async def server_time(self) -> datetime:
        """Return the server's current time in UTC."""
        return await self._collection.server_time()

    async def orders(self) -> AsyncIterator[tuple[UUID, Order | UnreadableOrder]]:
        """Yield (id, order) of all orders by ascending id. In place of an unreadable order, yield its error.

        Only a few documents are in memory at a time, because an order may have a thousand lines.
        """
        last: UUID | None = None
        while True:
            above = {"$gt": last} if last else {"$gte": _FIRST_ID}
            # Each page has a cursor of its own, because MongoDB would close a cursor that is idle during a long second
            # check.
            page = self._collection.stream(
                {"_id": {**above, "$lte": _LAST_ID}}, sort=[("_id", 1)], limit=_PAGE_SIZE, batch_size=_BATCH_SIZE
            )
            count = 0
            async for document in page:
                count, last = count + 1, document["_id"]
                yield document["_id"], _parse(document)
            if count < _PAGE_SIZE:
                return

    async def non_uuid_ids(self) -> AsyncIterator[str]:
        """Yield the `repr` of each id that is not a UUID, and so cannot belong to an order."""
        where = {"$or": [{"_id": {"$not": {"$gte": _FIRST_ID}}}, {"_id": {"$not": {"$lte": _LAST_ID}}}]}
        async for document in self._collection.stream(where, {"_id": 1}, sort=[("_id", 1)], batch_size=_PAGE_SIZE):
            yield repr(document["_id"])

    async def estimated_count(self) -> int:
        """Return approximately how many orders there are."""
        return await self._collection.run(lambda: self._collection.pymongo_collection.estimated_document_count())


def _parse(document: documents.Document) -> Order | UnreadableOrder:
    try:
        return documents.document_to_order(document)
    except UnreadableOrder as e:
        return e
