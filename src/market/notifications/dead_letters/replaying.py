"""The use cases for dead letters: list them, replay one, drop one. The REST API and the command share them.

Replaying does not publish the event again, but sends the mail itself, with its original Message-ID. So the result is
known immediately, and no other consumer of the topic gets a duplicate.

A dead letter is claimed before it is replayed or dropped (letters.py). So if several attempts are made at the same
time, even in different processes, only one of them sends the mail. If its process crashes, the claim expires, and the
sent log shows whether the mail was sent. A mail is repeated only in two cases: if the process crashed after the mail
server had accepted the mail, but before Kafka had stored its event's id; or if the mail server's reply was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from confluent_kafka import KafkaException

from market.kit.auth import audit
from market.kit.process import logs
from market.notifications import config, service
from market.notifications.dead_letters.letters import DeadLetter, DeadLetterLog
from market.notifications.dead_letters.reader import DeadLetterReader
from market.notifications.dead_letters.writer import DeadLetterWriter
from market.notifications.domain import InvalidEvent, MailDeferred, MailRejected, MailServerUnavailable
from market.notifications.events.parsing import parse_notification

T = TypeVar("T")
log = logs.get_logger("dead-letters")

Action = Literal["replayed", "dropped"]
# `mailed`: the mail server has accepted the mail. `mailed-before`: it had accepted it earlier. `not-needed`: the event
# needs no mail. `already-...`: the dead letter was done before. `open`: it is still open, for the reason given.
Result = Literal["mailed", "mailed-before", "not-needed", "dropped", "already-replayed", "already-dropped", "open"]
ReasonCode = Literal[
    "rejected",
    "deferred",
    "mail-server-unavailable",
    "no-reply",
    "invalid-event",
    "unreadable",
    "internal-error",
    "claimed",
]

# How long everything but sending the mail may take while a dead letter is claimed.
OTHER_SECONDS = 30.0
# How much longer than its attempt a claim holds, because the clocks of the processes may differ.
_MARGIN_SECONDS = 30.0
# The sent log is read from the time at which the event occurred, minus this tolerance, because clocks may differ.
_CLOCK_TOLERANCE = timedelta(minutes=5)


class Outcome(NamedTuple):
    """The result of an attempt to replay or drop a dead letter. It has a reason only if the result is `open`."""

    result: Result
    reason: ReasonCode | None = None
    detail: str = ""

    @property
    def is_done_now(self) -> bool:
        """Whether this attempt has marked the dead letter as done."""
        return self.result in ("mailed", "mailed-before", "not-needed", "dropped")


class SentLogForReplaying(Protocol):
    """What replaying needs from the sent log. In production: sent_log.log.SentLog."""

    def add(self, event_id: str) -> None:
        """Record that the event was mailed."""

    async def flush(self) -> float:
        """Write what was recorded. Raises KafkaException."""

    async def was_mailed(self, event_id: str, since: datetime | None) -> bool:
        """Read the log from Kafka, and return whether it contains the event. Raises KafkaException.

        since: the log is read from this time on. None: from its beginning
        """


@dataclass(frozen=True)
class ReplayDeps:
    """The dependencies of these use cases. In `mailing`, `sent_log` and `deferral_deps` are None."""

    kafka: config.Kafka
    limits: config.DeadLetters
    writer: DeadLetterWriter
    sent_log: SentLogForReplaying
    mailing: service.Deps


@asynccontextmanager
async def open_reader(kafka: config.Kafka, limits: config.DeadLetters) -> AsyncIterator[DeadLetterReader]:
    """Yield a reader of the dead letters."""
    reader = DeadLetterReader(kafka, seconds=limits.read_seconds)
    try:
        yield reader
    finally:
        await asyncio.to_thread(reader.close)


async def list_newest(deps: ReplayDeps) -> tuple[list[DeadLetter], bool]:
    """Return the newest dead letters, the newest first, and whether these are all. Raises KafkaException, TimeoutError.

    At most `limits.max_records` records are read.
    """
    async with open_reader(deps.kafka, deps.limits) as reader:
        found, complete = await _in_thread(lambda: reader.read_newest(deps.limits.max_records))
    return found.oldest_first()[::-1], complete


async def settle_by_id(deps: ReplayDeps, partition: int, offset: int, action: Action) -> Outcome | None:
    """Replay or drop the dead letter at that position. Return None if there is none.

    Raises KafkaException or TimeoutError; whether the mail was sent is then unknown.
    """
    async with open_reader(deps.kafka, deps.limits) as reader:
        found = await _in_thread(lambda: reader.read_from(partition, offset))
        letter = found.letters.get(f"{partition}-{offset}")
        if letter is None:
            return None
        outcome = await settle(deps, reader, found, letter, action)
    if outcome.is_done_now:
        audit.record(f"dead letter {action}", target=f"dead letter {letter.id}", before="open", after=outcome.result)
    return outcome


async def settle(
    deps: ReplayDeps, reader: DeadLetterReader, found: DeadLetterLog, letter: DeadLetter, action: Action
) -> Outcome:
    """Replay or drop a dead letter of the log, and mark it as done, or leave it open.

    Raises KafkaException or TimeoutError; whether the mail was sent is then unknown.
    """
    if (done := _already(letter)) is not None:
        return done
    token = uuid4().hex
    position = letter.partition, letter.offset, letter.key
    now = deps.mailing.clock()
    seconds = deps.limits.mail_seconds + OTHER_SECONDS
    until = now + timedelta(seconds=seconds + _MARGIN_SECONDS)
    # The attempt ends before its claim does.
    async with asyncio.timeout(seconds):
        await deps.writer.claim(*position, token, now, until)
        await _in_thread(lambda: reader.read_on(found, letter.partition))
        if (done := _already(letter)) is not None:
            return done
        if letter.claim is None or letter.claim.token != token:
            until = until if letter.claim is None else letter.claim.until
            return Outcome(
                "open",
                "claimed",
                f"another attempt is in progress, or was interrupted; try again after {until:%H:%M:%S} UTC",
            )
        outcome = Outcome("dropped") if action == "dropped" else await _mail(deps, reader, letter)
        if outcome.result == "open":
            await deps.writer.release(*position, token, deps.mailing.clock())
        else:
            await deps.writer.mark(*position, action, deps.mailing.clock())
    return outcome


def _already(letter: DeadLetter) -> Outcome | None:
    if letter.resolution is None:
        return None
    return Outcome("already-dropped" if letter.resolution.action == "dropped" else "already-replayed")


async def _mail(deps: ReplayDeps, reader: DeadLetterReader, letter: DeadLetter) -> Outcome:
    """Mail a dead letter, unless it was mailed before or its event needs no mail."""
    try:
        try:
            message = await _in_thread(lambda: reader.original_message(letter))
        except LookupError as e:
            return Outcome("open", "unreadable", str(e))
        notification = parse_notification(message)
        if notification is None:
            return Outcome("not-needed")
        since = notification.occurred_at and notification.occurred_at - _CLOCK_TOLERANCE
        if notification in deps.mailing.recent or await deps.sent_log.was_mailed(notification.event_id, since):
            return Outcome("mailed-before")
        sending = asyncio.timeout(deps.limits.mail_seconds)
        try:
            async with sending:
                result = await service.notify(deps.mailing, notification)
        except TimeoutError:
            if not sending.expired():
                raise
            reply = f"the mail server has not replied within {deps.limits.mail_seconds:g} s, but may have the mail"
            return Outcome("open", "no-reply", reply)
    except InvalidEvent as e:
        return Outcome("open", "invalid-event", str(e))
    except MailRejected as e:
        return Outcome("open", "rejected", str(e))
    except MailDeferred as e:
        return Outcome("open", "deferred", str(e))
    except MailServerUnavailable as e:
        return Outcome("open", "mail-server-unavailable", str(e))
    except (KafkaException, TimeoutError):
        raise
    except Exception as e:
        # A dead letter may exist because of a fault in this service. It must not keep the others from being replayed.
        log.exception("replay failed", dead_letter=letter.id)
        return Outcome("open", "internal-error", f"{type(e).__name__}: {e}")
    if result != "mailed":
        return Outcome("mailed-before" if result == "duplicate" else "not-needed")
    deps.sent_log.add(notification.event_id)
    try:
        await deps.sent_log.flush()
    except KafkaException as e:
        # This is not an error, because the mark that follows prevents a second mail as well.
        log.warning("writing the sent log failed", dead_letter=letter.id, reason=e.args[0].str())
    return Outcome("mailed")


async def _in_thread(call: Callable[[], T]) -> T:
    # A thread cannot be stopped, so it is shielded from cancellation.
    return await asyncio.shield(asyncio.to_thread(call))
