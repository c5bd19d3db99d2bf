"""Mails that a domain defers: they leave memory, wait in a topic, and delay no other domain's mail."""

from __future__ import annotations

import asyncio
import signal
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from market.contracts import events
from market.notifications import metrics
from market.notifications.config import Smtp
from market.notifications.consumer.group_member import RateLimiter
from market.notifications.consumer.ready import ReadyItems
from market.notifications.deferral.orders import OrdersWithDeferredMail
from market.notifications.deferral.queue import DeferredMailRestorer
from market.notifications.deferral.throttle import DomainThrottle
from market.notifications.domain import Message
from tests.notifications.conftest import Mailing, event, message_ids
from tests.support.waiting import until

DEFERRING = "@deferring.test"


def _deferred() -> float:
    """Return how many mails wait in the topic of deferred mails, as this process reports it."""
    return sum(sample.value for sample in metrics.DEFERRED.collect()[0].samples)


def _sent_to(published: list[dict[str, Any]], mails: list[dict[str, Any]]) -> set[str]:
    """Return the Message-IDs of those mails that are about the events."""
    return set(message_ids(published)) & {mail["message_id"] for mail in mails}


def _to_deferring(mailing: Mailing, number: int) -> list[dict[str, Any]]:
    """Return events for so many recipients in the domain that defers."""
    return [event(email=f"n{n}-{mailing.topic}{DEFERRING}") for n in range(number)]


async def _wait_for_all(mailing: Mailing, published: list[dict[str, Any]], seconds: float = 120) -> list[str]:
    """Wait until each event was mailed. Return the Message-IDs of all mails in the domain, with duplicates."""
    expected = set(message_ids(published))
    found: list[str] = []

    async def all_sent() -> bool:
        found.clear()
        for one in published:
            found.extend(m["message_id"] for m in await mailing.mails(one["data"]["email"]))
        return expected <= set(found)

    await until(all_sent, seconds, lambda: f"{len(expected - set(found))} of {len(expected)} mails are missing")
    return found


async def test_mails_that_a_domain_defers_leave_memory_and_delay_no_other_domain(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "451 4.3.0 later", "stage": "rcpt", "to": DEFERRING})
    deferred = _to_deferring(mailing, 300)
    others = [event(email=mailing.mailbox) for _ in range(20)]
    # Memory is for far fewer messages than are deferred.
    async with mailing.running(memory={"max_messages": 30}):
        mailing.publish(*deferred, *others)
        await mailing.wait_for_mails(20)
        # All of them have left memory: the offsets behind them are committed.
        await mailing.wait_committed(320)
        await until(lambda: _deferred() >= 300, what=lambda: f"{_deferred()} mails are deferred")
        assert metrics.UNSETTLED._value.get() <= 30
        await until(lambda: metrics.DEFERRED_OLDEST._value.get() > 0)
        assert metrics.THROTTLED_DOMAINS._value.get() == 1
        # Still none delays another domain's mail.
        mailing.publish(*others[:1], event(email=mailing.mailbox))
        await mailing.wait_for_mails(21)
        await mailing.inject_faults()
        assert sorted(await _wait_for_all(mailing, deferred)) == message_ids(deferred)
        await until(lambda: _deferred() == 0, what=lambda: f"{_deferred()} mails are deferred")
        await until(lambda: metrics.DEFERRED_OLDEST._value.get() == 0)
        assert metrics.THROTTLED_DOMAINS._value.get() == 0
    assert mailing.dead_letters() == []


async def test_no_deferred_mail_is_lost_when_processes_are_killed(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "451 4.3.0 later", "stage": "rcpt", "to": DEFERRING})
    deferred = _to_deferring(mailing, 120)
    fast = {
        "testing": True,
        "kafka": {"session_timeout_seconds": mailing.short_session_seconds},
        "retry": {"in_memory_seconds": 0},
    }
    first = mailing.start_process(**fast)
    await first.ready()
    mailing.publish(*deferred[:60])
    await mailing.wait_committed(60)
    first.arm("notifications.after-deferral")
    mailing.publish(*deferred[60:])
    # Killed when Kafka has a deferred mail, and the offset of its event is not committed.
    assert await first.exited() == -signal.SIGKILL
    second = mailing.start_process(**fast)
    await mailing.wait_committed(120)
    # Killed while all of them wait, or are deferred again.
    second.arm("notifications.after-deferral")
    assert await second.exited() == -signal.SIGKILL
    await mailing.inject_faults()
    third = mailing.start_process(**fast)
    found = await _wait_for_all(mailing, deferred)
    assert await third.stop() == 0
    # A mail that was deferred twice because of a kill is sent once.
    assert sorted(found) == message_ids(deferred)
    assert mailing.dead_letters() == []


