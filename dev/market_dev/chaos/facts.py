"""Reads the stores themselves, after the run: nothing of this goes through the services."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import msgspec
from bson.codec_options import CodecOptions
from confluent_kafka import Consumer, KafkaError, TopicPartition
from pymongo import AsyncMongoClient

from market.contracts import events
from market_dev.chaos.checker import EventFact, MailFact, OrderFact, ReservationFact


@dataclass(frozen=True)
class Stores:
    """Where the stores are, past every proxy. `inventory`: keyword arguments of asyncpg.connect."""

    mongodb: str
    inventory: dict[str, Any]
    kafka: str
    mail: str


async def orders(stores: Stores) -> dict[str, OrderFact]:
    """Every order's document, with its age by the database's own clock."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(stores.mongodb)
    async with client:
        options: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=4, tz_aware=True)
        collection = client.get_database("orders", codec_options=options)["orders"]
        now = (await client.admin.command("hello"))["localTime"]
        found = {}
        async for d in collection.find({}):
            found[str(d["_id"])] = OrderFact(
                id=str(d["_id"]),
                status=d["status"],
                items={str(i["product_id"]): i["quantity"] for i in d["items"]},
                key=d.get("key"),
                age=now.timestamp() - d["since"].time,
                unsent=len(d.get("outbox", ())),
                release_due="release_due" in d,
            )
        return found


async def unsettled(stores: Stores) -> int:
    """Orders that still owe the world something."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(stores.mongodb)
    async with client:
        collection = client["orders"]["orders"]
        return await collection.count_documents(
            {"$or": [{"status": "pending"}, {"release_due": {"$exists": True}}, {"outbox.0": {"$exists": True}}]}
        )


async def reservations(stores: Stores) -> dict[str, ReservationFact]:
    conn = await asyncpg.connect(**stores.inventory)
    try:
        rows = await conn.fetch("SELECT id, status, product_ids, quantities FROM reservations")
        return {
            str(r["id"]): ReservationFact(
                id=str(r["id"]),
                status=r["status"],
                items=dict(zip(map(str, r["product_ids"]), r["quantities"], strict=True)),
            )
            for r in rows
        }
    finally:
        await conn.close()


async def stock(stores: Stores, products: list[str]) -> dict[str, int]:
    """What is free to sell, by product."""
    conn = await asyncpg.connect(**stores.inventory)
    try:
        rows = await conn.fetch(
            "SELECT product_id, quantity FROM inventory WHERE product_id = ANY ($1)", [UUID(p) for p in products]
        )
        return {str(r["product_id"]): r["quantity"] for r in rows}
    finally:
        await conn.close()


def read_topic(bootstrap: str, topic: str, seconds: float = 60) -> list[tuple[int, int, bytes]]:
    """Every message of the topic as (partition, offset, value), read from first to last. Raises TimeoutError."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "market-checker",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 8 * events.MAX_MESSAGE_BYTES,
        }
    )
    try:
        described = consumer.list_topics(topic, 20).topics[topic]
        partitions = [TopicPartition(topic, p, 0) for p in described.partitions]
        if not partitions:
            return []
        ends = {p.partition: consumer.get_watermark_offsets(p, 20) for p in partitions}
        consumer.assign([TopicPartition(topic, p, low) for p, (low, _) in ends.items()])
        open_partitions = {p for p, (low, high) in ends.items() if high > low}
        found = []
        waited = 0.0
        while open_partitions:
            message = consumer.poll(1.0)
            if message is None:
                waited += 1
                if waited > seconds:
                    raise TimeoutError(f"topic {topic} could not be read to its end")
                continue
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition())
                continue
            found.append((message.partition() or 0, message.offset() or 0, message.value() or b""))
        return found
    finally:
        consumer.close()


class _Event(msgspec.Struct):
    id: str
    type: str
    subject: str


async def topic(stores: Stores) -> tuple[list[EventFact], set[str]]:
    """The events of the topic, and the ids of those that were put aside as dead letters."""
    decoder = msgspec.json.Decoder(_Event)

    def read() -> tuple[list[EventFact], set[str]]:
        found = []
        for partition, offset, value in read_topic(stores.kafka, events.TOPIC):
            event = decoder.decode(value)
            found.append(EventFact(event.id, event.type, event.subject, partition, offset))
        dead = set()
        for _, _, value in read_topic(stores.kafka, events.DEAD_LETTER_TOPIC):
            try:
                dead.add(decoder.decode(value).id)
            except msgspec.MsgspecError:
                continue
        return sorted(found, key=lambda e: (e.partition, e.offset)), dead

    return await asyncio.to_thread(read)


async def mails(stores: Stores) -> list[MailFact]:
    """Every mail that the mail server took."""
    found: list[MailFact] = []
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(
                f"{stores.mail}/api/messages", params={"limit": "1000", "offset": str(len(found))}
            ) as response:
                response.raise_for_status()
                page = await response.json()
            found += [MailFact(m["message_id"], str(m["to"])) for m in page["items"]]
            if not page["items"] or len(found) >= page["total"]:
                return found
