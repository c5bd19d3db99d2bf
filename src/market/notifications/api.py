"""The inbound edge: decides for each Kafka message whether to mail, skip, retry or defer it, or store a dead letter."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from market.contracts import events
from market.kit import context
from market.kit.process import logs
from market.kit.process.health import Health
from market.notifications import metrics, service
from market.notifications.config import Config
from market.notifications.consumer.orders_consumer import OrdersConsumer
from market.notifications.deferral.queue import DeferredMailRestorer
from market.notifications.domain import (
    DeadLetterReason,
    InvalidEvent,
    MailDeferred,
    MailHeldBack,
    MailRejected,
    MailServerUnavailable,
    Message,
    Notification,
    PendingMessage,
)
from market.notifications.events.parsing import domain_of, parse_notification
from market.notifications.sent_log.log import SentLog
from market.notifications.service import Deps, origin

log = logs.get_logger("mailing")


def orders_consumer(
    config: Config, deps: Deps, deferred_mails: DeferredMailRestorer, sent_log: SentLog, health: Health
) -> OrdersConsumer:
    """Return the consumer of order events and deferred mails, not yet started. It passes each message to `handle`."""
    return OrdersConsumer(
        config,
        partial(handle, deps),
        deferred_mails,
        domain_of,
        deps.mailer.mail_server,
        sent_log,
        health=health,
        faults=deps.faults,
    )


async def handle(deps: Deps, pending: PendingMessage) -> float | None:
    """Make one attempt at processing a message.

    Return None if the message is settled, otherwise the seconds until the next attempt. Raises MailServerUnavailable if
    the next attempt has to wait until the mail server is available.
    """
    message = pending.message
    _enter_context(message)
    notification: Notification | None = None
    if pending.dead_letter is not None:
        # An earlier call could not write the dead letter. Try only that again. The message may be impossible to parse.
        with suppress(Exception):
            notification = parse_notification(message)
    else:
        try:
            notification = parse_notification(message)
            if notification is None:
                _skip(message)
            else:
                await service.notify(deps, notification, pending.deferral)
        except MailServerUnavailable:
            raise
        except InvalidEvent as e:
            pending.dead_letter = DeadLetterReason("invalid-event", str(e))
        except MailRejected as e:
            pending.dead_letter = DeadLetterReason("rejected", str(e))
        except MailHeldBack as e:
            assert notification is not None
            return await service.hold_back(deps, pending, e, notification)
        except MailDeferred as e:
            delay = await service.retry_later(deps, pending, "deferred", str(e), notification)
            if pending.dead_letter is None:
                return delay
        except Exception as e:
            # Retried only for a limited time, because a bug must not block the messages with the same key forever.
            log.exception("processing failed", **origin(message))
            delay = await service.retry_later(deps, pending, "internal-error", f"{type(e).__name__}: {e}", notification)
            if pending.dead_letter is None:
                return delay
    if pending.dead_letter is not None:
        delay = await service.write_dead_letter(deps, pending)
        if delay is not None:
            return delay
    if notification is not None and deps.deferral_deps is not None:
        deps.deferral_deps.orders_with_deferred_mail.remove(notification.order_id, notification.sequence)
    return None


async def replay(deps: Deps, message: Message) -> None:
    """Mail the notification of a dead letter's original message, without retries. Skip events of unknown types.

    Raises InvalidEvent, MailRejected, MailDeferred or MailServerUnavailable.
    """
    notification = parse_notification(message)
    if notification is None:
        _skip(message)
    else:
        await service.notify(deps, notification)


def _skip(message: Message) -> None:
    # A newer version of orders may publish further types.
    metrics.SKIPPED_EVENTS.labels("unknown-type").inc()
    log.info("event of unknown type skipped", **origin(message))


def _enter_context(message: Message) -> None:
    """Set the request id and the trace, so that logs and spans belong to the request that caused the message."""
    request_id = message.header(events.REQUEST_ID_HEADER)
    context.request_id.set(request_id if context.valid_request_id(request_id) else "")
    names = events.TRACE_HEADER, events.TRACE_STATE_HEADER, events.BAGGAGE_HEADER
    context.set_trace(*(message.header(name) for name in names))
