"""Reads the whole collection in pages, including documents that are not orders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from market.orders.domain import Order, UnreadableOrder
from market.orders.mongodb.collection import OrdersCollection, documents

_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)


class Scans:
    """Read-only scans of the collection. Every method may raise Unavailable."""

    def __init__(self, collection: OrdersCollection) -> None:
        self._collection = collection

    async def server_time(self) -> datetime:
        """Return the server's current time in UTC, which is used for measuring ages."""
        return await self._collection.server_time()

    async def orders(self, page_size: int) -> AsyncIterator[tuple[UUID, Order | UnreadableOrder]]:
        """Yield (id, order) of all orders by ascending id, reading `page_size` at a time."""
        last: UUID | None = None
        while page := await self._page(last, page_size):
            for document in page:
                yield document["_id"], _parse(document)
            last = page[-1]["_id"]

    async def _page(self, after: UUID | None, limit: int) -> list[documents.Document]:
        above = {"$gt": after} if after else {"$gte": _FIRST_ID}
        return await self._collection.find({"_id": {**above, "$lte": _LAST_ID}}, sort=[("_id", 1)], limit=limit)

    async def non_uuid_ids(self, limit: int) -> list[str]:
        """Return the `repr` of up to `limit` ids that are not UUIDs, and so cannot belong to orders."""
        where = {"$or": [{"_id": {"$not": {"$gte": _FIRST_ID}}}, {"_id": {"$not": {"$lte": _LAST_ID}}}]}
        return [repr(d["_id"]) for d in await self._collection.find(where, {"_id": 1}, limit=limit)]

    async def estimated_count(self) -> int:
        """Return approximately how many orders there are."""
        return await self._collection.run(lambda: self._collection.pymongo_collection.estimated_document_count())


def _parse(document: documents.Document) -> Order | UnreadableOrder:
    try:
        return documents.document_to_order(document)
    except UnreadableOrder as e:
        return e