async def test_deferred_mails_are_taken_over_by_another_member(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "451 4.3.0 later", "stage": "rcpt", "to": DEFERRING})
    deferred = _to_deferring(mailing, 60)
    async with mailing.running(retry={"in_memory_seconds": 0}):
        mailing.publish(*deferred)
        await mailing.wait_committed(60)
        other = mailing.start_process(retry={"in_memory_seconds": 0})
        await until(lambda: 0 < metrics.DEFERRED_ASSIGNED._value.get() < 4, what="partitions are shared")
        await mailing.inject_faults()
        found = await _wait_for_all(mailing, deferred)
        assert await other.stop() == 0
    assert sorted(found) == message_ids(deferred)


async def test_the_mails_of_an_order_stay_in_order_when_the_first_is_deferred(mailing: Mailing) -> None:
    order_id = uuid4()
    address = f"order-{mailing.topic}{DEFERRING}"
    created = event(order_id, email=address)
    cancelled = event(order_id, events.CANCELLED, email=address)
    await mailing.inject_faults({"mode": "451 4.3.0 later", "stage": "rcpt", "to": address, "times": 3})
    async with mailing.running(retry={"in_memory_seconds": 0, "min_deferral_seconds": 1}):
        mailing.publish(created)
        await mailing.wait_committed(1)
        # The domain accepts other mails.
        mailing.publish(cancelled, event(email=f"other-{mailing.topic}{DEFERRING}"))
        await mailing.wait_for_mails(1, f"other-{mailing.topic}{DEFERRING}")
        found = await mailing.wait_for_mails(2, address)
    assert [m["message_id"] for m in found] == [f"<{e['id']}@market.test>" for e in (created, cancelled)]


async def test_a_mail_that_is_deferred_for_too_long_becomes_a_dead_letter_of_its_original_message(
    mailing: Mailing,
) -> None:
    await mailing.inject_faults({"mode": "452 4.2.2 mailbox full", "stage": "rcpt", "to": mailing.mailbox})
    full = event(email=mailing.mailbox)
    async with mailing.running(retry={"in_memory_seconds": 0, "give_up_seconds": 1, "max_deferral_seconds": 0.3}):
        mailing.publish(full, headers={"x-request-id": "req-9"}, partition=2)
        [letter] = await mailing.wait_for_dead_letters(1)
        await until(lambda: _deferred() == 0)
    headers = letter["headers"]
    assert letter["key"] == full["subject"].encode()
    assert msgspec.json.decode(letter["value"]) == full
    assert headers["dead-letter-reason"] == "retries-exhausted: 452 4.2.2 mailbox full"
    assert [headers[f"dead-letter-{n}"] for n in ("topic", "partition", "offset")] == [mailing.topic, "2", "0"]
    assert headers["x-request-id"] == "req-9"
    assert not [name for name in headers if name.startswith("deferred-")]
    assert await mailing.mails() == []


def test_a_record_with_malformed_headers_is_a_mail_that_is_due() -> None:
    now = 1_800_000_000.0
    headers = (("deferred-due", b"soon"), ("deferred-first", b"1e400"), ("deferred-attempts", None), ("x", b"1"))
    mails = DeferredMailRestorer(300, clock=lambda: now)
    pending = mails.restore(Message("orders.deferred", 3, 7, b"k", b"v", headers))
    assert pending.message == Message("orders.deferred", 3, 7, b"k", b"v", (("x", b"1"),))
    assert pending.offset == 7
    assert pending.seconds_until_due(now) <= 0
    assert pending.first_deferred_at is not None
    assert pending.first_deferred_at.timestamp() == now


def test_the_reason_of_a_deferral_is_read_as_it_was_written() -> None:
    headers = (("deferred-reason", "452 4.2.2 boîte pleine".encode()),)
    pending = DeferredMailRestorer(300).restore(Message("orders.deferred", 3, 7, b"k", b"v", headers))
    assert pending.deferral is not None
    assert pending.deferral.reason == "452 4.2.2 boîte pleine"


