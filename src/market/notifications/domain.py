"""Messages, the notifications that they contain, mails, the errors, and the names of the failure points."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple
from uuid import UUID

# In the order in which a message reaches them; see kit/faults.py.
FAILURE_POINTS = ("notifications.before-mail", "notifications.after-mail", "notifications.before-commit")

Kind = Literal["created", "cancelled"]

# A rough estimate of the memory that the Python objects of a message take, without their content.
_OVERHEAD_BYTES = 512


@dataclass(frozen=True, slots=True)
class Message:
    """An unparsed Kafka message."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def size(self) -> int:
        """The approximate memory use of the message, in bytes."""
        return len(self.key or b"") + len(self.value or b"") + _OVERHEAD_BYTES

    def header(self, name: str) -> str:
        """Return the last header of that name as text, or an empty string if there is none."""
        for key, value in reversed(self.headers):
            if key == name and value is not None:
                return value.decode("latin-1")
        return ""


@dataclass(frozen=True, slots=True)
class DeadLetterReason:
    """Why a message becomes a dead letter. `code` is a metric label, `detail` is for operators."""

    code: Literal["invalid-event", "rejected", "retries-exhausted"]
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(slots=True)
class PendingMessage:
    """A message that is not settled, and how many attempts at it have failed so far.

    A message is settled once it is mailed, skipped or stored as a dead letter; only then may its offset be committed.
    """

    message: Message
    attempts: int = 0
    # `available_seconds()` of the mail server at the first failure, so that outages do not count towards
    # `give_up_seconds`.
    first_failure_available_seconds: float | None = None
    # Set once it is certain that the message becomes a dead letter; writing that may take several attempts.
    dead_letter: DeadLetterReason | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an order."""

    name: str
    quantity: int
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.unit_price * self.quantity


@dataclass(frozen=True, slots=True)
class Notification:
    """The content of a mail about an order event.

    sequence: the number of the event within its order; later events have higher ones
    recipient: None if the order has no e-mail address
    """

    event_id: str
    kind: Kind
    sequence: int
    order_id: UUID
    recipient: str | None
    lines: tuple[Line, ...]
    total: Decimal
    currency: str
    ordered_at: datetime
    # When the order was created or cancelled; None if the event has no valid time.
    occurred_at: datetime | None
    request_id: str

    @property
    def short_id(self) -> str:
        """The last 8 hex digits of the order's id. The first ones are a timestamp (UUIDv7), hence not distinctive."""
        return self.order_id.hex[-8:].upper()


@dataclass(frozen=True, slots=True)
class Mail:
    """A composed mail. `content` is the complete RFC 5322 message."""

    recipient: str
    content: bytes


class FirstStart(NamedTuple):
    """What the sent log records about the group's first start.

    empty: the log has no records, so this is the first start unless the group has committed offsets
    started_ms: the time of the first start, in Unix milliseconds by the broker's clock; None if it is unknown
    """

    empty: bool
    started_ms: int | None


class InvalidEvent(Exception):
    """The message is not a valid event, so a retry cannot help."""


class MailRejected(Exception):
    """The mail server rejected this mail permanently (5xx)."""


class MailDeferred(Exception):
    """The mail server deferred this mail (4xx), or the connection broke while it was sent."""


class MailServerUnavailable(Exception):
    """The mail server cannot be reached, or rejects our account rather than a single mail."""


class SenderRejected(MailServerUnavailable):
    """The mail server rejects our account (login, policy or sending limit), and with it every mail."""
