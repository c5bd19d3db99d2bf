"""The use cases: send the mail of a notification, schedule a retry, write a dead letter."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from market.kit.clock import Clock
from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.process.tracing import Tracer
from market.kit.resilience import backoff
from market.notifications import config, metrics
from market.notifications.domain import DeadLetterReason, Message, Notification, PendingMessage
from market.notifications.mail.mailer import Mailer

log = logs.get_logger("mailing")

_MAX_REMEMBERED_ORDERS = 10_000


class DeadLetters(Protocol):
    """Where dead letters go; dead_letters.writer.DeadLetterWriter in production."""

    async def write(self, message: Message, reason: str, now: datetime) -> None:
        """Write the dead letter, and return once it is stored. Raises KafkaException."""


class SentLogForMailing(Protocol):
    """The ids of mailed events, also of those mailed by other processes; sent_log.log.SentLog in production."""

    def add(self, event_id: str) -> None:
        """Remember that the event was mailed."""

    async def contains(self, event_id: str) -> bool:
        """Return whether the event is known to have been mailed."""


class RecentNotifications:
    """The last notification mailed for each of the latest 10,000 orders, so that a duplicate is not mailed again."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[UUID, int] = OrderedDict()

    def add(self, notification: Notification) -> None:
        """Remember that the notification was mailed."""
        self._sequences[notification.order_id] = notification.sequence
        self._sequences.move_to_end(notification.order_id)
        if len(self._sequences) > _MAX_REMEMBERED_ORDERS:
            self._sequences.popitem(last=False)

    def covers(self, notification: Notification) -> bool:
        """Return whether this notification or a later one of the order was mailed; events are published in order."""
        return self._sequences.get(notification.order_id, 0) >= notification.sequence


@dataclass
class Deps:
    """What the use cases work with."""

    mailer: Mailer
    dead_letters: DeadLetters
    retry: config.Retry
    clock: Clock
    tracer: Tracer
    faults: Faults | None = None
    recent: RecentNotifications = field(default_factory=RecentNotifications)
    # None: events are mailed whether or not they were mailed before, as when an operator replays a dead letter.
    sent_log: SentLogForMailing | None = None
    # Events that are older than this are looked up in the sent log.
    sent_log_min_age: timedelta = timedelta(0)


async def notify(deps: Deps, notification: Notification) -> None:
    """Mail the notification, unless it was mailed before or has no recipient.

    Raises MailRejected, MailDeferred or MailServerUnavailable.
    """
    if deps.recent.covers(notification) or await _was_sent(deps, notification):
        metrics.SKIPPED_EVENTS.labels("duplicate").inc()
        log.info("duplicate event skipped", order_id=str(notification.order_id), kind=notification.kind)
        return
    if notification.recipient is None:
        metrics.SKIPPED_EVENTS.labels("no-recipient").inc()
        log.info("event without recipient skipped", order_id=str(notification.order_id), kind=notification.kind)
        return
    with deps.tracer.span(f"mail {notification.kind}"), metrics.MAIL_DURATION.time():
        if deps.faults:
            await deps.faults.fire_if_armed("notifications.before-mail")
        await deps.mailer.send(notification, deps.clock())
        if deps.faults:
            await deps.faults.fire_if_armed("notifications.after-mail")
    metrics.MAILS.labels(notification.kind).inc()
    log.info("mail sent", order_id=str(notification.order_id), kind=notification.kind, event_id=notification.event_id)
    deps.recent.add(notification)
    if deps.sent_log is not None:
        deps.sent_log.add(notification.event_id)


async def _was_sent(deps: Deps, notification: Notification) -> bool:
    """Return whether the sent log has the event. Events younger than `sent_log_min_age` are not looked up.

    Such an event is either new, or redelivered after a crash that lost its id; the log has neither.
    """
    if deps.sent_log is None:
        return False
    old = notification.occurred_at is None or deps.clock() - notification.occurred_at > deps.sent_log_min_age
    return old and await deps.sent_log.contains(notification.event_id)


def schedule_retry(deps: Deps, pending: PendingMessage, reason: str, detail: str) -> float | None:
    """Count a failed attempt. Return the seconds until the next one, or None if the time for retries is over.

    In the latter case `pending.dead_letter` is set. `reason` is the metric label: deferred or internal-error.
    """
    now = deps.mailer.mail_server.available_seconds()
    if pending.first_failure_available_seconds is None:
        pending.first_failure_available_seconds = now
        log.warning("processing failed, will retry", reason=reason, detail=detail, **origin(pending.message))
    remaining = pending.first_failure_available_seconds + deps.retry.give_up_seconds - now
    if remaining <= 0:
        pending.dead_letter = DeadLetterReason("retries-exhausted", detail)
        return None
    pending.attempts += 1
    metrics.RETRIES.labels(reason).inc()
    max_delay = min(deps.retry.max_seconds, deps.retry.initial_seconds * 2.0 ** min(pending.attempts - 1, 30))
    # Equal jitter: between half of the delay and all of it. Capped, so that the last attempt is made at the deadline.
    return min(remaining, random.uniform(max_delay / 2, max_delay))


async def write_dead_letter(deps: Deps, pending: PendingMessage) -> float | None:
    """Write the message to the dead letter topic. Return None if it is stored, or the seconds until the next attempt.

    Retried without limit: the offset is not committed until Kafka has the dead letter, so that no message is lost.
    """
    reason = pending.dead_letter
    assert reason is not None
    try:
        await deps.dead_letters.write(pending.message, str(reason), deps.clock())
    except Exception as e:
        pending.attempts += 1
        metrics.RETRIES.labels("dead-letter").inc()
        log.error("dead letter not written, will retry", error=str(e)[:300], **origin(pending.message))
        return 0.5 + backoff(pending.attempts, base=0.5, max_seconds=10)
    metrics.DEAD_LETTERS.labels(reason.code).inc()
    log.error("dead letter written", reason=reason.code, detail=reason.detail, **origin(pending.message))
    return None


def origin(message: Message) -> dict[str, object]:
    """Return the message's topic, partition and offset, as fields for log events."""
    return {"topic": message.topic, "partition": message.partition, "offset": message.offset}
