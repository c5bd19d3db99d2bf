"""Every server of the stack keeps its port and what it has acknowledged when it is killed."""

from __future__ import annotations

import smtplib
import time
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pymongo
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from market_dev.stack import processes
from market_dev.stack.kafka.broker import EmbeddedKafka
from market_dev.stack.servers.base import StartError
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres

from tests.support import servers
from tests.support.ports import free_port
from tests.support.servers import ServerHandle
from tests.support.waiting import wait_until


async def test_postgres_has_a_database_and_a_user_per_service_without_access_to_the_others(postgres: Any) -> None:
    for name, other in (("products", "inventory"), ("inventory", "products")):
        conn = await asyncpg.connect(postgres.uri(name))
        assert [await conn.fetchval(f"SHOW {setting}") for setting in ("fsync", "synchronous_commit")] == ["on", "on"]
        assert await conn.fetchval("SELECT lower('ÄÖÜ ПРИВЕТ')") == "äöü привет"
        await conn.close()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(
                host=postgres.host, port=postgres.port, user=name, password=postgres.password, database=other
            )


async def test_postgres_keeps_committed_data_when_it_is_killed(server_directory: Path) -> None:
    own = servers.postgres_server(server_directory / "postgres-own", server_directory / "logs")
    handle = ServerHandle(own)
    handle.start()
    try:
        conn = await asyncpg.connect(own.uri("products"))
        await conn.execute("CREATE TABLE t (n int)")
        await conn.execute("INSERT INTO t VALUES (7)")
        handle.kill()
        await conn.close()
        handle.restart()
        conn = await asyncpg.connect(own.uri("products"))
        assert await conn.fetchval("SELECT n FROM t") == 7
        await conn.close()
    finally:
        handle.stop()
    assert processes.is_free(own.port)


