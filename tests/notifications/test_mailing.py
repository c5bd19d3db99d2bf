"""What is mailed, from Kafka to the mail server."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from market.contracts import events
from market.notifications import metrics
from tests.notifications.conftest import Post, event
from tests.support.waiting import until


async def test_a_created_and_a_cancelled_order_are_one_mail_each_with_everything_in_it(post: Post) -> None:
    order = uuid4()
    items = [
        {"product_id": str(uuid4()), "name": "Кружка <b>«Синяя»</b> 🫖", "quantity": 3, "unit_price": "2.50"},
        {"product_id": str(uuid4()), "name": "Tea & towel", "quantity": 1, "unit_price": "1000.05"},
    ]
    made = {"email": post.mailbox, "items": items, "total": "1007.55"}
    async with post.reading():
        post.publish(event(order, **made), event(order, events.CANCELLED, **made), headers={"x-request-id": "req-42"})
        created, cancelled = await post.count(2)
    short = order.hex[-8:].upper()
    assert created["subject"] == f"Your order {short} is confirmed"
    assert cancelled["subject"] == f"Your order {short} is cancelled"
    assert created["from"] == "shop@market.test"
    assert created["headers"]["From"] == "Market <shop@market.test>"
    assert created["headers"]["To"] == post.mailbox
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


async def test_an_order_of_a_thousand_lines_is_mailed_whole(post: Post) -> None:
    items = [
        {"product_id": str(uuid4()), "name": f"{n} " + "Ж" * 190, "quantity": 1, "unit_price": "0.01"}
        for n in range(1_000)
    ]
    async with post.reading():
        post.publish(event(email=post.mailbox, items=items, total="10.00"))
        [mail] = await post.count(1)
    assert mail["text"].count("1 x 0.01 = 0.01") == 1_000
    assert "999 " + "Ж" * 190 in mail["html"]


async def test_the_user_is_written_to_where_it_is_an_address_and_there_is_no_email(post: Post) -> None:
    before = metrics.SKIPPED.labels("no-address")._value.get()
    async with post.reading():
        post.publish(event(user=post.mailbox), event(user="ann"), event(user="Ann <a@example.test>"))
        [mail] = await post.count(1)
        await until(lambda: _counted(before + 2))
    assert mail["to"] == [post.mailbox]


async def _counted(number: float) -> bool:
    return bool(metrics.SKIPPED.labels("no-address")._value.get() >= number)


async def test_what_was_created_before_the_first_start_is_not_mailed_and_what_comes_while_it_is_down_is(
    post: Post,
) -> None:
    post.publish(*(event(email=post.mailbox) for _ in range(8)))
    before = sum(max(0, o) for o in post.committed().values())
    assert before == 0
    async with post.reading() as process:
        # Ready means: every partition has its offset, without a message having been read.
        assert await process.health.not_ready() == {}
        offsets = post.committed()
        assert min(offsets.values()) >= 0
        assert sum(offsets.values()) == 8
    missed = [event(email=post.mailbox) for _ in range(5)]
    post.publish(*missed)
    async with post.reading():
        found = await post.count(5)
        await asyncio.sleep(0.3)
    assert sorted(m["message_id"] for m in found) == sorted(f"<{e['id']}@market.test>" for e in missed)
    assert len(await post.mails()) == 5
    assert sum(post.committed().values()) == 13


async def test_without_replay_missed_each_start_begins_at_the_end(post: Post) -> None:
    async with post.reading(kafka={"replay_missed": False}):
        pass
    post.publish(event(email=post.mailbox))
    new = event(email=post.mailbox)
    async with post.reading(kafka={"replay_missed": False}):
        post.publish(new)
        [mail] = await post.count(1)
        await asyncio.sleep(0.3)
    assert mail["message_id"] == f"<{new['id']}@market.test>"
    assert len(await post.mails()) == 1


async def test_a_repeat_and_a_repeat_after_a_later_event_are_not_mailed_again(post: Post) -> None:
    order = uuid4()
    created, cancelled = event(order, email=post.mailbox), event(order, events.CANCELLED, email=post.mailbox)
    async with post.reading():
        post.publish(created, created, cancelled, created, event(email=post.mailbox))
        await post.all_committed(5)
    assert sorted(m["subject"].rpartition(" ")[2] for m in await post.mails()) == [
        "cancelled",
        "confirmed",
        "confirmed",
    ]


async def test_the_mails_of_one_order_keep_their_order_while_others_overtake(post: Post) -> None:
    orders = [uuid4() for _ in range(40)]
    async with post.reading():
        for type in (events.CREATED, events.CANCELLED):
            post.publish(*(event(order, type, email=post.mailbox) for order in orders))
        found = await post.count(80)
    for order in orders:
        mine = [m["subject"] for m in found if order.hex[-8:].upper() in m["subject"]]
        assert [s.rpartition(" ")[2] for s in mine] == ["confirmed", "cancelled"]


async def test_more_than_fits_into_memory_is_read_piece_by_piece(post: Post) -> None:
    async with post.reading(memory={"messages": 10}):
        post.publish(*(event(email=post.mailbox) for _ in range(60)))
        await post.count(60)
        assert metrics.HELD._value.get() <= 10
    assert sum(post.committed().values()) == 60


async def test_a_topic_that_comes_after_the_service_is_mailed_from_its_first_message(post: Post) -> None:
    post.topic = f"late-{uuid4().hex[:8]}"
    first = event(email=post.mailbox)
    process = post.spawn(kafka={"auto_create_topics": False})

    async def waits() -> bool:
        return "waiting for topic" in process.log_file.read_text()  # type: ignore[attr-defined]

    await until(waits)
    post.make_topic()
    post.publish(first)
    await post.ready(process)
    [mail] = await post.count(1)
    await post.end(process)
    assert mail["message_id"] == f"<{first['id']}@market.test>"
    log = process.log_file.read_text()  # type: ignore[attr-defined]
    assert (
        len([line for line in log.splitlines() if "waiting for topic" in line and "does not exist yet" in line]) == 1
    ), log
