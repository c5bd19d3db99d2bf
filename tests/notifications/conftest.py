"""A topic of its own for each test, the service in this process or in its own, and the mails that it sends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from market.contracts import events
from market.kit.process.lifecycle import Process
from market.notifications import metrics
from market.notifications.app import Clients, build
from market.notifications.config import Config
from market.notifications.dead_letters.command import dead_letters
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import until

PARTITIONS = 4


def event(
    order_id: UUID | None = None,
    event_type: str = events.CREATED,
    *,
    user: str = "ann",
    email: str | None = None,
    items: list[dict[str, Any]] | None = None,
    total: str = "5.00",
) -> dict[str, Any]:
    """Return an event as orders publishes it."""
    order_id = order_id or uuid4()
    items = items or [{"product_id": str(uuid4()), "name": "Blue mug", "quantity": 2, "unit_price": "2.50"}]
    order = {
        "id": str(order_id),
        "user": user,
        "email": email,
        "items": items,
        "total": total,
        "currency": "GBP",
        "status": "confirmed" if event_type == events.CREATED else "cancelled",
        "created_at": "2026-03-01T10:20:30.123Z",
    }
    return {
        "specversion": "1.0",
        "id": str(events.event_id(order_id, event_type)),
        "source": "/market/orders",
        "type": event_type,
        "subject": str(order_id),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "sequence": events.SEQUENCE.get(event_type, "9"),
        "data": order,
    }


def message_ids(published: list[dict[str, Any]]) -> list[str]:
    """Return the Message-IDs of the events' mails, sorted."""
    return sorted(f"<{e['id']}@market.test>" for e in published)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def is_paused(reason: str = "mail-server") -> bool:
    """Return whether consumption in this process is paused for the reason: mail-server or memory."""
    return bool(metrics.PAUSED.labels(reason)._value.get() == 1)


