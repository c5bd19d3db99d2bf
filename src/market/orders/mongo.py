"""The connection to MongoDB, the collection with its guarantees, and its indexes."""

from __future__ import annotations

import pymongo
from bson import CodecOptions
from bson.binary import UuidRepresentation
from pymongo import ASCENDING, DESCENDING, IndexModel, ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from market.kit.errors import Unavailable
from market.orders.config import MongoDB
from market.orders.documents import Document
from market.orders.domain import Status

_CODEC: CodecOptions[Document] = CodecOptions(tz_aware=True, uuid_representation=UuidRepresentation.STANDARD)

INDEXES = [
    IndexModel([("key", ASCENDING)], name="key", unique=True, partialFilterExpression={"key": {"$exists": True}}),
    IndexModel(
        [("user", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING), ("status", ASCENDING)], name="user"
    ),
    IndexModel([("since", ASCENDING)], name="pending", partialFilterExpression={"status": Status.PENDING.value}),
    IndexModel(
        [("release_due", ASCENDING)], name="release_due", partialFilterExpression={"release_due": {"$exists": True}}
    ),
    IndexModel(
        [("unsent_since", ASCENDING), ("claimed_at", ASCENDING)],
        name="unsent",
        partialFilterExpression={"unsent_since": {"$exists": True}},
    ),
    IndexModel([("stuck_since", ASCENDING)], name="stuck", partialFilterExpression={"stuck_since": {"$exists": True}}),
]


def client(config: MongoDB) -> AsyncMongoClient[Document]:
    """A client that connects by itself, and again. The time-outs are set on purpose: a dead server costs a caller
    `timeout_seconds`, and one that is back is seen within half a second. Writes that are cut off are repeated by
    the driver within that time; the server knows a repeat (retryable writes)."""
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


def collection(database: AsyncDatabase[Document]) -> AsyncCollection[Document]:
    """`orders`: writes are durable on a majority, reads see nothing that may be undone."""
    return database.get_collection(
        "orders",
        codec_options=_CODEC,
        write_concern=WriteConcern(w="majority", j=True),
        read_concern=ReadConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )


async def ping(database: AsyncDatabase[Document]) -> None:
    """Raises where the store does not answer as a primary that can write."""
    try:
        answer = await database.command("hello")
    except PyMongoError as e:
        # What follows is the time-outs to the last digit, another one each time, and it is one reason all the same.
        raise Unavailable(str(e).partition(" (configured timeouts")[0]) from e
    if not answer.get("isWritablePrimary"):
        raise Unavailable("mongodb has no primary")


async def make_indexes(database: AsyncDatabase[Document]) -> None:
    """Makes what is missing of INDEXES. Two at once are safe."""
    with pymongo.timeout(600):
        await collection(database).create_indexes(INDEXES)


async def has_indexes(database: AsyncDatabase[Document]) -> None:
    """Raises where an index is missing: without the one on the key two orders could have the same."""
    found = await collection(database).index_information()
    missing = [i.document["name"] for i in INDEXES if i.document["name"] not in found]
    if missing:
        raise Unavailable(f"the collection lacks the indexes {', '.join(missing)}: python -m market.orders migrate")