async def test_one_mail_that_is_deferred_again_and_again_does_not_throttle_its_domain(mailing: Mailing) -> None:
    await mailing.inject_faults({"mode": "452 4.2.2 mailbox full", "stage": "rcpt", "to": mailing.mailbox})
    retries, held_back = metrics.RETRIES.labels("deferred")._value, metrics.DEFERRALS.labels("throttled")._value
    retries_before, held_back_before = retries.get(), held_back.get()
    others = [event(email=f"n{n}-{mailing.mailbox}") for n in range(20)]
    # The mail is deferred in memory first, and then in the topic.
    fast = {
        "initial_seconds": 0.05,
        "in_memory_seconds": 0.5,
        "min_deferral_seconds": 0.05,
        "max_deferral_seconds": 0.1,
    }
    async with mailing.running(retry=fast):
        mailing.publish(event(email=mailing.mailbox))
        await until(lambda: retries.get() >= retries_before + 15, what="15 deferrals")
        assert metrics.THROTTLED_DOMAINS._value.get() == 0
        # The other mailboxes of its domain get their mails, none of which is held back.
        mailing.publish(*others)
        for one in others:
            await mailing.wait_for_mails(1, one["data"]["email"])
    assert held_back.get() == held_back_before


def test_a_domain_is_throttled_after_different_mails_were_deferred_in_a_row_until_it_accepts_one() -> None:
    now = 100.0
    throttle = DomainThrottle(3, 2.0, clock=lambda: now)
    for mail in ("1", "2"):
        throttle.record_deferred("a.test", mail)
    throttle.record_accepted("a.test")
    for mail in ("1", "2", "1", "2", "2"):
        throttle.record_deferred("a.test", mail)
    assert throttle.reserve("a.test", 10) == 0
    throttle.record_deferred("a.test", "3")
    assert throttle.is_throttled("a.test")
    assert not throttle.is_throttled("b.test")
    # Two attempts per second.
    assert [throttle.reserve("a.test", 1.2) for _ in range(4)] == [0, 0.5, 1.0, None]
    assert throttle.reserve("b.test", 0) == 0
    now = 102.0
    assert throttle.reserve("a.test", 0) == 0
    throttle.record_accepted("a.test")
    assert [throttle.reserve("a.test", 0) for _ in range(3)] == [0, 0, 0]
    assert metrics.THROTTLED_DOMAINS._value.get() == 0


def test_deferred_mails_are_read_at_a_limited_rate() -> None:
    now = 60.0
    rate_limiter = RateLimiter(100, clock=lambda: now)
    now = 61.0
    assert sum(rate_limiter.reserve() <= 0 for _ in range(200)) == 50
    assert 1.4 < rate_limiter.reserve() < 1.6


def test_an_order_with_a_deferred_mail_holds_back_its_later_mails_for_a_limited_time() -> None:
    now = 0.0
    orders, order_id = OrdersWithDeferredMail(clock=lambda: now), uuid4()
    assert not orders.holds_back(order_id, 2)
    orders.add(order_id, 1, 10)
    orders.add(order_id, 2, 10)
    assert orders.holds_back(order_id, 2)
    assert not orders.holds_back(order_id, 1)
    orders.remove(order_id, 2)
    assert orders.holds_back(order_id, 2)
    orders.remove(order_id, 1)
    assert not orders.holds_back(order_id, 2)
    orders.add(order_id, 1, 10)
    now = 10.0
    assert not orders.holds_back(order_id, 2)


async def test_domains_take_turns_and_none_has_more_items_in_flight_than_allowed() -> None:
    ready: ReadyItems[str] = ReadyItems(2)
    for item in ("a1", "a2", "a3", "b1"):
        ready.put(item[0], item)
    assert [await ready.get() for _ in range(3)] == ["a1", "b1", "a2"]
    waiting = asyncio.ensure_future(ready.get())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    ready.release("a")
    assert await waiting == "a3"


async def test_a_cancelled_wait_for_an_item_does_not_swallow_it() -> None:
    ready: ReadyItems[str] = ReadyItems(1)
    first, second = (asyncio.ensure_future(ready.get()) for _ in range(2))
    await asyncio.sleep(0.01)
    ready.put("a", "a1")
    first.cancel()
    assert await asyncio.wait_for(second, 10) == "a1"


@pytest.mark.parametrize(("connections", "per_domain"), [(1, 1), (2, 1), (4, 3), (8, 6)])
def test_one_domain_gets_three_quarters_of_the_connections(connections: int, per_domain: int) -> None:
    assert Smtp(host="mail.test", max_connections=connections).domain_connections == per_domain
