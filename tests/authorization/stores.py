"""The shop's stores, read beside the services: what they contain, and whether anything has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import redis.asyncio
from confluent_kafka import Consumer, Producer, TopicPartition
from pymongo import AsyncMongoClient

from market.contracts import events
from market.notifications.dead_letters import writer
from tests.support.databases import superuser
from tests.support.waiting import PATIENCE, until

# The index of the shop's own database in Redis.
_REDIS_DATABASE = 7
_OWNERS = ("products", "inventory")
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


@dataclass
class Stores:
    """Databases of one shop. The first five are what the services' configurations need.

    group, dead_letter_topic: of notifications
    """

    postgres: dict[str, dict[str, Any]]
    mongodb: dict[str, Any]
    redis_url: str
    group: str
    dead_letter_topic: str
    _connections: dict[str, asyncpg.Connection[Any]]
    _orders: Any
    _redis: redis.asyncio.Redis
    _consumer: Consumer
    _producer: Producer
    _mail: httpx.AsyncClient

    @classmethod
    @asynccontextmanager
    async def created(
        cls, postgres: Any, redis_server: Any, mongodb: Any, kafka: Any, mail: Any
    ) -> AsyncIterator[Stores]:
        """Create empty databases, and drop those of PostgreSQL at the end."""
        async with AsyncExitStack() as stack:
            configs: dict[str, dict[str, Any]] = {}
            connections: dict[str, asyncpg.Connection[Any]] = {}
            for owner in _OWNERS:
                name = f"{owner}_{uuid4().hex[:8]}"
                admin = await stack.enter_async_context(superuser(postgres))
                await admin.execute(f"CREATE DATABASE {name} OWNER {owner}")
                stack.push_async_callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
                connections[owner] = await stack.enter_async_context(superuser(postgres, name))
                configs[owner] = {
                    "host": postgres.host,
                    "port": postgres.port,
                    "database": name,
                    "user": owner,
                    "password": postgres.password,
                    "timeout_seconds": PATIENCE / 2,
                    "connect_timeout_seconds": PATIENCE,
                }
            database = f"orders_{uuid4().hex[:8]}"
            client: Any = AsyncMongoClient(mongodb.uri, uuidRepresentation="standard", tz_aware=True)
            stack.push_async_callback(client.close)
            redis_url = f"{redis_server.uri.rstrip('/').removesuffix('/0')}/{_REDIS_DATABASE}"
            cache = redis.asyncio.from_url(redis_url)
            stack.push_async_callback(cache.aclose)
            await cache.flushdb()
            # Reads what the group has committed, without joining it.
            group = f"notifications-{uuid4().hex[:8]}"
            consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group, "log_level": 2})
            stack.callback(consumer.close)
            producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 2})
            catcher = await stack.enter_async_context(httpx.AsyncClient(base_url=mail.url, timeout=PATIENCE))
            yield cls(
                configs,
                {"uri": mongodb.uri, "database": database},
                redis_url,
                group,
                f"dead-letters-{uuid4().hex[:8]}",
                connections,
                client[database].orders,
                cache,
                consumer,
                producer,
                catcher,
            )

    async def everything(self) -> dict[str, Any]:
        """Return all rows, documents, cache entries, the topics' ends and the number of mails, to compare them."""
        products, inventory, orders, cache, offsets, mails = await asyncio.gather(
            self._rows("products"),
            self._rows("inventory"),
            self._orders.find().sort("_id").to_list(),
            self._cached(),
            asyncio.to_thread(self._end_offsets),
            self._mail.get("/api/messages", params={"limit": 1}),
        )
        rest = {"orders": orders, "redis": cache, "kafka": offsets, "mails": mails.json()["total"]}
        return {**products, **inventory, **rest}

    async def _rows(self, owner: str) -> dict[str, list[str]]:
        """Return the rows of all tables, as text."""
        conn = self._connections[owner]
        tables = [table for (table,) in await conn.fetch(_TABLES)]
        return {
            f"{owner}.{table}": [row for (row,) in await conn.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")]
            for table in tables
        }

    async def _cached(self) -> dict[bytes, bytes | None]:
        keys = sorted(await self._redis.keys())
        return dict(zip(keys, await self._redis.mget(keys) if keys else (), strict=True))

    async def settled(self) -> dict[str, Any]:
        """Return `everything`, once all events are published and mailed, and all stock is released."""

        async def are_mailed() -> bool:
            return await asyncio.to_thread(self._unmailed) == 0

        async def at_rest() -> bool:
            return not await self._orders.count_documents(
                {"$or": [{"outbox.0": {"$exists": True}}, {"release_due": {"$exists": True}}]}
            )

        await until(at_rest, what="no work is left for the background loops")
        await until(are_mailed, what="all events are mailed")
        before = await self.everything()
        while True:
            await asyncio.sleep(0.15)
            after = await self.everything()
            if after == before:
                return after
            before = after

    async def product(self, product_id: str) -> dict[str, Any] | None:
        """Return the row of a product."""
        row = await self._connections["products"].fetchrow("SELECT * FROM products WHERE id = $1", UUID(product_id))
        return None if row is None else dict(row)

    async def stock(self, product_id: str) -> int | None:
        """Return the units of a product that are free to sell."""
        quantity: int | None = await self._connections["inventory"].fetchval(
            "SELECT quantity FROM inventory WHERE product_id = $1", UUID(product_id)
        )
        return quantity

    async def reservation(self, reservation_id: str) -> str | None:
        """Return the status of a reservation."""
        status: str | None = await self._connections["inventory"].fetchval(
            "SELECT status FROM reservations WHERE id = $1", UUID(reservation_id)
        )
        return status

    async def order(self, order_id: str) -> dict[str, Any] | None:
        """Return the document of an order."""
        document: dict[str, Any] | None = await self._orders.find_one({"_id": UUID(order_id)})
        return document

    async def orders_of(self, user: str) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = await self._orders.find({"user": user}).sort("_id").to_list()
        return documents

    async def mails_to(self, address: str) -> list[dict[str, Any]]:
        """Return the mails to an address, newest first."""
        page = await self._mail.get("/api/messages", params={"to": address, "limit": 100})
        return list(page.json()["items"])

    async def add_dead_letter(self, order: dict[str, Any]) -> str:
        """Write a dead letter about an order, as notifications does, and return its id."""
        event = {
            "specversion": "1.0",
            "id": uuid4().hex,
            "type": events.CREATED,
            "subject": order["id"],
            "time": datetime.now(UTC).isoformat(),
            "sequence": "1",
            "data": {**order, "email": f"{order['user']}@people.example"},
        }
        headers = {writer.REASON: "rejected: 550 no such user", writer.TIME: event["time"], writer.TOPIC: events.TOPIC}
        written: list[str] = []
        self._producer.produce(
            self.dead_letter_topic,
            msgspec.json.encode(event),
            order["id"],
            headers={name: value.encode() for name, value in headers.items()},
            on_delivery=lambda error, record: written.append(error or f"{record.partition()}-{record.offset()}"),
        )
        assert await asyncio.to_thread(self._producer.flush, PATIENCE) == 0
        return written[0]

    def _end_offsets(self) -> tuple[int, int]:
        """Return how many records the topics of events and of dead letters have had."""
        events_, letters = self._partitions(), self._partitions(self.dead_letter_topic)
        return sum(map(self._end_offset, events_)), sum(map(self._end_offset, letters))

    def _unmailed(self) -> int:
        """Return how many records of the topic notifications has not committed yet, which it does after the mail."""
        committed = self._consumer.committed(self._partitions(), timeout=PATIENCE)
        return sum(max(0, self._end_offset(partition) - max(0, partition.offset)) for partition in committed)

    def _partitions(self, name: str = events.TOPIC) -> list[TopicPartition]:
        topic = self._consumer.list_topics(name, timeout=PATIENCE).topics[name]
        return [TopicPartition(name, n) for n in topic.partitions]

    def _end_offset(self, partition: TopicPartition) -> int:
        high: int = self._consumer.get_watermark_offsets(partition, timeout=PATIENCE)[1]
        return high
