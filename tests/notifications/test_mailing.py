"""Events in Kafka become mails at the mail server."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from market.contracts import events
from market.kit import context
from market.kit.process.lifecycle import Process
from market.kit.process.tracing import Tracer
from market.notifications import metrics
from market.notifications.app import Clients
from market.notifications.config import Config
from market.notifications.domain import Mail
from market.notifications.mail.smtp import SmtpClient
from tests.notifications.conftest import PARTITIONS, Mailing, event, message_ids
from tests.support.waiting import until


async def test_an_order_gets_a_complete_mail_when_it_is_created_and_when_it_is_cancelled(mailing: Mailing) -> None:
    order = uuid4()
    items = [
        {"product_id": str(uuid4()), "name": "Кружка <b>«Синяя»</b> 🫖", "quantity": 3, "unit_price": "2.50"},
        {"product_id": str(uuid4()), "name": "Tea & towel", "quantity": 1, "unit_price": "1000.05"},
    ]
    contents = {"email": mailing.mailbox, "items": items, "total": "1007.55"}
    async with mailing.running():
        mailing.publish(
            event(order, **contents), event(order, events.CANCELLED, **contents), headers={"x-request-id": "req-42"}
        )
        created, cancelled = await mailing.wait_for_mails(2)
    short = order.hex[-8:].upper()
    assert created["subject"] == f"Your order {short} is confirmed"
    assert cancelled["subject"] == f"Your order {short} has been cancelled"
    assert created["from"] == "shop@market.test"
    assert created["headers"]["From"] == "Market <shop@market.test>"
    assert created["headers"]["To"] == mailing.mailbox
    assert created["message_id"] == f"<{events.event_id(order, events.CREATED)}@market.test>"
    assert cancelled["message_id"] == f"<{events.event_id(order, events.CANCELLED)}@market.test>"
    assert cancelled["headers"]["In-Reply-To"] == created["message_id"]
    assert created["headers"]["X-Request-Id"] == "req-42"
    assert created["headers"]["Auto-Submitted"] == "auto-generated"
    assert created["headers"]["Date"]
    for text in (
        "Кружка <b>«Синяя»</b> 🫖",
        "3 x 2.50 = 7.50",
        "Tea & towel",
        "1 x 1000.05 = 1000.05",
        "Total: 1007.55 GBP",
        str(order),
    ):
        assert text in created["text"]
    for html in (
        "Кружка &lt;b&gt;«Синяя»&lt;/b&gt; 🫖",
        "Tea &amp; towel",
        ">7.50<",
        ">1000.05<",
        "1007.55 GBP",
        '<html lang="en">',
    ):
        assert html in created["html"]
    assert "cancelled" in cancelled["text"]
    assert "cancelled" in cancelled["html"]


class RecordingClient(SmtpClient):
    """Records the trace in which each mail is sent."""

    traces: list[context.Trace]

    async def send(self, mail: Mail) -> None:
        self.traces.append(context.current_trace())
        await super().send(mail)


async def test_the_span_of_a_mail_continues_the_trace_of_the_request(mailing: Mailing) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    config = msgspec.convert(mailing.config(), Config, strict=False)
    client = RecordingClient(config.smtp, config.mail.address)
    client.traces = []
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": parent, "tracestate": "a=1,b=2", "baggage": "user=7;p=1,shop=8"}
    async with mailing.running(Process(tracer=Tracer(provider.get_tracer("test"))), Clients(client)):
        mailing.publish(event(email=mailing.mailbox), headers=headers)
        await mailing.wait_for_mails(1)
        mailing.publish(event(email=mailing.mailbox), headers={"tracestate": "a=1", "baggage": "user=7"})
        await mailing.wait_for_mails(2)
    continued, own = exporter.get_finished_spans()
    assert (f"{continued.context.trace_id:032x}", f"{continued.parent.span_id:016x}") == (parent[3:35], parent[36:52])
    assert continued.context.trace_state.to_header() == "a=1,b=2"
    assert client.traces[0].traceparent == f"{parent[:36]}{continued.context.span_id:016x}-01"
    assert client.traces[0][1:] == ("a=1,b=2", "user=7;p=1,shop=8")
    # Without a traceparent, the other two are dropped.
    assert own.parent is None
    assert client.traces[1][1:] == ("", "")


async def test_a_mail_contains_all_lines_of_an_order_of_a_thousand_lines(mailing: Mailing) -> None:
    items = [
        {"product_id": str(uuid4()), "name": f"{n} " + "Ж" * 190, "quantity": 1, "unit_price": "0.01"}
        for n in range(1_000)
    ]
    async with mailing.running():
        mailing.publish(event(email=mailing.mailbox, items=items, total="10.00"))
        [mail] = await mailing.wait_for_mails(1)
    assert mail["text"].count("1 x 0.01 = 0.01") == 1_000
    assert "999 " + "Ж" * 190 in mail["html"]


async def test_the_user_is_the_recipient_if_it_is_an_address_and_the_order_has_no_email(mailing: Mailing) -> None:
    skipped = {r: metrics.SKIPPED_EVENTS.labels(r)._value.get for r in ("no-recipient", "invalid-recipient")}
    before = {reason: count() for reason, count in skipped.items()}
    async with mailing.running():
        mailing.publish(event(user=mailing.mailbox), event(user="ann"), event(user="Ann <a@example.test>"))
        [mail] = await mailing.wait_for_mails(1)
        await mailing.wait_committed(3)
    assert {reason: count() - before[reason] for reason, count in skipped.items()} == dict.fromkeys(skipped, 1)
    assert mail["to"] == [mailing.mailbox]


async def test_events_before_the_first_start_are_not_mailed_and_events_during_later_downtime_are(
    mailing: Mailing,
) -> None:
    mailing.publish(*(event(email=mailing.mailbox) for _ in range(8)))
    before = sum(max(0, o) for o in mailing.committed_offsets().values())
    assert before == 0
    async with mailing.running() as process:
        # Ready means that every partition has a committed offset, even if no message was read.
        assert process.health.unready_reasons() == {}
        offsets = mailing.committed_offsets()
        assert min(offsets.values()) >= 0
        assert sum(offsets.values()) == 8
    missed = [event(email=mailing.mailbox) for _ in range(5)]
    mailing.publish(*missed)
    async with mailing.running():
        found = await mailing.wait_for_mails(5)
        await asyncio.sleep(0.3)
    assert sorted(m["message_id"] for m in found) == message_ids(missed)
    assert len(await mailing.mails()) == 5
    assert sum(mailing.committed_offsets().values()) == 13


async def test_without_replay_missed_each_start_begins_at_the_end(mailing: Mailing) -> None:
    async with mailing.running(kafka={"replay_missed": False}):
        pass
    mailing.publish(event(email=mailing.mailbox))
    new = event(email=mailing.mailbox)
    async with mailing.running(kafka={"replay_missed": False}):
        mailing.publish(new)
        [mail] = await mailing.wait_for_mails(1)
        await asyncio.sleep(0.3)
    assert mail["message_id"] == f"<{new['id']}@market.test>"
    assert len(await mailing.mails()) == 1


async def test_duplicate_events_are_not_mailed_again_even_after_a_later_event(mailing: Mailing) -> None:
    order = uuid4()
    created, cancelled = event(order, email=mailing.mailbox), event(order, events.CANCELLED, email=mailing.mailbox)
    async with mailing.running():
        mailing.publish(created, created, cancelled, created, event(email=mailing.mailbox))
        await mailing.wait_committed(5)
    assert sorted(m["subject"].rpartition(" ")[2] for m in await mailing.mails()) == [
        "cancelled",
        "confirmed",
        "confirmed",
    ]


async def test_mails_of_one_order_are_sent_in_the_order_of_its_events(mailing: Mailing) -> None:
    orders = [uuid4() for _ in range(40)]
    async with mailing.running():
        for event_type in (events.CREATED, events.CANCELLED):
            mailing.publish(*(event(order, event_type, email=mailing.mailbox) for order in orders))
        found = await mailing.wait_for_mails(80)
    for order in orders:
        mine = [m["subject"] for m in found if order.hex[-8:].upper() in m["subject"]]
        assert [s.rpartition(" ")[2] for s in mine] == ["confirmed", "cancelled"]


async def test_more_messages_than_fit_in_the_memory_budget_are_consumed_with_backpressure(mailing: Mailing) -> None:
    async with mailing.running(memory={"max_messages": 10}):
        mailing.publish(*(event(email=mailing.mailbox) for _ in range(60)))
        await mailing.wait_for_mails(60)
        assert metrics.UNSETTLED._value.get() <= 10
    assert sum(mailing.committed_offsets().values()) == 60


async def test_a_topic_created_after_the_start_is_mailed_from_its_first_message(mailing: Mailing) -> None:
    if mailing.broker != "apache":
        pytest.skip("the embedded broker creates topics on first use only, so none can be missing at the start")
    mailing.topic = f"late-{uuid4().hex[:8]}"
    first = event(email=mailing.mailbox)
    process = mailing.start_process(kafka={"partitions": PARTITIONS})

    await until(lambda: f"topic {mailing.topic}" in process.log)
    mailing.create_topic()
    mailing.publish(first)
    await process.ready()
    [mail] = await mailing.wait_for_mails(1)
    assert await process.stop() == 0
    assert mail["message_id"] == f"<{first['id']}@market.test>"
    waiting = [line for line in process.log.splitlines() if "waiting for dependency" in line]
    assert len([line for line in waiting if "does not exist yet" in line]) == 1, process.log