@dataclass
class Mailing:
    """The topic of one test, the service that consumes it, and the mails that it sends.

    catcher: a client of the mail catcher's API
    broker: "apache" or "embedded"
    short_session_seconds: the shortest session, for a consumer that takes over from one that was killed; a real broker
        takes no less than 6 s by default
    """

    bootstrap_servers: str
    smtp_port: int
    catcher: httpx.AsyncClient
    directory: Path
    broker: str
    short_session_seconds: float
    topic: str = field(default_factory=lambda: f"orders-{uuid4().hex[:8]}")
    mailbox: str = field(default_factory=lambda: f"c{uuid4().hex[:12]}@example.test")

    def __post_init__(self) -> None:
        self.producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "linger.ms": 0,
                "message.max.bytes": 4_300_000,
                "log_level": 2,
                # So that a retry neither duplicates nor reorders messages.
                "enable.idempotence": True,
            }
        )
        self.processes: list[ServiceProcess] = []

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.topic}.dead-letter"

    @property
    def deferred_topic(self) -> str:
        return f"{self.topic}.deferred"

    @property
    def sent_topic(self) -> str:
        return f"{self.topic}.sent"

    def create_topic(self, name: str | None = None) -> None:
        """Create the topic, and return when the broker reports a leader for each partition."""
        name = name or self.topic
        if self.broker == "embedded":
            # It creates topics automatically.
            self.producer.list_topics(name, timeout=60)
            return
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 2})
        topic = NewTopic(name, PARTITIONS, 1, config={"max.message.bytes": str(events.MAX_MESSAGE_BYTES)})
        deadline = time.monotonic() + 60
        while True:
            try:
                for future in admin.create_topics([topic]).values():
                    future.result(60)
                break
            except KafkaException as e:
                if e.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    break
                # A broker that was suspended is not part of its own cluster for a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        while True:
            found = admin.list_topics(name, timeout=60).topics[name]
            if (
                found.error is None
                and len(found.partitions) == PARTITIONS
                and all(p.error is None for p in found.partitions.values())
            ):
                return
            assert time.monotonic() < deadline, found.error
            time.sleep(0.05)

    def publish(self, *published: dict[str, Any], headers: dict[str, str] | None = None, partition: int = -1) -> None:
        """Publish events as orders does, and return when they are acknowledged."""
        for one in published:
            self.publish_raw(one["subject"].encode(), msgspec.json.encode(one), headers=headers, partition=partition)
        assert self.producer.flush(60) == 0

    def publish_raw(
        self, key: bytes | None, value: bytes | None, *, headers: dict[str, str] | None = None, partition: int = -1
    ) -> None:
        """Hand any message to the producer."""
        self.producer.produce(
            self.topic,
            key=key,
            value=value,
            partition=partition,
            headers=[(k, v.encode()) for k, v in (headers or {}).items()],
        )

    async def mails(self, to: str | None = None) -> list[dict[str, Any]]:
        """Return the mails to the test's mailbox, or to another one, oldest first."""
        response = await self.catcher.get("/api/messages", params={"to": to or self.mailbox, "limit": 1000})
        return list(reversed(response.json()["items"]))

    async def wait_for_mails(self, number: int, to: str | None = None, seconds: float = 60) -> list[dict[str, Any]]:
        """Return the mails once there are at least `number` of them."""

        async def enough() -> list[dict[str, Any]]:
            found = await self.mails(to)
            return found if len(found) >= number else []

        return await until(enough, seconds, f"{number} mails")

    async def inject_faults(self, *faults: dict[str, Any]) -> None:
        """Let the mail catcher misbehave; without faults it behaves again."""
        (await self.catcher.post("/api/faults", json=list(faults))).raise_for_status()

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return a configuration for this topic; of a section, only the given keys are changed."""
        config: dict[str, Any] = {
            "admin": {"port": free_port()},
            "http": {"port": free_port()},
            "log": {"level": "info", "format": "console"},
            "shutdown": {"drain_seconds": 0, "grace_seconds": 30},
            "kafka": {
                "bootstrap_servers": self.bootstrap_servers,
                "group": self.topic,
                "topic": self.topic,
                "dead_letter_topic": self.dead_letter_topic,
                "partitions": 0 if self.broker == "embedded" else PARTITIONS,
                # Long, so that a machine that stands still for seconds costs no partition and repeats no mail. The
                # embedded broker makes every member wait as long at each rebalance.
                "session_timeout_seconds": 20 if self.broker == "apache" else 6,
                "revoke_timeout_seconds": 30,
            },
            "smtp": {"host": "127.0.0.1", "port": self.smtp_port, "timeout_seconds": 30, "max_reconnect_seconds": 0.3},
            "mail": {"from": "Market <shop@market.test>"},
            "retry": {
                "initial_seconds": 0.05,
                "max_seconds": 0.2,
                "min_deferral_seconds": 0.2,
                "max_deferral_seconds": 2,
                "give_up_seconds": 600,
            },
        }
        for name, value in changes.items():
            config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
        return config

    @asynccontextmanager
    async def running(
        self, process: Process | None = None, clients: Clients | None = None, **changes: Any
    ) -> AsyncIterator[Process]:
        """Run the service in this process; it is ready when the block begins."""
        process = process or Process()
        config = msgspec.convert(self.config(**changes), Config, strict=False)
        async with build(config, process, clients) as consumer:
            async with asyncio.timeout(120):
                await consumer.start()
            process.health.started = True
            yield process
            await consumer.stop(60)

    def start_process(self, **changes: Any) -> ServiceProcess:
        """Start the service in its own process, without waiting until it is ready."""
        process = ServiceProcess("notifications", self.config(**changes), self.directory)
        self.processes.append(process)
        process.start()
        return process

    async def dead_letters_command(self, *args: str, **changes: Any) -> tuple[int, str]:
        """Run `python -m market.notifications dead-letters ARGS` here. Return its exit status and its output."""
        config = msgspec.convert(self.config(**changes), Config, strict=False)
        with redirect_stdout(StringIO()) as output, redirect_stderr(output):
            status = await dead_letters(config, list(args))
        return status, output.getvalue()

    def committed_offsets(self) -> dict[int, int]:
        """Return the group's offset in each partition; negative if there is none."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": self.topic, "log_level": 2})
        try:
            partitions = [TopicPartition(self.topic, n) for n in range(PARTITIONS)]
            return {p.partition: p.offset for p in consumer.committed(partitions, timeout=60)}
        finally:
            consumer.close()

    async def wait_committed(self, number: int) -> None:
        """Wait until the committed offsets of all partitions add up to `number`."""

        async def committed() -> bool:
            try:
                return sum((await asyncio.to_thread(self.committed_offsets)).values()) == number
            except KafkaException as e:
                # A broker that was just restarted is not the group's coordinator yet.
                if e.args[0].code() not in (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS):
                    raise
                return False

        await until(committed, what=f"{number} messages are committed")

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the records of the dead-letter topic: key, value, headers."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": uuid4().hex,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "log_level": 2,
            }
        )
        try:
            found = consumer.list_topics(self.dead_letter_topic, timeout=60).topics[self.dead_letter_topic]
            assert found.error is None
            assert len(found.partitions) == PARTITIONS
            consumer.assign([TopicPartition(self.dead_letter_topic, p, 0) for p in found.partitions])
            remaining, records = len(found.partitions), []
            while remaining:
                record = consumer.poll(60)
                assert record is not None
                if record.error():
                    remaining -= 1
                else:
                    headers = {k: v.decode() for k, v in record.headers() or []}
                    records.append({"key": record.key(), "value": record.value(), "headers": headers})
            return records
        finally:
            consumer.close()

    async def wait_for_dead_letters(self, number: int) -> list[dict[str, Any]]:
        """Return the dead letters once there are at least `number` of them."""

        async def enough() -> list[dict[str, Any]]:
            found = await asyncio.to_thread(self.dead_letters)
            return found if len(found) >= number else []

        return await until(enough, what=f"{number} dead letters")


@pytest.fixture(scope="session")
async def catcher(mail: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the mail catcher's API."""
    async with httpx.AsyncClient(base_url=mail.url, timeout=60) as client:
        yield client


@pytest.fixture
async def mailing(kafka: Any, mail: Any, catcher: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Mailing]:
    """A new topic with its dead-letter topic, and a mail catcher without faults."""
    created = Mailing(
        kafka.bootstrap_servers,
        mail.smtp_port,
        catcher,
        tmp_path,
        kafka.kind,
        short_session_seconds=2.5 if kafka.kind == "apache" else 6,
    )
    created.create_topic()
    created.create_topic(created.dead_letter_topic)
    # A consumer that was stopped during an outage has left it at 1.
    metrics.PAUSED.labels("mail-server").set(0)
    yield created
    for process in created.processes:
        process.kill()
    await created.inject_faults()
