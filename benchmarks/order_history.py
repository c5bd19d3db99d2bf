"""Many cancelled orders, written to MongoDB directly. Nothing is reserved for them, and their events are published."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson
import pymongo
from bson.raw_bson import RawBSONDocument

from market.orders.domain import Order, OrderLine, Status
from market.orders.mongodb.documents import order_to_document

ORDERS_PER_USER = 5
# The user with very many orders.
HEAVY_USER = "heavy-user"
_PART = 5_000
_FIRST = datetime(2020, 1, 1, tzinfo=UTC)


def order_id(n: int) -> UUID:
    """Return the id of order number n, of version 7: one order per second."""
    return UUID(int=(_milliseconds(n) << 80) + (7 << 76) + (2 << 62) + n)


def user(n: int) -> str:
    """Return the user of order number n."""
    return f"user-{n // ORDERS_PER_USER:08}"


def fill(uri: str, database: str, count: int, *, heavy: int) -> None:
    """Write `count` orders of users with five each, and `heavy` orders of HEAVY_USER, unless they are there."""
    client: Any = pymongo.MongoClient(uri, uuidRepresentation="standard")
    collection = client[database]["orders"]
    # Other orders may be there already.
    if collection.find_one({"_id": order_id(count + heavy - 1)}) is None:
        with ThreadPoolExecutor(2) as threads:
            # Two parts in flight, so that the encoding of one overlaps the insertion of another.
            parts = threads.map(lambda part: _insert(collection, part), _parts(count, heavy))
            for written, _ in enumerate(parts, 1):
                if written * _PART % 1_000_000 == 0:
                    print(f"  {written * _PART:,} of {count + heavy:,} orders are written", flush=True)
    client.close()


def _parts(count: int, heavy: int) -> Iterator[tuple[range, bool]]:
    for first in range(0, count, _PART):
        yield range(first, min(first + _PART, count)), False
    for first in range(count, count + heavy, _PART):
        yield range(first, min(first + _PART, count + heavy)), True


def _insert(collection: Any, part: tuple[range, bool]) -> None:
    numbers, is_heavy = part
    documents = list(_documents(numbers, HEAVY_USER if is_heavy else None))
    collection.database.command("insert", "orders", documents=documents, ordered=False, writeConcern={"w": 1})


def _documents(numbers: range, only_user: str | None) -> Iterator[RawBSONDocument]:
    """Yield the documents: copies of one that is encoded once, with other ids, users and times."""
    user_name = user(0) if only_user is None else only_user
    line = OrderLine(str(UUID(int=1)), "Product", 1, Decimal("2.50"))
    order = Order(order_id(0), user_name, None, (line,), line.unit_price, "GBP", _FIRST, Status.CANCELLED)
    document = {**order_to_document(order), "since": bson.Timestamp(1, 1), "cancelled_at": _FIRST}
    template = bson.encode(document, codec_options=bson.CodecOptions(uuid_representation=4))
    time = struct.pack("<q", _milliseconds(0))
    id_at, user_at = template.index(order.id.bytes), template.index(user_name.encode())
    # `created_at` and `cancelled_at`.
    times = [template.index(time), template.rindex(time)]
    for n in numbers:
        copy = bytearray(template)
        copy[id_at : id_at + 16] = order_id(n).bytes
        if only_user is None:
            name = user(n).encode()
            copy[user_at : user_at + len(name)] = name
        at = struct.pack("<q", _milliseconds(n))
        for position in times:
            copy[position : position + 8] = at
        yield RawBSONDocument(bytes(copy))


def _milliseconds(n: int) -> int:
    return int((_FIRST + timedelta(seconds=n)).timestamp() * 1000)
