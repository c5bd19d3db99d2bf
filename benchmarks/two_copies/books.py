"""What must be true of the stores after all orders: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pymongo
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.two_copies.stores import Stores
from market.contracts import events


class Books(msgspec.Struct, frozen=True):
    """What was found: orders, reservations, events (with repeats), and the units that were sold."""

    orders: int
    reservations: int
    events: int
    units: int


async def check_books(stores: Stores, *, placed: int, stock: int) -> Books:
    """Compare the three stores. Raises RuntimeError if they contradict each other.

    placed: how many orders the generator has placed, each with a response 201
    stock: how many units of each product there were
    """
    orders, sold = await asyncio.to_thread(_orders, stores.mongodb)
    reserved, left = await _stock(stores.postgres("inventory"))
    published, repeats = await asyncio.to_thread(_published, stores.kafka)
    taken = {product_id: stock - quantity for product_id, quantity in left.items() if quantity != stock}
    if found := contradictions(placed, orders, reserved, published, sold, taken):
        raise RuntimeError("; ".join(found))
    return Books(len(orders), len(reserved), len(published) + repeats, sum(sold.values()))


def contradictions(
    placed: int,
    orders: Set[UUID],
    reserved: Set[UUID],
    published: Set[UUID],
    sold: Mapping[UUID, int],
    taken: Mapping[UUID, int],
) -> list[str]:
    """Return what is wrong; nothing if all is right.

    orders, reserved, published: the ids of the confirmed orders, of the reservations, and of the orders with events
    sold, taken: units by product, according to the orders and to the stock
    """
    checks = {
        f"{placed} orders were placed, {len(orders)} are confirmed": len(orders) == placed,
        f"{len(orders - reserved)} orders have no reservation": orders <= reserved,
        f"{len(reserved - orders)} reservations have no order": reserved <= orders,
        f"{len(orders - published)} orders have no event": orders <= published,
        f"{sum(sold.values())} units were sold, {sum(taken.values())} were taken from the stock": sold == taken,
    }
    return [text for text, is_right in checks.items() if not is_right]


def _orders(uri: str) -> tuple[set[UUID], dict[UUID, int]]:
    """Return the ids of the orders, which must be confirmed, and the units sold by product."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, uuidRepresentation="standard")
    try:
        collection = client["orders"]["orders"]
        others = collection.count_documents({"status": {"$ne": "confirmed"}})
        if others:
            raise RuntimeError(f"{others} orders are not confirmed")
        by_product = {"_id": "$items.product_id", "units": {"$sum": "$items.quantity"}}
        sold = collection.aggregate([{"$unwind": "$items"}, {"$group": by_product}])
        units = {UUID(str(d["_id"])): d["units"] for d in sold}
        return {d["_id"] for d in collection.find({}, {"_id": 1})}, units
    finally:
        client.close()


async def _stock(uri: str) -> tuple[set[UUID], dict[UUID, int]]:
    """Return the ids of the reservations, and the units left by product."""
    conn = await asyncpg.connect(uri)
    try:
        reserved = await conn.fetch("SELECT id FROM reservations WHERE status = 'reserved'")
        left = await conn.fetch("SELECT product_id, quantity FROM inventory")
    finally:
        await conn.close()
    return {UUID(str(r["id"])) for r in reserved}, {UUID(str(r["product_id"])): r["quantity"] for r in left}


def _published(bootstrap_servers: str) -> tuple[set[UUID], int]:
    """Return the ids of the orders that the topic has events of, and the number of repeated events."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "two-copies", "enable.partition.eof": False}
    )
    ids: set[UUID] = set()
    messages = 0
    try:
        partitions = consumer.list_topics(events.TOPIC, timeout=10).topics[events.TOPIC].partitions
        assigned = [TopicPartition(events.TOPIC, p, OFFSET_BEGINNING) for p in partitions]
        ends = {p: consumer.get_watermark_offsets(TopicPartition(events.TOPIC, p), timeout=10)[1] for p in partitions}
        consumer.assign(assigned)
        total = sum(ends.values())
        while messages < total:
            batch = consumer.consume(min(10_000, total - messages), timeout=10)
            if not batch:
                raise RuntimeError(f"only {messages} of {total} events could be read")
            for message in batch:
                if message.error():
                    raise RuntimeError(f"the topic cannot be read: {message.error()}")
                ids.add(UUID((message.key() or b"").decode()))
            messages += len(batch)
    finally:
        consumer.close()
    return ids, messages - len(ids)
