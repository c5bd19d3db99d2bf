"""The final reads: what the stores hold after the run. They go to the stores directly and never through a service."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
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
from market_dev.chaos.observations import EventRecord, MailRecord, OrderRecord, ReservationRecord
from market_dev.stack.stack import Stack

RECONCILE = ("-m", "market.orders", "reconcile", "--json", "--topic")


@dataclass(frozen=True)
class Stores:
    """The addresses of the stores, bypassing all proxies but Kafka's.

    `inventory`: keyword arguments of asyncpg.connect.
    """

    mongodb: str
    inventory: dict[str, Any]
    kafka: str
    mail: str

    @classmethod
    def of(cls, stack: Stack) -> Stores:
        """Return the stores of a running stack."""
        urls = stack.urls
        inventory = {
            "host": "127.0.0.1",
            "port": stack.ports["postgres"],
            "user": "inventory",
            "password": stack.directory.password(),
            "database": "inventory",
        }
        return cls(urls["mongodb"], inventory, urls["kafka"], urls["mail"])


async def read_orders(stores: Stores) -> dict[str, OrderRecord]:
    """Return all orders by id, with their age by the database's clock."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(stores.mongodb)
    async with client:
        options: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=4, tz_aware=True)
        collection = client.get_database("orders", codec_options=options)["orders"]
        now = (await client.admin.command("hello"))["localTime"]
        found = {}
        async for document in collection.find({}):
            order_id = str(document["_id"])
            found[order_id] = OrderRecord(
                id=order_id,
                status=document["status"],
                items={str(i["product_id"]): i["quantity"] for i in document["items"]},
                user=document["user"],
                # Without the digest, an earlier version has freed the key.
                key=document.get("idempotency_key", document.get("key")) if "digest" in document else None,
                age_seconds=now.timestamp() - document["since"].time,
                unpublished_events=len(document.get("outbox", ())),
                release_due="release_due" in document,
            )
        return found


async def count_unsettled(stores: Stores) -> int:
    """Return the number of orders that are pending, have a stock release outstanding or an event unpublished."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(stores.mongodb)
    async with client:
        collection = client["orders"]["orders"]
        return await collection.count_documents(
            {"$or": [{"status": "pending"}, {"release_due": {"$exists": True}}, {"outbox.0": {"$exists": True}}]}
        )


async def read_reservations(stores: Stores) -> dict[str, ReservationRecord]:
    """Return all reservations by id."""
    conn = await asyncpg.connect(**stores.inventory)
    try:
        rows = await conn.fetch("SELECT id, status, product_ids, quantities FROM reservations")
        return {
            str(r["id"]): ReservationRecord(
                id=str(r["id"]),
                status=r["status"],
                items=dict(zip(map(str, r["product_ids"]), r["quantities"], strict=True)),
            )
            for r in rows
        }
    finally:
        await conn.close()


async def read_stock(stores: Stores, products: list[str]) -> dict[str, int]:
    """Return the units available for sale, by product id."""
    conn = await asyncpg.connect(**stores.inventory)
    try:
        rows = await conn.fetch(
            "SELECT product_id, quantity FROM inventory WHERE product_id = ANY ($1)", [UUID(p) for p in products]
        )
        return {str(r["product_id"]): r["quantity"] for r in rows}
    finally:
        await conn.close()


def read_topic(bootstrap: str, topic: str, timeout_seconds: float = 60) -> list[tuple[int, int, bytes]]:
    """Return every message of the topic as (partition, offset, value), from the first to the last.

    Raises TimeoutError after `timeout_seconds` seconds without a message.
    """
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
        metadata = consumer.list_topics(topic, 20).topics[topic]
        partitions = [TopicPartition(topic, p, 0) for p in metadata.partitions]
        if not partitions:
            return []
        watermarks = {p.partition: consumer.get_watermark_offsets(p, 20) for p in partitions}
        consumer.assign([TopicPartition(topic, p, low) for p, (low, _) in watermarks.items()])
        unfinished = {p for p, (low, high) in watermarks.items() if high > low}
        found = []
        waited = 0.0
        while unfinished:
            message = consumer.poll(1.0)
            if message is None:
                waited += 1
                if waited > timeout_seconds:
                    raise TimeoutError(f"topic {topic} could not be read to its end")
                continue
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    unfinished.discard(message.partition())
                continue
            found.append((message.partition() or 0, message.offset() or 0, message.value() or b""))
        return found
    finally:
        consumer.close()


class _Event(msgspec.Struct):
    id: str
    type: str
    subject: str


async def read_events(stores: Stores) -> tuple[list[EventRecord], set[str]]:
    """Return the events of the topic, ordered by partition and offset, and the ids of those in the dead-letter
    topic."""
    decoder = msgspec.json.Decoder(_Event)

    def read() -> tuple[list[EventRecord], set[str]]:
        found = []
        for partition, offset, value in read_topic(stores.kafka, events.TOPIC):
            event = decoder.decode(value)
            found.append(EventRecord(event.id, event.type, event.subject, partition, offset))
        dead_letters = set()
        for _, _, value in read_topic(stores.kafka, events.DEAD_LETTER_TOPIC):
            try:
                dead_letters.add(decoder.decode(value).id)
            except msgspec.MsgspecError:
                continue
        return sorted(found, key=lambda e: (e.partition, e.offset)), dead_letters

    return await asyncio.to_thread(read)


async def count_mails(stores: Stores) -> int:
    """Return the number of mails that the mail server has accepted, with duplicates."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        async with http.get(f"{stores.mail}/api/messages", params={"limit": 1}) as response:
            response.raise_for_status()
            return int((await response.json())["total"])


async def read_mails(stores: Stores) -> list[MailRecord]:
    """Return every mail that the mail server has accepted."""
    found: list[MailRecord] = []
    async with aiohttp.ClientSession() as http:
        while True:
            params = {"limit": "1000", "offset": str(len(found))}
            async with http.get(f"{stores.mail}/api/messages", params=params) as response:
                response.raise_for_status()
                page = await response.json()
            found += [MailRecord(m["message_id"], str(m["to"])) for m in page["items"]]
            if not page["items"] or len(found) >= page["total"]:
                return found


async def read_differences(stack: Stack) -> list[str]:
    """Return what the reconcile command of orders finds, the topic included.

    Raises RuntimeError if it did not finish.
    """
    env = stack.environment("orders") | {"CONFIG_PATH": str(stack.configuration("orders"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *RECONCILE, env={**os.environ, **env}, stdout=PIPE, stderr=PIPE
    )
    output, log = await process.communicate()
    lines = [msgspec.json.decode(line) for line in output.splitlines()]
    if process.returncode not in (0, 1):
        raise RuntimeError(f"reconcile ended with status {process.returncode}: {lines[-1:]} {log.decode()[-500:]}")
    return [str(line) for line in lines if line["kind"] == "difference"]
