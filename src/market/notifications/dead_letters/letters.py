"""Dead letters as their topic records them: what each is about, and what has been done with it.

Kafka cannot change or delete a single message, so the topic has three kinds of records:

- A dead letter is the original message with additional headers.
- A mark says that a dead letter was replayed or dropped. A dead letter without a mark is open.
- A claim says that a dead letter is about to be replayed or dropped. Until it expires or is released by another record,
  further claims of the dead letter have no effect. So if several attempts begin at the same time, only one continues.

Marks and claims are written to the partition of their dead letter. So all readers read them in the same order, and
Kafka does not delete a mark before its dead letter. The headers are defined in writer.py.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from market.notifications.dead_letters import writer
from market.notifications.domain import EventSummary, Message
from market.notifications.events.parsing import summarize

# The headers that a dead letter has in addition to those of the original message.
ADDED_HEADERS = {
    writer.REASON,
    writer.ATTEMPTS,
    writer.TIME,
    writer.TOPIC,
    writer.PARTITION,
    writer.OFFSET,
    writer.OMITTED,
}


class RecordPosition(NamedTuple):
    """Where a record is in Kafka."""

    topic: str
    partition: int
    offset: int


class Resolution(NamedTuple):
    """What an operator did with a dead letter: the action (replayed or dropped), and its time in ISO 8601."""

    action: str
    at: str


class Claim(NamedTuple):
    """A claim that has taken effect. `token` identifies the attempt that made it, and `until` is when it expires."""

    token: str
    until: datetime


@dataclass(slots=True)
class DeadLetter:
    """A dead letter without its value, which DeadLetterReader.original_message reads.

    `id` is its position in the dead letter topic: PARTITION-OFFSET.
    """

    partition: int
    offset: int
    key: bytes | None
    # The size of the value, in bytes.
    value_size: int
    headers: tuple[tuple[str, bytes | None], ...]
    event: EventSummary = field(default_factory=EventSummary)
    # None while the dead letter is open.
    resolution: Resolution | None = None
    # The last claim, which may have expired. None if there was no claim, or if it was released.
    claim: Claim | None = None

    @property
    def id(self) -> str:
        return f"{self.partition}-{self.offset}"

    def header(self, name: str) -> str:
        """Return the last header of that name as text, or an empty string if there is none."""
        return _header(self.headers, name)

    @property
    def time(self) -> str:
        """When the dead letter was written, in ISO 8601."""
        return self.header(writer.TIME)

    @property
    def reason(self) -> tuple[str, str]:
        """Why the message became a dead letter: the code of the reason, and its detail."""
        code, _, detail = self.header(writer.REASON).partition(": ")
        return code, detail

    @property
    def attempts(self) -> int | None:
        """How many attempts to send the mail had failed; None if the dead letter was written by an earlier version."""
        return self._number(writer.ATTEMPTS)

    @property
    def origin(self) -> RecordPosition:
        """The position of the original message; -1 for a number that is missing or malformed."""
        partition, offset = self._number(writer.PARTITION), self._number(writer.OFFSET)
        return RecordPosition(
            self.header(writer.TOPIC), -1 if partition is None else partition, -1 if offset is None else offset
        )

    def summary(self) -> dict[str, Any]:
        """Return the fields that `list --json` prints, as JSON types."""
        return {
            "id": self.id,
            "time": self.time,
            "reason": self.header(writer.REASON),
            "key": None if self.key is None else self.key.decode("utf-8", "replace"),
            "origin": self.origin._asdict(),
            "bytes": self.value_size,
            "status": self.resolution.action if self.resolution else "open",
            "done_at": self.resolution.at if self.resolution else None,
        }

    def _number(self, name: str) -> int | None:
        with suppress(ValueError):
            return int(self.header(name))
        return None


class DeadLetterLog:
    """The dead letters of the records read so far. The records of a partition must be added in order."""

    def __init__(self) -> None:
        self.letters: dict[str, DeadLetter] = {}
        # By partition: the offset after the last record that was added.
        self.next_offsets: dict[int, int] = {}

    def add(self, record: Message) -> None:
        """Add a record. A mark or a claim whose dead letter was not read has no effect."""
        self.next_offsets[record.partition] = record.offset + 1
        if claimed := _header(record.headers, writer.CLAIM_OF):
            if (letter := self.letters.get(claimed)) is not None:
                _apply_claim(letter, record)
        elif marked := _header(record.headers, writer.MARK_OF):
            letter = self.letters.get(marked)
            if letter is not None and letter.resolution is None:
                action, at = (_header(record.headers, name) for name in (writer.MARK_ACTION, writer.TIME))
                letter.resolution = Resolution(action, at)
        else:
            letter = DeadLetter(
                record.partition,
                record.offset,
                record.key,
                len(record.value or b""),
                record.headers,
                summarize(record),
            )
            self.letters[letter.id] = letter

    def oldest_first(self) -> list[DeadLetter]:
        """Return the dead letters in the order in which they were written."""
        return sorted(self.letters.values(), key=lambda letter: (letter.time, letter.partition, letter.offset))


def _apply_claim(letter: DeadLetter, record: Message) -> None:
    token = _header(record.headers, writer.CLAIM_TOKEN)
    if _header(record.headers, writer.MARK_ACTION) == writer.RELEASED:
        if letter.claim is not None and letter.claim.token == token:
            letter.claim = None
        return
    made_at, until = (_time(_header(record.headers, name)) for name in (writer.TIME, writer.CLAIM_UNTIL))
    # Only times in the records are compared, so that all readers agree on which claim takes effect.
    if letter.claim is None or made_at > letter.claim.until:
        letter.claim = Claim(token, until)


def _time(text: str) -> datetime:
    """Return the time. If the text is not a time, return the earliest one, so that the claim counts as expired."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)


def _header(headers: tuple[tuple[str, bytes | None], ...], name: str) -> str:
    values = (value for key, value in reversed(headers) if key == name and value is not None)
    return next((value.decode("utf-8", "replace") for value in values), "")
