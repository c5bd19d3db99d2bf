"""The use cases: send the mail of a notification, retry or defer it, write a dead letter."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID

from market.kit.clock import Clock
from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.process.tracing import Tracer
from market.kit.resilience import backoff
from market.notifications import config, metrics
from market.notifications.domain import (
    DeadLetterReason,
    Deferral,
    MailDeferred,
    MailHeldBack,
    Message,
    Notification,
    PendingMessage,
)
from market.notifications.mail.mailer import Mailer

log = logs.get_logger("mailing")

_MAX_RECENT_NOTIFICATIONS = 10_000
# The minimum number of failed attempts before an event becomes a dead letter because its retries are exhausted.
_MIN_ATTEMPTS = 5


class DeadLetters(Protocol):
    """Stores dead letters. In production: dead_letters.writer.DeadLetterWriter."""

    async def write(self, message: Message, reason: DeadLetterReason, now: datetime) -> None:
        """Write the dead letter, and return once it is stored. Raises KafkaException."""


class SentLogForMailing(Protocol):
    """What mailing needs from the sent log: the ids of mailed events, including those mailed by other processes.

    In production: sent_log.log.SentLog.
    """

    def add(self, event_id: str) -> None:
        """Record that the event was mailed."""

    async def contains(self, event_id: str) -> bool:
        """Return whether the log contains the event. Return False if the log cannot be read."""


class DeferredMailStore(Protocol):
    """Stores deferred mails. In production: deferral.queue.DeferredMailWriter."""

    async def append(self, message: Message, deferral: Deferral) -> None:
        """Append a deferred mail, and return once it is stored. Raises KafkaException."""


class Throttle(Protocol):
    """Limits delivery attempts to domains whose mails are deferred. In production: deferral.throttle.DomainThrottle."""

    def record_deferred(self, domain: str, mail_id: str) -> None:
        """Record that a mail for the domain was deferred: by the mail server, or because the connection to it broke."""

    def record_accepted(self, domain: str) -> None:
        """Record that the mail server accepted a mail for the domain."""

    def is_throttled(self, domain: str) -> bool:
        """Return whether delivery attempts to the domain are limited."""

    def reserve(self, domain: str, max_seconds: float) -> float | None:
        """Reserve an attempt, and return the seconds until it may be made.

        Return None, and reserve nothing, if that is more than `max_seconds`.
        """


class OrdersWithDeferredMail(Protocol):
    """Knows which orders have a deferred mail. In production: deferral.orders.OrdersWithDeferredMail."""

    def add(self, order_id: UUID, sequence: int, seconds: float) -> None:
        """Record that the notification was deferred. The entry expires after `seconds`."""

    def remove(self, order_id: UUID, sequence: int) -> None:
        """Record that the notification is no longer deferred: it was mailed, skipped or stored as a dead letter."""

    def holds_back(self, order_id: UUID, sequence: int) -> bool:
        """Return whether an earlier notification of the order is deferred."""


@dataclass(frozen=True)
class DeferralDeps:
    """The dependencies of the use cases for deferring mails."""

    store: DeferredMailStore
    throttle: Throttle
    orders_with_deferred_mail: OrdersWithDeferredMail


class RecentNotifications:
    """The latest 10,000 notifications that this process mailed, so that a duplicate is not mailed again."""

    def __init__(self) -> None:
        self._event_ids: OrderedDict[str, None] = OrderedDict()

    def add(self, notification: Notification) -> None:
        """Record that the notification was mailed."""
        self._event_ids[notification.event_id] = None
        self._event_ids.move_to_end(notification.event_id)
        if len(self._event_ids) > _MAX_RECENT_NOTIFICATIONS:
            self._event_ids.popitem(last=False)

    def __contains__(self, notification: Notification) -> bool:
        return notification.event_id in self._event_ids


@dataclass
class Deps:
    """The dependencies of the use cases."""

    mailer: Mailer
    dead_letters: DeadLetters
    retry: config.Retry
    clock: Clock
    tracer: Tracer
    faults: Faults | None = None
    recent: RecentNotifications = field(default_factory=RecentNotifications)
    # None while an operator replays a dead letter: then the mail is attempted once, and not deferred.
    deferral_deps: DeferralDeps | None = None
    # None while an operator replays a dead letter: then dead_letters/replaying.py reads and writes the sent log.
    sent_log: SentLogForMailing | None = None
    # Events that are older than this are looked up in the sent log.
    sent_log_min_age: timedelta = timedelta(0)


NotifyResult = Literal["mailed", "duplicate", "no-recipient"]


async def notify(deps: Deps, notification: Notification, deferral: Deferral | None = None) -> NotifyResult:
    """Mail the notification, unless it was mailed before (`duplicate`) or has no recipient. Return what was done.

    Raises MailRejected, MailDeferred, MailHeldBack or MailServerUnavailable.
    """
    if notification in deps.recent or await _was_sent(deps, notification):
        metrics.SKIPPED_EVENTS.labels("duplicate").inc()
        log.info("duplicate event skipped", order_id=str(notification.order_id), kind=notification.kind)
        return "duplicate"
    if notification.recipient is None and notification.has_address:
        # An earlier version of orders has published the event. The current version rejects such addresses.
        metrics.SKIPPED_EVENTS.labels("invalid-recipient").inc()
        log.error("event with an invalid address skipped", order_id=str(notification.order_id), kind=notification.kind)
        return "no-recipient"
    if notification.recipient is None:
        metrics.SKIPPED_EVENTS.labels("no-recipient").inc()
        log.info("event without recipient skipped", order_id=str(notification.order_id), kind=notification.kind)
        return "no-recipient"
    if deps.deferral_deps is not None:
        _hold_back_if_necessary(deps, deps.deferral_deps, notification, deferral)
    with deps.tracer.span(f"mail {notification.kind}"), metrics.MAIL_DURATION.time():
        if deps.faults:
            await deps.faults.fire_if_armed("notifications.before-mail")
        try:
            await deps.mailer.send(notification, deps.clock())
        except MailDeferred:
            if deps.deferral_deps is not None:
                deps.deferral_deps.throttle.record_deferred(notification.recipient_domain, notification.event_id)
            raise
        if deps.faults:
            await deps.faults.fire_if_armed("notifications.after-mail")
    metrics.MAILS.labels(notification.kind).inc()
    log.info("mail sent", order_id=str(notification.order_id), kind=notification.kind, event_id=notification.event_id)
    if deps.deferral_deps is not None:
        deps.deferral_deps.throttle.record_accepted(notification.recipient_domain)
    deps.recent.add(notification)
    if deps.sent_log is not None:
        deps.sent_log.add(notification.event_id)
    return "mailed"


async def _was_sent(deps: Deps, notification: Notification) -> bool:
    """Return whether the sent log contains the event. Return False for an event younger than `sent_log_min_age`.

    Such an event is almost certainly new. (If the process that mailed it has just crashed, the mail is repeated.)
    """
    if deps.sent_log is None:
        return False
    old = notification.occurred_at is None or deps.clock() - notification.occurred_at > deps.sent_log_min_age
    return old and await deps.sent_log.contains(notification.event_id)


def _hold_back_if_necessary(
    deps: Deps, deferral_deps: DeferralDeps, notification: Notification, deferral: Deferral | None
) -> None:
    """Raise MailHeldBack if the mail must not be sent yet."""
    delay = _deferral_seconds(deps, deferral.first_deferred_at if deferral else None)
    if deferral_deps.orders_with_deferred_mail.holds_back(notification.order_id, notification.sequence):
        raise MailHeldBack("order", delay)
    if deferral is not None and deferral.reserved:
        return
    seconds = deferral_deps.throttle.reserve(notification.recipient_domain, delay)
    if seconds is None:
        raise MailHeldBack("throttled", delay)
    if seconds > 0:
        raise MailHeldBack("throttled", seconds, reserved=True)


def _deferral_seconds(deps: Deps, first_deferred_at: datetime | None) -> float:
    """Return the seconds until the next attempt: the time since the first deferral, within the configured limits."""
    age = 0.0 if first_deferred_at is None else (deps.clock() - first_deferred_at).total_seconds()
    return max(deps.retry.min_deferral_seconds, min(deps.retry.max_deferral_seconds, age))


async def retry_later(
    deps: Deps, pending: PendingMessage, reason: str, detail: str, notification: Notification | None
) -> float | None:
    """Count a failed attempt, and decide when to make the next one.

    If the message stays in memory, return the seconds until the handler has to be called again. Otherwise return None:
    the message was stored as a deferred mail, or its retries are exhausted, and `pending.dead_letter` is set.

    reason: `deferred` or `internal-error`, for metrics
    detail: why the attempt failed, for operators
    notification: None if the message could not be parsed
    """
    now = deps.clock()
    if pending.first_deferred_at is None:
        pending.first_deferred_at = now
        log.warning("processing failed, will retry", reason=reason, detail=detail, **origin(pending.message))
    pending.attempts += 1
    age = (now - pending.first_deferred_at).total_seconds()
    remaining = deps.retry.give_up_seconds - age
    # No attempts are made while the mail server is unavailable, so an outage alone does not exhaust the retries.
    if remaining <= 0 and pending.total_attempts >= _MIN_ATTEMPTS:
        pending.dead_letter = DeadLetterReason("retries-exhausted", detail, pending.total_attempts)
        return None
    metrics.RETRIES.labels(reason).inc()
    throttled = (
        notification is not None
        and deps.deferral_deps is not None
        and deps.deferral_deps.throttle.is_throttled(notification.recipient_domain)
    )
    if pending.deferral is None and pending.may_wait_in_memory and age < deps.retry.in_memory_seconds and not throttled:
        max_delay = min(deps.retry.max_seconds, deps.retry.initial_seconds * 2.0 ** min(pending.attempts - 1, 30))
        # Equal jitter: between half of the delay and all of it.
        delay = random.uniform(max_delay / 2, max_delay)
        # The last attempt in memory is made at the end of `give_up_seconds` at the latest.
        return min(remaining, delay) if remaining > 0 else delay
    seconds = _deferral_seconds(deps, pending.first_deferred_at)
    deferral = Deferral(
        pending.first_deferred_at,
        now + timedelta(seconds=seconds),
        pending.total_attempts,
        reserved=False,
        reason=detail,
    )
    return await _defer(deps, pending, deferral, reason, notification)


async def hold_back(
    deps: Deps, pending: PendingMessage, held_back: MailHeldBack, notification: Notification
) -> float | None:
    """Defer a mail that must not be sent yet.

    Return None once the deferred mail is stored. If that fails, return the seconds until the next try.
    """
    now = deps.clock()
    deferral = Deferral(
        first_deferred_at=pending.first_deferred_at or now,
        due_at=now + timedelta(seconds=held_back.seconds),
        attempts=pending.total_attempts,
        reserved=held_back.reserved,
        reason=pending.deferral.reason if pending.deferral else "",
    )
    return await _defer(deps, pending, deferral, held_back.cause, notification)


async def _defer(
    deps: Deps, pending: PendingMessage, deferral: Deferral, cause: str, notification: Notification | None
) -> float | None:
    """Store a deferred mail. Return None once it is stored. If that fails, return the seconds until the next try."""
    assert deps.deferral_deps is not None
    if notification is not None:
        lifetime = (deferral.due_at - deps.clock()).total_seconds() + deps.retry.max_deferral_seconds
        deps.deferral_deps.orders_with_deferred_mail.add(notification.order_id, notification.sequence, lifetime)
    try:
        await deps.deferral_deps.store.append(pending.message, deferral)
    except Exception as e:
        metrics.RETRIES.labels("deferral").inc()
        log.error("deferred mail not stored, will retry", error=str(e)[:300], **origin(pending.message))
        return 0.5 + backoff(max(1, pending.attempts), base_seconds=0.5, max_seconds=10)
    metrics.DEFERRALS.labels(cause).inc()
    if deps.faults:
        await deps.faults.fire_if_armed("notifications.after-deferral")
    return None


async def write_dead_letter(deps: Deps, pending: PendingMessage) -> float | None:
    """Write the message to the dead letter topic. Return None once it is stored.

    If that fails, return the seconds until the next try. The number of tries is unlimited, so that no message is lost.
    """
    reason = pending.dead_letter
    assert reason is not None
    try:
        await deps.dead_letters.write(pending.message, reason, deps.clock())
    except Exception as e:
        pending.attempts += 1
        metrics.RETRIES.labels("dead-letter").inc()
        log.error("dead letter not written, will retry", error=str(e)[:300], **origin(pending.message))
        return 0.5 + backoff(pending.attempts, base_seconds=0.5, max_seconds=10)
    metrics.DEAD_LETTERS.labels(reason.code).inc()
    log.error("dead letter written", reason=reason.code, detail=reason.detail, **origin(pending.message))
    return None


def origin(message: Message) -> dict[str, object]:
    """Return the message's topic, partition and offset, as fields for log events."""
    return {"topic": message.topic, "partition": message.partition, "offset": message.offset}
