"""OutboxRepository: the events in an order's document that Kafka has not acknowledged yet, and the lease on them.

A relay publishes an order's events only while it holds the lease on the order's outbox. A lease belongs to one instance
of the service, and expires `lease_seconds` after it was taken, by the clock of MongoDB's server. After that, any relay
may take a new lease.

A lease is stored in the fields `claimed_by` (the instance) and `claimed_at` (when it was taken).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.orders.domain import KNOWN_STATUSES, Order, OutboxEntry, UnreadableOrder
from market.orders.mongodb.collection import EPOCH, OrdersCollection, documents

# The fields of a lease, and all fields of an outbox, for $unset.
_LEASE = {"claimed_by": 1, "claimed_at": 1}
_OUTBOX = {"outbox": 1, "unsent_since": 1, "stuck_since": 1, **_LEASE}
# Why and when Kafka rejected the events of an outbox, for $unset.
_REJECTIONS = {"outbox.$[].refused": 1, "outbox.$[].refused_at": 1}
# Matches the orders for which `domain.next_event` returns an event.
_PUBLISHABLE = {
    "status": {"$in": [status.value for status in KNOWN_STATUSES]},
    "outbox.0.type": {"$in": list(events.SEQUENCE)},
}


class UnsentPage(Struct, frozen=True):
    """Ids of orders with unsent events. Pass `next_after` as `after` to get the next page.

    `next_after` is None on the last page.
    """

    order_ids: list[UUID]
    next_after: datetime | None


class OutboxRepository:
    """The outboxes of all orders. `instance_id` becomes the owner of every lease taken here.

    Every method may raise Unavailable; the outcome of a write is then unknown.
    """

    def __init__(self, collection: OrdersCollection, *, instance_id: str) -> None:
        self.instance_id = instance_id
        self._collection = collection

    async def server_time(self) -> datetime:
        """Return the current time of MongoDB's server in UTC. It determines when leases expire."""
        return await self._collection.server_time()

    async def lease(self, order_id: UUID, lease_seconds: float, now: datetime) -> Order | None:
        """Lease the order's outbox and return the order.

        Return None if the order has no unsent events (stuck ones do not count), if any relay holds a valid lease, or if
        only a newer version can publish the first event. Raises UnreadableOrder, but keeps the lease: no relay tries
        this order again before the lease expires.
        """
        return await self._take_lease(
            {
                "_id": order_id,
                "unsent_since": {"$exists": True},
                "claimed_at": {"$not": {"$gte": now - timedelta(seconds=lease_seconds)}},
                **_PUBLISHABLE,
            }
        )

    async def renew_lease(self, order_id: UUID) -> Order | None:
        """Renew this instance's lease and return the order.

        Return None if the order has no unsent events (stuck ones do not count), if this instance no longer holds the
        lease, or if only a newer version can publish the first event. Raises UnreadableOrder.
        """
        return await self._take_lease(
            {"_id": order_id, "unsent_since": {"$exists": True}, "claimed_by": self.instance_id, **_PUBLISHABLE}
        )

    async def _take_lease(self, where: documents.Document) -> Order | None:
        change = {"$set": {"claimed_by": self.instance_id}, "$currentDate": {"claimed_at": True}}
        document = await self._collection.update_and_get(where, change)
        return self._collection.read_order(document) if document else None

    async def release_leases(self, order_ids: Sequence[UUID]) -> None:
        """Release the leases on these outboxes, except for those that another relay has taken over."""
        await self._collection.update_all(
            {"_id": {"$in": list(order_ids)}, "claimed_by": self.instance_id}, {"$unset": _LEASE}
        )

    async def list_unsent(
        self, lease_seconds: float, now: datetime, limit: int, *, after: datetime | None = None
    ) -> UnsentPage:
        """Return orders with unsent events and no valid lease, the longest unsent first.

        after: only orders whose `unsent_since` is later than this
        """
        where = {
            "unsent_since": {"$gt": after or EPOCH},
            "claimed_at": {"$not": {"$gte": now - timedelta(seconds=lease_seconds)}},
            **_PUBLISHABLE,
        }
        found = await self._collection.find(where, {"unsent_since": 1}, sort=[("unsent_since", 1)], limit=limit)
        return UnsentPage([d["_id"] for d in found], found[-1]["unsent_since"] if len(found) == limit else None)

    async def remove_published(self, published: Sequence[tuple[UUID, UUID]]) -> list[Order]:
        """Remove these entries, given as (order id, event id). If an outbox is then empty, also remove its lease.

        Return the orders that have more events, and whose lease this instance still holds.
        """
        if not published:
            return []
        order_ids, event_ids = map(list, zip(*published, strict=True))
        # One update for all orders. It takes MongoDB less time than one for each.
        only_entry = {"_id": {"$in": order_ids}, "outbox.id": {"$in": event_ids}, "outbox": {"$size": 1}}
        if await self._collection.update_all(only_entry, {"$unset": _OUTBOX}) == len(published):
            return []
        remaining = []
        for order_id, event_id in published:
            # The entry of an unreadable order is removed all the same.
            with suppress(UnreadableOrder):
                if order := await self._remove_one(order_id, event_id):
                    remaining.append(order)
        return remaining

    async def _remove_one(self, order_id: UUID, event_id: UUID) -> Order | None:
        change: documents.Document = {"$pull": {"outbox": {"id": event_id}}}
        leased_here = {"_id": order_id, "outbox.id": event_id, "claimed_by": self.instance_id}
        document = await self._collection.update_and_get(leased_here, {**change, "$currentDate": {"claimed_at": True}})
        if document is None:
            # Another relay has taken over the lease, or the entry has been removed already.
            await self._collection.update_one({"_id": order_id, "outbox.id": event_id}, change)
        elif document["outbox"]:
            return self._collection.read_order(document)
        await self._collection.update_one({"_id": order_id, "outbox": {"$size": 0}}, {"$unset": _OUTBOX})
        return None

    async def mark_stuck(self, order_id: UUID, event_id: UUID, reason: str, at: datetime) -> None:
        """Record that Kafka permanently rejected the event, and release the lease.

        The event stays in the outbox. It is sent again only after `requeue`, or if the order is cancelled later: then
        it is sent before the event of the cancellation.
        """
        await self._collection.update_one(
            {"_id": order_id, "outbox.id": event_id},
            {
                "$set": {"outbox.$.refused": reason, "outbox.$.refused_at": at, "stuck_since": at},
                "$unset": {"unsent_since": 1, **_LEASE},
            },
        )

    async def requeue(self, order_id: UUID, entry: OutboxEntry | None, at: datetime) -> bool:
        """Make the order's events due again, including stuck ones, and remove the lease. First add `entry`, if given.

        Return False, and change nothing, if there is no such order, or if its outbox already contains `entry`. Without
        `entry`, do so too if the outbox is empty, or if only a newer version can publish the first event.
        """
        change: documents.Document = {"$set": {"unsent_since": at}, "$unset": {"stuck_since": 1, **_LEASE}}
        where: documents.Document = {"_id": order_id, **_PUBLISHABLE}
        if entry is None:
            change["$unset"].update(_REJECTIONS)
        else:
            # MongoDB cannot add an entry and change the others in one update.
            others = {"_id": order_id, "outbox.0": {"$exists": True}, "outbox.id": {"$ne": entry.id}}
            await self._collection.update_one(others, {"$unset": _REJECTIONS})
            at_front = {"$position": 0} if entry.event_type == events.CREATED else {}
            change["$push"] = {"outbox": {"$each": [documents.entry_to_document(entry)], **at_front}}
            where = {"_id": order_id, "outbox.id": {"$ne": entry.id}}
        return await self._collection.update_one(where, change)
