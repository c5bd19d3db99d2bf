"""Dead letters: their topic, and the command that lists, shows, replays and drops them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource
from structlog.testing import capture_logs

from market.contracts import events
from market.kit.process.tracing import Tracer
from market.notifications import config
from market.notifications.api import handle
from market.notifications.dead_letters import replaying
from market.notifications.dead_letters.letters import Claim, DeadLetter
from market.notifications.dead_letters.replaying import Outcome, ReplayDeps
from market.notifications.deferral.orders import OrdersWithDeferredMail
from market.notifications.domain import DeadLetterReason, Message, PendingMessage
from market.notifications.service import DeferralDeps, Deps
from tests.notifications.conftest import PARTITIONS, Mailing, event, json_lines
from tests.support.waiting import until


async def test_the_service_creates_the_dead_letter_topic_with_its_settings(mailing: Mailing) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker creates topics automatically")
    name = f"created-{uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": mailing.bootstrap_servers, "log_level": 2})

    def exists() -> bool:
        topic = admin.list_topics(timeout=60).topics.get(name)
        return topic is not None and topic.error is None and len(topic.partitions) == PARTITIONS

    async with mailing.running(kafka={"dead_letter_topic": name}):
        await until(lambda: asyncio.to_thread(exists))
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    settings = await asyncio.to_thread(admin.describe_configs([resource])[resource].result, 60)
    assert settings["retention.ms"].value == str(events.RETENTION_MS)
    assert settings["max.message.bytes"].value == str(events.MAX_MESSAGE_BYTES)
    assert settings["min.insync.replicas"].value == "1"


async def test_a_dead_letter_larger_than_its_topic_allows_is_written_without_its_value(mailing: Mailing) -> None:
    huge = b"x" * (events.MAX_MESSAGE_BYTES - 200)
    async with mailing.running():
        mailing.publish_raw(b"k" * 8, huge)
        [letter] = await mailing.wait_for_dead_letters(1)
        # Apache Kafka rejects messages above the limit of the topic; the embedded broker has no limit.
        assert letter["value"] in (None, huge)
        letter_id = json_lines((await mailing.dead_letters_command("list", "--json"))[1])[0]["id"]
        _, output = await mailing.dead_letters_command("show", letter_id, "--json")
    assert json_lines(output)[0]["value"] == huge.decode()


async def test_dead_letters_are_listed_shown_replayed_and_dropped(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "550", "stage": "rcpt", "to": mailing.mailbox})
    mine = [event(uuid4(), email=mailing.mailbox) for _ in range(3)]
    async with mailing.running():
        mailing.publish(*mine)
        await mailing.wait_for_dead_letters(3)
    status, output = await mailing.dead_letters_command("list", "--json")
    assert status == 0
    listed = {x["key"]: x for x in json_lines(output)}
    assert set(listed) == {e["subject"] for e in mine}
    assert {x["status"] for x in listed.values()} == {"open"}
    first, second, third = (listed[e["subject"]]["id"] for e in mine)

    status, output = await mailing.dead_letters_command("show", first, "--json")
    assert msgspec.json.decode(json_lines(output)[0]["value"]) == mine[0]

    # Rejected again, so it stays open.
    status, output = await mailing.dead_letters_command("replay", first, "--json")
    assert (status, json_lines(output)[0]["result"]) == (1, "open")
    await mailing.inject_faults()
    status, output = await mailing.dead_letters_command("replay", first, second, "--json")
    assert (status, [x["result"] for x in json_lines(output)]) == (0, ["replayed", "replayed"])
    assert [m["message_id"] for m in await mailing.mails()] == [f"<{e['id']}@market.test>" for e in mine[:2]]
    status, output = await mailing.dead_letters_command("drop", "--all", "--json")
    assert (status, json_lines(output)) == (0, [{"id": third, "result": "dropped"}])

    assert json_lines((await mailing.dead_letters_command("list", "--json"))[1]) == []
    _, output = await mailing.dead_letters_command("list", "--all", "--json")
    assert {x["id"]: x["status"] for x in json_lines(output)} == {
        first: "replayed",
        second: "replayed",
        third: "dropped",
    }
    status, output = await mailing.dead_letters_command("replay", first, "--json")
    assert (status, json_lines(output)[0]["result"]) == (0, "already replayed")
    assert len(await mailing.mails()) == 2
    assert (await mailing.dead_letters_command("show", "0-99"))[0] == 2
    assert (await mailing.dead_letters_command("drop"))[0] == 2
    assert "0 dead letters" in (await mailing.dead_letters_command("list"))[1]


class FailingOnce:
    """A store of dead letters whose first write fails."""

    def __init__(self) -> None:
        self.writes = 0

    async def write(self, message: Message, reason: DeadLetterReason, now: datetime) -> None:
        self.writes += 1
        if self.writes == 1:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))


async def test_later_mails_of_an_order_are_sent_after_a_dead_letter_was_written_at_the_second_try() -> None:
    order_id = uuid4()
    orders = OrdersWithDeferredMail()
    orders.add(order_id, 1, seconds=600)
    letters = FailingOnce()
    deferral = DeferralDeps(store=None, throttle=None, orders_with_deferred_mail=orders)
    deps = Deps(None, letters, config.Retry(), lambda: datetime.now(UTC), Tracer(), deferral_deps=deferral)
    created = event(order_id)
    message = Message("orders", 0, 7, created["subject"].encode(), msgspec.json.encode(created), ())
    pending = PendingMessage(message, 7, dead_letter=DeadLetterReason("rejected", "550"))
    assert await handle(deps, pending) > 0
    assert orders.holds_back(order_id, 2)
    assert await handle(deps, pending) is None
    assert not orders.holds_back(order_id, 2)


class UnreadableLetters:
    """A reader whose letters cannot be processed, by a fault of the service."""

    def original_message(self, letter: DeadLetter) -> Message:
        raise ValueError("broken")


async def test_a_dead_letter_that_fails_unexpectedly_is_reported_and_stays_open() -> None:
    letter = DeadLetter(partition=0, offset=7, key=None, value_size=0, headers=())
    deps: Any = None
    reader: Any = UnreadableLetters()
    assert await replaying._mail(deps, reader, letter) == Outcome("open", "internal-error", "ValueError: broken")


class SilentWriter:
    """A writer to which Kafka does not respond."""

    async def claim(self, *args: Any) -> None:
        await asyncio.Event().wait()


async def test_a_replay_that_takes_too_long_is_reported_with_the_time_that_it_had() -> None:
    mailing_deps: Any = Deps(None, None, config.Retry(), lambda: datetime.now(UTC), Tracer())
    limits = config.DeadLetters(mail_seconds=0.25)
    writer: Any = SilentWriter()
    nothing: Any = None
    deps = ReplayDeps(nothing, limits, writer, nothing, mailing_deps, kafka_seconds=0.25)
    letter = DeadLetter(partition=0, offset=7, key=None, value_size=0, headers=())
    with pytest.raises(TimeoutError, match=r"^dead letter 0-7 was not replayed within 0\.5 s$"):
        await replaying.resolve(deps, nothing, nothing, letter, "replayed")


class ForgetfulWriter:
    """A writer that claims dead letters, and to which Kafka does not respond when they are marked as done."""

    def __init__(self, letter: DeadLetter) -> None:
        self._letter = letter

    async def claim(
        self, _partition: int, _offset: int, _key: Any, token: str, _now: datetime, until: datetime
    ) -> None:
        self._letter.claim = Claim(token, until)

    async def mark(self, *_args: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def read_on(self, *_args: Any) -> None:
        """Act as the reader, too: nobody else has claimed the dead letter."""


async def test_a_dead_letter_that_could_not_be_marked_as_done_is_in_the_audit_log() -> None:
    mailing_deps: Any = Deps(None, None, config.Retry(), lambda: datetime.now(UTC), Tracer())
    letter = DeadLetter(partition=0, offset=7, key=None, value_size=0, headers=())
    kafka: Any = ForgetfulWriter(letter)
    nothing: Any = None
    deps = ReplayDeps(nothing, config.DeadLetters(), kafka, nothing, mailing_deps)
    with capture_logs() as lines, pytest.raises(KafkaException):
        await replaying.resolve_with_audit(deps, kafka, nothing, letter, "dropped")
    [entry] = [line for line in lines if line.get("component") == "audit"]
    assert (entry["event"], entry["target"], entry["after"]) == ("dead letter dropped", "dead letter 0-7", "unknown")


class SilentMailServer:
    """A mailer whose mail server does not reply, and a writer and reader that have one dead letter."""

    def __init__(self, letter: DeadLetter) -> None:
        self._letter = letter

    async def send(self, *_args: Any) -> None:
        await asyncio.Event().wait()

    async def claim(
        self, _partition: int, _offset: int, _key: Any, token: str, _now: datetime, until: datetime
    ) -> None:
        self._letter.claim = Claim(token, until)

    async def release(self, *_args: Any) -> None:
        self._letter.claim = None

    def read_on(self, *_args: Any) -> None:
        """Nobody else has claimed the dead letter."""

    def original_message(self, _letter: DeadLetter) -> Message:
        return Message("orders", 0, 0, b"key", msgspec.json.encode(event(uuid4(), user="ann@example.test")))

    async def was_mailed(self, *_args: Any) -> bool:
        return False


async def test_a_replay_that_the_mail_server_did_not_reply_to_is_in_the_audit_log() -> None:
    letter = DeadLetter(partition=0, offset=7, key=None, value_size=0, headers=())
    fake: Any = SilentMailServer(letter)
    mailing_deps: Any = Deps(fake, None, config.Retry(), lambda: datetime.now(UTC), Tracer())
    nothing: Any = None
    deps = ReplayDeps(nothing, config.DeadLetters(mail_seconds=0.1), fake, fake, mailing_deps)
    with capture_logs() as lines:
        outcome = await replaying.resolve_with_audit(deps, fake, nothing, letter, "replayed")
    assert (outcome.result, outcome.reason) == ("open", "no-reply")
    # The mail may have been sent.
    [entry] = [line for line in lines if line.get("component") == "audit"]
    assert (entry["event"], entry["target"], entry["after"]) == ("dead letter replayed", "dead letter 0-7", "unknown")


async def test_a_dead_letter_that_could_not_be_written_is_written_later_although_its_event_cannot_be_parsed() -> None:
    letters: Any = FailingOnce()
    orders = OrdersWithDeferredMail()
    deferral: Any = DeferralDeps(store=None, throttle=None, orders_with_deferred_mail=orders)
    deps = Deps(None, letters, config.Retry(), lambda: datetime.now(UTC), Tracer(), deferral_deps=deferral)
    not_bytes: Any = 7
    message = Message("orders", 0, 7, b"key", not_bytes, ())
    pending = PendingMessage(message, 7, dead_letter=DeadLetterReason("retries-exhausted", "TypeError"))
    assert await handle(deps, pending) > 0
    assert await handle(deps, pending) is None
    assert letters.writes == 2


async def test_headers_of_a_message_cannot_mark_dead_letters_as_done(mailing: Mailing) -> None:
    async with mailing.running():
        mailing.publish_raw(b"k", b"not json", headers={"dead-letter-done": "0-0", "kept": "yes"}, partition=0)
        [letter] = await mailing.wait_for_dead_letters(1)
    assert letter["headers"]["kept"] == "yes"
    assert "dead-letter-done" not in letter["headers"]
    assert len(json_lines((await mailing.dead_letters_command("list", "--json"))[1])) == 1


async def test_a_topic_that_kafka_refuses_is_an_error_and_not_an_empty_list(mailing: Mailing) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker accepts every name of a topic")
    status, output = await mailing.dead_letters_command("list", kafka={"dead_letter_topic": "not a topic"})
    assert status == 1
    assert "0 dead letters" not in output
