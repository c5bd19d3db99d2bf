"""The use cases for dead letters: list them, replay one, drop one. The REST API and the command share them.

A replay sends the mail, with its original Message-ID, instead of publishing the event again. So the result is known
immediately, and other consumers of the topic do not get a duplicate.

A dead letter is claimed before it is replayed or dropped (letters.py), so that only one of several attempts sends the
mail. If the process crashes, the claim expires, and the next attempt finds out from the sent log whether the mail was
sent. docs/operations.md says when a mail may nevertheless be repeated ("What a replay guarantees").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, Protocol
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

log = logs.get_logger("dead-letters")

Action = Literal["replayed", "dropped"]
# The meanings are in api.DeadLetterResult.
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

# A claim expires this long after its attempt must have ended, in case the clocks of the processes differ.
_CLAIM_MARGIN_SECONDS = 30.0
# The sent log is read from this long before the event occurred, in case the clocks of the processes differ.
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
        """Write the recorded ids to Kafka. The result is not used. Raises KafkaException."""

    async def was_mailed(self, event_id: str, since: datetime | None) -> bool:
        """Read the log from Kafka, and return whether it contains the event. Raises KafkaException.

        since: the log is read from this time on. None: from its beginning
        """


@dataclass(frozen=True)
class ReplayDeps:
    """The dependencies of these use cases.

    mailing_deps: for service.notify. Without `deferral_deps`, so that an operator learns the result immediately, and
        without `sent_log`, which these use cases read and write
    kafka_seconds: how long the reads and writes in Kafka may take while a dead letter is claimed
    """

    kafka: config.Kafka
    limits: config.DeadLetters
    writer: DeadLetterWriter
    sent_log: SentLogForReplaying
    mailing_deps: service.Deps
    kafka_seconds: float = 30.0


@asynccontextmanager
async def open_reader(kafka: config.Kafka, limits: config.DeadLetters) -> AsyncIterator[DeadLetterReader]:
    """Yield a reader of the dead letters."""
    reader = DeadLetterReader(kafka, seconds=limits.read_seconds)
    try:
        yield reader
    finally:
        await asyncio.to_thread(reader.close)


async def list_newest(deps: ReplayDeps) -> tuple[list[DeadLetter], bool]:
    """Return the newest dead letters, the newest first, and whether the topic has no others.

    At most `limits.max_records` records are read. Raises KafkaException or TimeoutError.
    """
    async with open_reader(deps.kafka, deps.limits) as reader:
        letter_log, complete = await asyncio.to_thread(reader.read_newest, deps.limits.max_records)
    return letter_log.oldest_first()[::-1], complete


async def resolve_by_id(deps: ReplayDeps, partition: int, offset: int, action: Action) -> Outcome | None:
    """Replay or drop the dead letter at that position. Return None if there is none.

    Raises KafkaException or TimeoutError; whether the mail was sent is then unknown.
    """
    async with open_reader(deps.kafka, deps.limits) as reader:
        letter_log = await asyncio.to_thread(reader.read_from, partition, offset)
        letter = letter_log.letters.get(f"{partition}-{offset}")
        if letter is None:
            return None
        return await resolve_with_audit(deps, reader, letter_log, letter, action)


async def resolve_with_audit(
    deps: ReplayDeps, reader: DeadLetterReader, letter_log: DeadLetterLog, letter: DeadLetter, action: Action
) -> Outcome:
    """`resolve`, with an entry in the audit log if the dead letter was marked as done, or may have been mailed."""
    after = "unknown"
    try:
        outcome = await resolve(deps, reader, letter_log, letter, action)
        if outcome.reason != "no-reply":
            after = outcome.result if outcome.is_done_now else ""
    finally:
        if after:
            audit.record(f"dead letter {action}", target=f"dead letter {letter.id}", before="open", after=after)
    return outcome


async def resolve(
    deps: ReplayDeps, reader: DeadLetterReader, letter_log: DeadLetterLog, letter: DeadLetter, action: Action
) -> Outcome:
    """Replay or drop a dead letter of the log, and mark it as done, or leave it open.

    Raises KafkaException or TimeoutError; whether the mail was sent is then unknown.
    """
    if (earlier := _earlier_outcome(letter)) is not None:
        return earlier
    seconds = deps.limits.mail_seconds + deps.kafka_seconds
    attempt = asyncio.timeout(seconds)
    try:
        async with attempt:
            return await _claim_and_resolve(deps, reader, letter_log, letter, action, seconds)
    except TimeoutError:
        if not attempt.expired():
            raise
        raise TimeoutError(f"dead letter {letter.id} was not {action} within {seconds:g} s") from None


async def _claim_and_resolve(
    deps: ReplayDeps,
    reader: DeadLetterReader,
    letter_log: DeadLetterLog,
    letter: DeadLetter,
    action: Action,
    max_seconds: float,
) -> Outcome:
    """Claim the dead letter, and replay or drop it.

    max_seconds: how long this call may take. The claim expires later
    """
    token = uuid4().hex
    position = letter.partition, letter.offset, letter.key
    clock = deps.mailing_deps.clock
    now = clock()
    until = now + timedelta(seconds=max_seconds + _CLAIM_MARGIN_SECONDS)
    await deps.writer.claim(*position, token, now, until)
    await asyncio.to_thread(reader.read_on, letter_log, letter.partition)
    if (earlier := _earlier_outcome(letter)) is not None:
        return earlier
    if letter.claim is None or letter.claim.token != token:
        until = until if letter.claim is None else letter.claim.until
        return Outcome(
            "open",
            "claimed",
            f"another attempt is in progress, or was interrupted; try again after {until:%H:%M:%S} UTC",
        )
    outcome = Outcome("dropped") if action == "dropped" else await _mail(deps, reader, letter)
    if outcome.result == "open":
        await deps.writer.release(*position, token, clock())
    else:
        await deps.writer.mark(*position, action, clock())
    return outcome


def _earlier_outcome(letter: DeadLetter) -> Outcome | None:
    """Return the outcome for a dead letter that was replayed or dropped before. Return None if it is open."""
    if letter.resolution is None:
        return None
    return Outcome("already-dropped" if letter.resolution.action == "dropped" else "already-replayed")


async def _mail(deps: ReplayDeps, reader: DeadLetterReader, letter: DeadLetter) -> Outcome:
    """Mail a dead letter, unless it was mailed before or its event needs no mail."""
    try:
        try:
            message = await asyncio.to_thread(reader.original_message, letter)
        except LookupError as e:
            return Outcome("open", "unreadable", str(e))
        notification = parse_notification(message)
        if notification is None:
            return Outcome("not-needed")
        since = notification.occurred_at and notification.occurred_at - _CLOCK_TOLERANCE
        if notification in deps.mailing_deps.recent or await deps.sent_log.was_mailed(notification.event_id, since):
            return Outcome("mailed-before")
        sending = asyncio.timeout(deps.limits.mail_seconds)
        try:
            async with sending:
                result = await service.notify(deps.mailing_deps, notification)
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
        # A bug of this service may be why the dead letter exists. The other dead letters can be replayed nevertheless.
        log.exception("replay failed", dead_letter=letter.id)
        return Outcome("open", "internal-error", f"{type(e).__name__}: {e}")
    if result != "mailed":
        return Outcome("mailed-before" if result == "duplicate" else "not-needed")
    deps.sent_log.add(notification.event_id)
    try:
        await deps.sent_log.flush()
    except KafkaException as e:
        # This is not an error, because the mark, which is written next, also prevents a second mail.
        log.warning("writing the sent log failed", dead_letter=letter.id, reason=e.args[0].str())
    return Outcome("mailed")
