"""A reader of the topic `orders`."""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer

from market.contracts import events
from tests.support.waiting import PATIENCE, until


class Topic:
    """Collects every message of the topic, in a thread of its own."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": f"tests-{uuid4()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "topic.metadata.refresh.interval.ms": 500,
                "allow.auto.create.topics": True,
                "session.timeout.ms": 45_000,
                "log_level": 0,
            }
        )
        self.messages: list[Any] = []
        self._seen: set[Any] = set()
        self._consumer.subscribe([events.TOPIC])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(500, 0.05):
                if message.error() is not None:
                    continue
                # A consumer that was removed from its group reads from the beginning again. The offset alone does not
                # identify a message: a broker in memory reuses offsets after a restart.
                position = message.partition(), message.offset(), message.timestamp(), message.key()
                if position not in self._seen:
                    self._seen.add(position)
                    self.messages.append(message)
        self._consumer.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)

    def messages_of(self, order_id: str) -> list[Any]:
        """Return the order's messages, in sequence."""
        return [m for m in list(self.messages) if m.key() == order_id.encode()]

    def events_of(self, order_id: str) -> list[events.OrderEvent]:
        """Return the order's events, in sequence."""
        return [msgspec.json.decode(m.value(), type=events.OrderEvent) for m in self.messages_of(order_id)]

    async def wait_for(self, order_id: str, *types: str, seconds: float = PATIENCE) -> list[events.OrderEvent]:
        """Wait until each of these types is among the order's events, and return all its events, in sequence."""
        await until(
            lambda: set(types) <= {e.type for e in self.events_of(order_id)}, seconds, f"events {types} of {order_id}"
        )
        return self.events_of(order_id)
