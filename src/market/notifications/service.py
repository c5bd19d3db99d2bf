"""The use case: one message becomes one accepted mail, a dead letter, or another attempt later."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from market.contracts import events
from market.kit import context
from market.kit.faults import Faults
from market.kit.process import logs
from market.kit.process.tracing import Tracer
from market.kit.resilience import backoff
from market.notifications import api, config, metrics
from market.notifications.domain import Mail, MailServerAway, Message, Notice, Refused, RefusedForNow, Unreadable

log = logs.get_logger("mailing")

# Orders whose last mail is remembered, so that a repeat that follows soon is not mailed twice.
REMEMBERED = 10_000


class Sends(Protocol):
    """What a mail server is here for; smtp.MailServer in every real run."""

    async def send(self, mail: Mail) -> None: ...

    def present_seconds(self) -> float: ...


class Composes(Protocol):
    def compose(self, notice: Notice, now: datetime) -> Mail: ...


@dataclass(slots=True)
class Work:
    """A message and what has been tried with it."""

    message: Message
    attempts: int = 0
    # On the mail server's clock, which stands still while it is away.
    first_refused: float | None = None
    # Kind and words, once it is settled that this becomes a dead letter.
    verdict: tuple[str, str] | None = None


class Mailing:
    """Decides what becomes of a message. Owns the memory of what was mailed lately."""

    def __init__(
        self,
        server: Sends,
        composer: Composes,
        put_aside: Callable[[Message, str, datetime], Awaitable[None]],
        retry: config.Retry,
        clock: Callable[[], datetime],
        tracer: Tracer | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._server = server
        self._composer = composer
        self._put_aside = put_aside
        self._retry = retry
        self._clock = clock
        self._tracer = tracer or Tracer()
        self._faults = faults
        # The highest sequence mailed for an order.
        self._mailed: OrderedDict[UUID, int] = OrderedDict()

    async def handle(self, work: Work) -> float | None:
        """None: it is done, and its offset may be committed. Else the seconds until the next attempt. Raises MailServerAway."""
        message = work.message
        _enter(message)
        if work.verdict is None:
            try:
                await self.mail(message)
                return None
            except Unreadable as e:
                work.verdict = "unreadable", str(e)
            except Refused as e:
                work.verdict = "refused", str(e)
            except MailServerAway:
                raise
            except RefusedForNow as e:
                if (pause := self._later(work, "refused", str(e))) is not None:
                    return pause
            except Exception as e:
                # A defect of ours must not hold up a partition for good either.
                log.exception("mailing failed", **_origin(message))
                if (pause := self._later(work, "defect", f"{type(e).__name__}: {e}")) is not None:
                    return pause
        assert work.verdict is not None
        return await self._dead_letter(work, *work.verdict)

    async def mail(self, message: Message) -> None:
        """Returns when the message needs nothing more. Raises Unreadable, Refused, RefusedForNow, MailServerAway."""
        notice = api.read(message)
        if notice is None:
            # A consumer must take it when the producer adds a type; it is no error.
            metrics.SKIPPED.labels("unknown-type").inc()
            log.info("an event of an unknown type is nobody's mail", **_origin(message))
            return
        if self._mailed.get(notice.order_id, 0) >= notice.sequence:
            # Each order's events are published in order, so this one was here before.
            metrics.SKIPPED.labels("repeat").inc()
            log.info("a repeat is not mailed again", order_id=str(notice.order_id), kind=notice.kind)
            return
        if notice.recipient is None:
            metrics.SKIPPED.labels("no-address").inc()
            log.info("there is no address to write to", order_id=str(notice.order_id), kind=notice.kind)
            return
        with self._tracer.span(f"mail {notice.kind}"), metrics.MAIL_SECONDS.time():
            mail = self._composer.compose(notice, self._clock())
            if self._faults:
                await self._faults.reach("notifications.before-mail")
            await self._server.send(mail)
            if self._faults:
                await self._faults.reach("notifications.after-mail")
        metrics.MAILS.labels(notice.kind).inc()
        log.info("mailed", order_id=str(notice.order_id), kind=notice.kind, event_id=notice.event_id)
        self._remember(notice)

    def _remember(self, notice: Notice) -> None:
        self._mailed[notice.order_id] = notice.sequence
        self._mailed.move_to_end(notice.order_id)
        if len(self._mailed) > REMEMBERED:
            self._mailed.popitem(last=False)

    def _later(self, work: Work, kind: str, words: str) -> float | None:
        """Seconds until the next attempt; None: it had its time, and the verdict is set."""
        now = self._server.present_seconds()
        if work.first_refused is None:
            work.first_refused = now
            log.warning("a mail is tried again later", reason=words, **_origin(work.message))
        left = work.first_refused + self._retry.give_up_seconds - now
        if left <= 0:
            work.verdict = "gave-up", words
            return None
        work.attempts += 1
        metrics.RETRIES.labels(kind).inc()
        longest = min(self._retry.most_seconds, self._retry.first_seconds * 2.0 ** min(work.attempts - 1, 30))
        # Never past the end, so that the last attempt is made there.
        return min(left, longest / 2 + backoff(1, base=longest / 4, max_seconds=longest / 2))

    async def _dead_letter(self, work: Work, kind: str, words: str) -> float | None:
        try:
            await self._put_aside(work.message, f"{kind}: {words}", self._clock())
        except Exception as e:
            # Without end: nothing goes away in silence, and the offset stays until Kafka has the letter.
            work.attempts += 1
            metrics.RETRIES.labels("dead-letter").inc()
            log.error("a dead letter could not be written", error=str(e)[:300], **_origin(work.message))
            return 0.5 + backoff(work.attempts, base=0.5, max_seconds=10)
        metrics.DEAD_LETTERS.labels(kind).inc()
        log.error("put aside as a dead letter", kind=kind, reason=words, **_origin(work.message))
        return None


def _enter(message: Message) -> None:
    """Log lines and spans of this message carry the request that caused it."""
    id = message.header(events.REQUEST_ID_HEADER)
    context.request_id.set(id if context.valid_request_id(id) else "")
    trace = message.header(events.TRACE_HEADER)
    context.traceparent.set(trace if context.valid_traceparent(trace) else "")


def _origin(message: Message) -> dict[str, object]:
    return {"topic": message.topic, "partition": message.partition, "offset": message.offset}
