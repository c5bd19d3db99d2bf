"""The indexes of the collection `orders`. The service does not start without them."""

from __future__ import annotations

import pymongo
from pymongo import ASCENDING, DESCENDING, IndexModel

from market.kit.errors import Unavailable
from market.orders.domain import Status
from market.orders.mongodb.collection import OrdersCollection

INDEXES = [
    IndexModel(
        [("user", ASCENDING), ("idempotency_key", ASCENDING)],
        name="user_key",
        unique=True,
        # An order without a digest no longer has its key.
        partialFilterExpression={"idempotency_key": {"$exists": True}, "digest": {"$exists": True}},
    ),
    # The keys of signed-in callers.
    IndexModel(
        [("subject_key", ASCENDING)],
        name="subject_key",
        unique=True,
        partialFilterExpression={"subject_key": {"$exists": True}, "digest": {"$exists": True}},
    ),
    # For instances of the versions in which a key is unique among all users (docs/decisions/0025).
    IndexModel([("key", ASCENDING)], name="key", unique=True, partialFilterExpression={"key": {"$exists": True}}),
    IndexModel(
        [("user", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING), ("status", ASCENDING)], name="user"
    ),
    # For lists of a user's cancelled or rejected orders. It has no entries for pending and confirmed orders, because
    # placing an order would be slower with one more index. Lists of a user's pending or confirmed orders use the index
    # `user`.
    IndexModel(
        [("user", ASCENDING), ("status", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)],
        name="user_ended",
        partialFilterExpression={"status": {"$in": [Status.CANCELLED.value, Status.REJECTED.value]}},
    ),
    # For the list of everybody's orders. To list several statuses, MongoDB merges one scan of the index per status.
    IndexModel([("status", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="status"),
    IndexModel([("since", ASCENDING)], name="pending", partialFilterExpression={"status": Status.PENDING.value}),
    IndexModel(
        [("release_due", ASCENDING)], name="release_due", partialFilterExpression={"release_due": {"$exists": True}}
    ),
    IndexModel(
        [("unsent_since", ASCENDING), ("claimed_at", ASCENDING)],
        name="unsent",
        partialFilterExpression={"unsent_since": {"$exists": True}},
    ),
    # For the report on shortages, which reads the orders of a period that were rejected for lack of stock.
    IndexModel(
        [("rejected_at", ASCENDING), ("shortages.product_id", ASCENDING)],
        name="shortages",
        partialFilterExpression={"shortages": {"$exists": True}},
    ),
    IndexModel([("stuck_since", ASCENDING)], name="stuck", partialFilterExpression={"stuck_since": {"$exists": True}}),
]

# Building an index on a large collection takes longer than any operation of the service.
_CREATE_SECONDS = 600


async def create_indexes(collection: OrdersCollection) -> None:
    """Create the indexes that do not exist. Concurrent calls are safe. Raises PyMongoError."""
    with pymongo.timeout(_CREATE_SECONDS):
        await collection.pymongo_collection.create_indexes(INDEXES)


async def check_indexes(collection: OrdersCollection) -> None:
    """Raise Unavailable if an index is missing: without the first three, two orders could have the same key."""
    existing = await collection.pymongo_collection.index_information()
    missing = [i.document["name"] for i in INDEXES if i.document["name"] not in existing]
    if missing:
        raise Unavailable(f"indexes are missing: {', '.join(missing)}; run: python -m market.orders migrate")
