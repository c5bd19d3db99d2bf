"""A topic of its own per test, the service in this process or in one of its own, and the sink's mails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from market.contracts import events
from market.kit.process.lifecycle import Process
from market.notifications import metrics
from market.notifications.app import build
from market.notifications.config import Config
from market.notifications.dead_letters import dead_letters
from tests.support.ports import free_port
from tests.support.waiting import until

PARTITIONS = 4


def event(
    order_id: UUID | None = None,
    type: str = events.CREATED,
    *,
    user: str = "ann",
    email: str | None = None,
    items: list[dict[str, Any]] | None = None,
    total: str = "5.00",
) -> dict[str, Any]:
    """An event as orders publishes it."""
    order_id = order_id or uuid4()
    items = items or [{"product_id": str(uuid4()), "name": "Blue mug", "quantity": 2, "unit_price": "2.50"}]
    order = {
        "id": str(order_id),
        "user": user,
        "email": email,
        "items": items,
        "total": total,
        "currency": "GBP",
        "status": "confirmed" if type == events.CREATED else "cancelled",
        "created_at": "2026-03-01T10:20:30.123Z",
    }
    return {
        "specversion": "1.0",
        "id": str(events.event_id(order_id, type)),
        "source": "/market/orders",
        "type": type,
        "subject": str(order_id),
        "time": "2026-03-01T10:20:31Z",
        "datacontenttype": "application/json",
        "sequence": events.SEQUENCE.get(type, 9),
        "data": order,
    }


@dataclass
class Post:
    """The topic of one test, and the mails that came of it."""

    bootstrap_servers: str
    smtp_port: int
    sink: httpx.AsyncClient
    directory: Path
    kind: str
    # The shortest session, for those who come after one that was killed; a real broker takes no less than 6 by default.
    short_session: float
    topic: str = field(default_factory=lambda: f"orders-{uuid4().hex[:8]}")
    mailbox: str = field(default_factory=lambda: f"c{uuid4().hex[:12]}@example.test")

    def __post_init__(self) -> None:
        self.producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "linger.ms": 0,
                "message.max.bytes": 4_300_000,
                "log_level": 2,
                # What is tried again neither comes twice nor overtakes.
                "enable.idempotence": True,
            }
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def letters(self) -> str:
        return f"{self.topic}.dead-letter"

    def make_topic(self, name: str | None = None) -> None:
        """Returns when the broker that clients ask knows it, with a leader for each partition."""
        name = name or self.topic
        if self.kind == "embedded":
            # It makes topics by itself.
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
                # A broker that stood still is out of its own cluster for a moment.
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
        for one in published:
            self.publish_raw(one["subject"].encode(), msgspec.json.encode(one), headers=headers, partition=partition)
        assert self.producer.flush(60) == 0

    def publish_raw(
        self, key: bytes | None, value: bytes | None, *, headers: dict[str, str] | None = None, partition: int = -1
    ) -> None:
        self.producer.produce(
            self.topic,
            key=key,
            value=value,
            partition=partition,
            headers=[(k, v.encode()) for k, v in (headers or {}).items()],
        )

    async def mails(self, to: str | None = None) -> list[dict[str, Any]]:
        """Oldest first."""
        answer = await self.sink.get("/api/messages", params={"to": to or self.mailbox, "limit": 1000})
        return list(reversed(answer.json()["items"]))

    async def count(self, number: int, to: str | None = None, seconds: float = 60) -> list[dict[str, Any]]:
        """The mails, once there are `number` of them."""

        async def enough() -> list[dict[str, Any]]:
            found = await self.mails(to)
            return found if len(found) >= number else []

        return await until(enough, seconds) if number else []

    async def misbehave(self, *faults: dict[str, Any]) -> None:
        (await self.sink.post("/api/faults", json=list(faults))).raise_for_status()

    def tree(self, **changes: Any) -> dict[str, Any]:
        """A configuration for this topic; a section's keys are changed one by one."""
        tree: dict[str, Any] = {
            "admin": {"port": free_port()},
            "log": {"level": "info", "format": "console"},
            "shutdown": {"drain_seconds": 0, "grace_seconds": 30},
            "kafka": {
                "bootstrap_servers": self.bootstrap_servers,
                "group": self.topic,
                "topic": self.topic,
                "dead_letter_topic": self.letters,
                # Long: whoever stands still for seconds shall keep its partitions, and repeat no mail. The embedded broker
                # makes everyone wait as long at each rebalance.
                "session_timeout_seconds": 20 if self.kind == "apache" else 6,
                "revoke_seconds": 30,
                "auto_create_topics": True,
            },
            "smtp": {"host": "127.0.0.1", "port": self.smtp_port, "timeout_seconds": 30, "reconnect_seconds": 0.3},
            "mail": {"from": "Market <shop@market.test>"},
            "retry": {"first_seconds": 0.05, "most_seconds": 0.2, "give_up_seconds": 600},
        }
        for name, value in changes.items():
            tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
        return tree

    @asynccontextmanager
    async def reading(self, process: Process | None = None, **changes: Any) -> AsyncIterator[Process]:
        """The service in this process, ready."""
        process = process or Process()
        config = msgspec.convert(self.tree(**changes), Config, strict=False)
        async with build(config, process) as reader:
            async with asyncio.timeout(120):
                await reader.start()
            process.health.started = True
            yield process
            await reader.stop(60)

    def spawn(self, **changes: Any) -> subprocess.Popen[bytes]:
        """The service in a process of its own; `log(process)` is what it wrote."""
        file = self.directory / f"{uuid4().hex[:6]}.yaml"
        file.write_text(yaml.safe_dump(self.tree(**changes)))
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "market.notifications"],
                env={**os.environ, "CONFIG_PATH": str(file)},
                stderr=log,
                stdout=log,
            )
        process.log_file = file.with_suffix(".log")  # type: ignore[attr-defined]
        process.admin = yaml.safe_load(file.read_text())["admin"]["port"]  # type: ignore[attr-defined]
        self.processes.append(process)
        return process

    async def ready(self, process: Any, seconds: float = 120) -> None:
        async def asks() -> bool:
            assert process.poll() is None, process.log_file.read_text()
            try:
                return (await self.sink.get(f"http://127.0.0.1:{process.admin}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(asks, seconds)

    async def end(self, process: subprocess.Popen[bytes]) -> None:
        """Stops one that was spawned, in an orderly way."""
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0

    async def command(self, *args: str, **changes: Any) -> tuple[int, str]:
        """Exit status and output of `python -m market.notifications dead-letters ARGS`."""
        config = msgspec.convert(self.tree(**changes), Config, strict=False)
        with redirect_stdout(StringIO()) as output, redirect_stderr(output):
            status = await dead_letters(config, list(args))
        return status, output.getvalue()

    def committed(self) -> dict[int, int]:
        """The group's offset in each partition."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": self.topic, "log_level": 2})
        try:
            return {
                p.partition: p.offset
                for p in consumer.committed([TopicPartition(self.topic, n) for n in range(PARTITIONS)], timeout=60)
            }
        finally:
            consumer.close()

    async def all_committed(self, number: int) -> None:
        """Waits until so many messages, of all partitions together, are committed."""

        async def enough() -> bool:
            return sum((await asyncio.to_thread(self.committed)).values()) == number

        await until(enough)

    def dead_letters(self) -> list[dict[str, Any]]:
        """What lies in the dead letter topic: key, value, headers."""
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
            found = consumer.list_topics(self.letters, timeout=60).topics[self.letters]
            assert found.error is None
            assert len(found.partitions) == PARTITIONS
            consumer.assign([TopicPartition(self.letters, p, 0) for p in found.partitions])
            left, letters = len(found.partitions), []
            while left:
                record = consumer.poll(60)
                assert record is not None
                if record.error():
                    left -= 1
                else:
                    headers = {k: v.decode() for k, v in record.headers() or []}
                    letters.append({"key": record.key(), "value": record.value(), "headers": headers})
            return letters
        finally:
            consumer.close()


@pytest.fixture(scope="session")
async def sink(mail: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=mail.url, timeout=60) as client:
        yield client


@pytest.fixture
async def post(kafka: Any, mail: Any, sink: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Post]:
    """A fresh topic, its dead letter topic, and a well-behaved mail server."""
    made = Post(
        f"{kafka.host}:{kafka.port}", mail.smtp_port, sink, tmp_path, kafka.kind, 2.5 if kafka.kind == "apache" else 6
    )
    made.make_topic()
    made.make_topic(made.letters)
    # A reader that ended while the mail server was away has left it at 1.
    metrics.PAUSED.labels("mail-server").set(0)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    await made.misbehave()


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """The directory where failure points are armed."""
    directory = tmp_path / "points"
    directory.mkdir()
    return directory


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
