"""The two ways into the service: the handler of Kafka messages, and the REST API for dead letters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Annotated, Any, Literal

from confluent_kafka import KafkaException
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from market.contracts import access, events
from market.kit import context
from market.kit.auth.authenticator import Authenticator
from market.kit.errors import Conflict, NotFound, Unavailable
from market.kit.http import edge
from market.kit.http.admission import Admission
from market.kit.http.requests import parse_query, reject_unsupported_preconditions
from market.kit.http.responses import json_response
from market.kit.paging import Cursor, read_cursor, write_cursor
from market.kit.process import logs
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.notifications import metrics, service
from market.notifications.config import Config
from market.notifications.consumer.orders_consumer import OrdersConsumer
from market.notifications.dead_letters import replaying
from market.notifications.dead_letters.letters import DeadLetter
from market.notifications.dead_letters.replaying import Action, Outcome, ReasonCode, ReplayDeps, Result
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
    mask_addresses,
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
    """Make one attempt at processing a message: mail it, skip it, defer it, or write a dead letter.

    Return None if the message is settled, otherwise the seconds until the next attempt. Raises MailServerUnavailable if
    the next attempt has to wait until the mail server is available.
    """
    message = pending.message
    _enter_context(message)
    notification: Notification | None = None
    if pending.dead_letter is not None:
        # An earlier call could not write the dead letter, so only that is tried again. The event is parsed if possible,
        # for the order's id.
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
            pending.dead_letter = DeadLetterReason("invalid-event", str(e), pending.total_attempts)
        except MailRejected as e:
            pending.dead_letter = DeadLetterReason("rejected", str(e), pending.total_attempts + 1)
        except MailHeldBack as e:
            assert notification is not None
            return await service.hold_back(deps, pending, e, notification)
        except MailDeferred as e:
            delay = await service.retry_later(deps, pending, "deferred", str(e), notification)
            if pending.dead_letter is None:
                return delay
        except Exception as e:
            # `retry_later` limits the retries, so that a bug does not block the messages with the same key forever.
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


def _skip(message: Message) -> None:
    # A newer version of orders may publish events of types that this version does not know.
    metrics.SKIPPED_EVENTS.labels("unknown-type").inc()
    log.info("event of unknown type skipped", **origin(message))


def _enter_context(message: Message) -> None:
    """Take the request id and the trace for logs and spans from the request that caused the message."""
    request_id = message.header(events.REQUEST_ID_HEADER)
    context.request_id.set(request_id if context.valid_request_id(request_id) else "")
    names = events.TRACE_HEADER, events.TRACE_STATE_HEADER, events.BAGGAGE_HEADER
    context.set_trace(*(message.header(name) for name in names))


class DeadLetterItem(Struct, frozen=True):
    """An event that could not be mailed. E-mail addresses are masked, also in `detail`."""

    id: Annotated[str, Meta(description="Where the dead letter is in its topic: PARTITION-OFFSET.")]
    time: Annotated[str, Meta(description="When it became a dead letter, in ISO 8601.")]
    reason: Annotated[
        str,
        Meta(
            description="`rejected`: the mail server has rejected the mail. `retries-exhausted`: the mail server has "
            "deferred it for too long, or internal errors have prevented it. `invalid-event`: the event cannot be "
            "read. Newer versions may add reasons."
        ),
    ]
    detail: Annotated[
        str, Meta(description="The mail server's last reply, the last internal error, or what is wrong with the event.")
    ]
    order_id: Annotated[str, Meta(extra_json_schema={"format": "uuid"})] | None
    event: Annotated[Literal["created", "cancelled"], Meta(description="Null if it is unknown.")] | None
    attempts: (
        Annotated[
            int,
            Meta(
                ge=0,
                description="How many attempts to send the mail had failed. Null if the dead letter was written by an "
                "earlier version.",
            ),
        ]
        | None
    )
    recipient: Annotated[str, Meta(description="Masked: a***@example.com.")] | None
    status: Annotated[str, Meta(description="`open`, or what an operator has done: `replayed` or `dropped`.")]
    done_at: Annotated[str, Meta(description="When it was replayed or dropped, in ISO 8601.")] | None


class DeadLetterPage(Struct, frozen=True):
    """A page of dead letters, the newest first."""

    items: list[DeadLetterItem]
    limit: int
    next: Annotated[str, Meta(description="The cursor of the next page, for `after`; null on the last page.")] | None
    complete: Annotated[
        bool,
        Meta(
            description="False if the topic has more records than `dead_letters.max_records`. Only the newest were "
            "read, so older dead letters may be missing. The command `dead-letters list --all` shows all."
        ),
    ]


class DeadLetterResult(Struct, frozen=True):
    """The result of a request to replay or drop a dead letter."""

    id: str
    result: Annotated[
        Result,
        Meta(
            description="`mailed`: the mail server has accepted the mail. `mailed-before`: it had accepted it earlier, "
            "so nothing was sent. `not-needed`: the event needs no mail. `dropped`: done without a mail. "
            "`already-replayed` and `already-dropped`: the dead letter had been replayed or dropped before, so nothing "
            "was done. `open`: no mail was accepted, and the dead letter stays open."
        ),
    ]
    reason: Annotated[ReasonCode, Meta(description="Why it is still open; null otherwise.")] | None
    detail: Annotated[str, Meta(description="The mail server's reply, for example. Addresses are masked.")] | None


class AttemptInProgress(Conflict):
    """Another attempt to replay or drop the dead letter has claimed it."""

    type = "attempt-in-progress"
    title = "Attempt in progress"


class _CursorPosition(Struct, frozen=True, array_like=True):
    time: str
    partition: int
    offset: int


class _ListQuery(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    after: Cursor | None = None
    status: Literal["open", "replayed", "dropped"] | None = None


class _NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    pass


_LETTER_ID = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,17})")
# The Retry-After while Kafka is unavailable. Short, because an operator is waiting.
_RETRY_AFTER_SECONDS = 5


def rest_api(
    config: Config,
    deps: ReplayDeps,
    tracer: Tracer,
    health: Health,
    *,
    authenticator: Authenticator | None = None,
) -> Any:
    """Return the ASGI app for operators.

    authenticator: verifies the callers' tokens. None: mode `open`, in which nobody signs in.
    """
    endpoints = routes(deps, Admission(config.admission, unit="requests"))
    limits = config.dead_letters
    # Reading takes at most three steps of up to `read_seconds` each (DeadLetterReader.read_from).
    list_seconds = config.admission.max_wait_seconds + 3 * limits.read_seconds
    resolve_seconds = list_seconds + limits.mail_seconds + deps.kafka_seconds
    return edge.application(
        endpoints,
        config.http,
        tracer=tracer,
        health=health,
        timeouts={route: resolve_seconds if route.startswith("POST") else list_seconds for route in endpoints},
        authenticator=authenticator,
        access=access.NOTIFICATIONS,
    )


def routes(deps: ReplayDeps, admission: Admission) -> Mapping[str, edge.Endpoint]:
    """Return the endpoints by method and path. `admission` limits how many requests read the topic at the same time."""

    async def list_dead_letters(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        query = parse_query(request, _ListQuery)
        list_definition = "dead-letters", query.status
        after = None if query.after is None else read_cursor(query.after, _CursorPosition, *list_definition)
        async with admission(request, 1):
            with _kafka_errors_as_unavailable():
                letters, complete = await replaying.list_newest(deps)
        chosen = [
            letter
            for letter in letters
            if query.status in (None, _status(letter))
            and (after is None or _sort_key(letter) < (after.time, after.partition, after.offset))
        ]
        page = chosen[: query.limit]
        next_cursor = None
        if len(chosen) > len(page):
            next_cursor = write_cursor(_CursorPosition(*_sort_key(page[-1])), *list_definition)
        return json_response(DeadLetterPage([_item(letter) for letter in page], query.limit, next_cursor, complete))

    async def resolve(action: Action, request: Request) -> Response:
        reject_unsupported_preconditions(request)
        parse_query(request, _NoParameters)
        letter_id = request.path_params["id"]
        parsed = _LETTER_ID.fullmatch(letter_id)
        if parsed is None:
            raise _no_letter(letter_id)
        async with admission(request, 1):
            with _kafka_errors_as_unavailable():
                outcome = await replaying.resolve_by_id(deps, int(parsed[1]), int(parsed[2]), action)
        if outcome is None:
            raise _no_letter(letter_id)
        if outcome.reason == "claimed":
            raise AttemptInProgress(f"dead letter {letter_id}: {outcome.detail}")
        return json_response(_result(letter_id, outcome))

    return {
        "GET /api/dead-letters": list_dead_letters,
        "POST /api/dead-letters/{id}/replay": partial(resolve, "replayed"),
        "POST /api/dead-letters/{id}/drop": partial(resolve, "dropped"),
    }


def _no_letter(letter_id: str) -> NotFound:
    return NotFound("dead letter", letter_id[:64] if letter_id.isascii() and letter_id.isprintable() else None)


def _status(letter: DeadLetter) -> str:
    return "open" if letter.resolution is None else letter.resolution.action


def _sort_key(letter: DeadLetter) -> tuple[str, int, int]:
    return letter.time, letter.partition, letter.offset


def _item(letter: DeadLetter) -> DeadLetterItem:
    code, detail = letter.reason
    event = letter.event
    return DeadLetterItem(
        id=letter.id,
        time=letter.time,
        reason=code,
        detail=mask_addresses(detail),
        order_id=None if event.order_id is None else str(event.order_id),
        event=event.kind,
        attempts=letter.attempts,
        recipient=event.recipient,
        status=_status(letter),
        done_at=None if letter.resolution is None else letter.resolution.at,
    )


def _result(letter_id: str, outcome: Outcome) -> DeadLetterResult:
    detail = mask_addresses(outcome.detail) if outcome.reason is not None else None
    return DeadLetterResult(letter_id, outcome.result, outcome.reason, detail)


@contextmanager
def _kafka_errors_as_unavailable() -> Iterator[None]:
    try:
        yield
    except KafkaException as e:
        raise Unavailable(f"Kafka is unavailable: {e.args[0].str()}", retry_after=_RETRY_AFTER_SECONDS) from None
    except TimeoutError as e:
        raise Unavailable(f"Kafka is too slow: {e}", retry_after=_RETRY_AFTER_SECONDS) from None