async def test_a_postgres_copied_from_the_template_accepts_its_own_passwords_only(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = server_directory / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("without-template", "with-template"):
        port, password = free_port(), uuid.uuid4().hex
        own = Postgres(port, server_directory / name, server_directory / "logs", password)
        handle = ServerHandle(own)
        handle.start()
        try:
            [template] = (cache / "market").iterdir()
            assert (template / "PG_VERSION").read_text().strip() == own.installed.major
            assert not (template / "postmaster.pid").exists()
            for user, database in (("postgres", "postgres"), ("products", "products"), ("inventory", "inventory")):
                where = {"host": own.host, "port": port, "user": user, "database": database}
                conn = await asyncpg.connect(**where, password=password)
                assert await conn.fetchval("SELECT current_user") == user
                await conn.close()
                with pytest.raises(asyncpg.InvalidPasswordError):
                    await asyncpg.connect(**where, password="wrong")
        finally:
            handle.stop()


@pytest.mark.parametrize("missing", ["global/pg_control", "global/1260"])
def test_a_damaged_template_is_made_again(
    missing: str, server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = server_directory / f"cache-{Path(missing).name}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("first", "second"):
        own = Postgres(free_port(), server_directory / f"{cache.name}-{name}", server_directory / "logs", "secret")
        own.prepare()
        assert (own.data / missing).exists()
        [template] = (cache / "market").iterdir()
        # As a program that cleans caches may leave it. 1260 is the table of the users.
        (template / missing).unlink()
    own._execute(own.data, ["SELECT 1"])
    with pytest.raises(StartError, match=r'role "stranger" does not exist$'):
        own._execute(own.data, ["ALTER ROLE stranger PASSWORD 'x'", "SELECT 1"])


def test_postgres_starts_without_a_template_if_the_cache_cannot_be_written(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server_directory / "not-a-directory"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    own = Postgres(free_port(), server_directory / "without-cache", server_directory / "logs", "secret")
    own.prepare()
    assert (own.data / "PG_VERSION").exists()


def test_mongodb_keeps_its_data_when_its_port_changes(server_directory: Path) -> None:
    name = uuid.uuid4().hex
    for n, port in enumerate((free_port(), free_port())):
        server = Mongodb(port, server_directory / "mongodb-own", server_directory / "logs")
        handle = ServerHandle(server)
        handle.start()
        try:
            with pymongo.MongoClient[Any](server.uri, w="majority", journal=True) as client:
                assert client.admin.command("hello")["me"] == f"127.0.0.1:{port}"
                client.test[name].insert_one({"n": n})
                assert client.test[name].count_documents({}) == n + 1
                if n:
                    handle.kill()
                    handle.restart()
                    assert client.test[name].count_documents({}) == 2
        finally:
            handle.stop()


def test_a_paused_server_does_not_respond_until_it_is_resumed(redis_server: Any) -> None:
    redis_server.pause()
    try:
        assert not redis_server.server.probe()
    finally:
        redis_server.resume()
    # A probe gives up after a second.
    wait_until(redis_server.server.probe)


def _send_and_receive(port: int, topic: str) -> None:
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": f"127.0.0.1:{port}", "enable.idempotence": True})
    for n in range(20):
        producer.produce(topic, str(n).encode(), on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(60) == 0
    assert failed == []
    assert len(_received(port, topic, 20)) == 20


def _received(port: int, topic: str, expected: int) -> set[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": f"127.0.0.1:{port}", "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found: set[bytes] = set()
    deadline = time.monotonic() + 60
    while len(found) < expected and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            found.add(message.value() or b"")
    consumer.close()
    return found


def test_kafka_keeps_acknowledged_messages_when_it_is_killed(kafka: Any) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    if kafka.kind == "apache":
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

        def topic_exists() -> bool:
            try:
                admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(60)
            except KafkaException as e:
                # A broker that was paused has left its own cluster for a moment.
                return bool(e.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS)
            return True

        wait_until(topic_exists)
    _send_and_receive(kafka.port, topic)
    if kafka.kind == "apache":
        kafka.kill()
        kafka.restart()
        assert len(_received(kafka.port, topic, 20)) == 20


def test_the_embedded_broker_listens_on_the_requested_port_and_advertises_it(server_directory: Path) -> None:
    server = EmbeddedKafka(free_port(), server_directory / "kafka-own", server_directory / "logs")
    handle = ServerHandle(server)
    handle.start()
    try:
        topics = AdminClient({"bootstrap.servers": f"127.0.0.1:{server.port}"}).list_topics(timeout=60)
        assert [b.port for b in topics.brokers.values()] == [server.port]
        assert len(topics.topics["orders"].partitions) == 4
        _send_and_receive(server.port, "orders")
        handle.kill()
        handle.restart()
        _send_and_receive(server.port, "orders")
    finally:
        handle.stop()


def _mail(to: str, subject: str) -> str:
    return (
        f"From: Shop <shop@market.test>\r\nTo: {to}\r\nSubject: {subject}\r\nMessage-ID: <{subject}@market.test>\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n"
    )


def _deliver(port: int, to: str, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("shop@market.test", [to], _mail(to, subject))


def test_the_mail_catcher_keeps_accepted_mails_when_it_is_killed(server_directory: Path) -> None:
    server = servers.mail_server(server_directory / "mail-own", server_directory / "logs")
    handle = ServerHandle(server)
    handle.start()
    try:
        for n in range(5):
            _deliver(server.smtp_port, "ann@example.test", f"s{n}")
        handle.kill()
        with (server.directory / "mails.log").open("ab") as file:
            file.write(b'{"id":"torn')  # What a kill during a write leaves.
        handle.restart()
        _deliver(server.smtp_port, "Bob@example.test", "last")
        response = httpx.get(f"{server.url}/api/messages", params={"to": "bob@example.test"}, timeout=60).json()
        assert response["total"] == 1
        page = httpx.get(f"{server.url}/api/messages", params={"limit": 2, "offset": 1}, timeout=60).json()
        assert page["total"] == 6
        assert [m["subject"] for m in page["items"]] == ["s4", "s3"]
        first = page["items"][0]
        assert set(first) == {"id", "from", "to", "subject", "message_id", "date", "headers", "text", "html"}
        assert (first["from"], first["to"], first["text"].strip()) == (
            "shop@market.test",
            ["ann@example.test"],
            "hello",
        )
        assert first["message_id"] == first["headers"]["Message-ID"] == "<s4@market.test>"
        assert httpx.get(f"{server.url}/api/messages", params={"limit": 0}, timeout=60).status_code == 422
        assert httpx.post(f"{server.url}/api/faults", json={"mode": "451"}, timeout=60).status_code == 404
        assert httpx.delete(f"{server.url}/api/messages", timeout=60).status_code == 204
        assert httpx.get(f"{server.url}/api/messages", timeout=60).json() == {"items": [], "total": 0}
    finally:
        handle.stop()


def test_the_mail_catcher_injects_only_the_requested_faults(mail: Any) -> None:
    def inject(*faults: dict[str, Any]) -> None:
        assert httpx.post(f"{mail.url}/api/faults", json=list(faults), timeout=60).status_code == 204

    def count(to: str) -> int:
        return int(httpx.get(f"{mail.url}/api/messages", params={"to": to}, timeout=60).json()["total"])

    to = f"{uuid.uuid4().hex}@example.test"
    try:
        inject({"mode": "451", "times": 1})
        with pytest.raises(smtplib.SMTPDataError, match="451"):
            _deliver(mail.smtp_port, to, "a")
        assert count(to) == 0
        _deliver(mail.smtp_port, to, "a")
        assert count(to) == 1
        inject({"mode": "550 5.1.1 unknown", "stage": "rcpt", "to": "nobody@example.test"})
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            _deliver(mail.smtp_port, "nobody@example.test", "b")
        _deliver(mail.smtp_port, to, "b")
        inject({"mode": "drop", "stage": "accepted"})
        with pytest.raises(smtplib.SMTPServerDisconnected):
            _deliver(mail.smtp_port, to, "c")
        assert count(to) == 3
        inject({"mode": "421", "stage": "connect"})
        with pytest.raises(smtplib.SMTPException):
            _deliver(mail.smtp_port, to, "d")
    finally:
        inject()


def test_the_mail_catcher_can_require_a_login(server_directory: Path) -> None:
    server = servers.mail_server(server_directory / "mail-login", server_directory / "logs", "--auth", "shop:secret")
    handle = ServerHandle(server)
    handle.start()
    try:
        with smtplib.SMTP("127.0.0.1", server.smtp_port) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("shop", "wrong")
            client.login("shop", "secret")
            client.sendmail("a@b.test", ["c@d.test"], _mail("c@d.test", "x"))
    finally:
        handle.stop()
