"""Plain data (messages, notifications, mails), the errors, and the names of the failure points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple
from uuid import UUID

# The failure points (kit/faults.py), in the sequence in which a message passes them.
FAILURE_POINTS = (
    "notifications.before-mail",
    "notifications.after-mail",
    "notifications.after-deferral",
    "notifications.before-commit",
)

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
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers + _OVERHEAD_BYTES

    def header(self, name: str, encoding: str = "latin-1") -> str:
        """Return the last header of that name as text, or an empty string if there is none."""
        for key, value in reversed(self.headers):
            if key == name and value is not None:
                return value.decode(encoding, "replace")
        return ""


@dataclass(frozen=True, slots=True)
class DeadLetterReason:
    """Why a message becomes a dead letter.

    code: a metric label
    detail: for operators
    attempts: how many attempts to send the mail have failed
    """

    code: Literal["invalid-event", "rejected", "retries-exhausted"]
    detail: str
    attempts: int = 0

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Deferral:
    """What is stored with a deferred mail.

    first_deferred_at: when the mail was first deferred or held back, or when processing it first failed
    due_at: when the next attempt may be made
    attempts: how many attempts have failed
    reserved: whether the attempt at `due_at` already counts against the rate limit of the mail's throttled domain
    reason: why the last attempt failed, for operators; empty if none was made
    """

    first_deferred_at: datetime
    due_at: datetime
    attempts: int
    reserved: bool
    reason: str


@dataclass(slots=True)
class PendingMessage:
    """An unsettled message.

    A message is settled once it is mailed, skipped, or stored as a deferred mail or dead letter. Only then may its
    offset be committed.
    """

    message: Message
    # The offset of the record that was read. For a deferred mail, this is not `message.offset`, which is the offset of
    # the original message.
    offset: int
    # How many attempts have failed since the message was read, including attempts to write its dead letter.
    attempts: int = 0
    # When the mail was first deferred or held back, or when processing first failed. None before that.
    first_deferred_at: datetime | None = None
    # Set if the message was read from the topic of deferred mails.
    deferral: Deferral | None = None
    # False if too many messages already wait in memory for their next attempt.
    may_wait_in_memory: bool = True
    # Set once the message has to become a dead letter. Writing the dead letter may take several attempts.
    dead_letter: DeadLetterReason | None = None

    def __post_init__(self) -> None:
        if self.deferral is not None:
            self.first_deferred_at = self.deferral.first_deferred_at

    @property
    def total_attempts(self) -> int:
        """How many attempts have failed, including those before the message was deferred."""
        return self.attempts + (self.deferral.attempts if self.deferral else 0)

    def seconds_until_due(self, now: float) -> float:
        """Return how long the message has to wait at the Unix time `now`; 0 or less if it is due."""
        return 0.0 if self.deferral is None else self.deferral.due_at.timestamp() - now


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
    """What a mail says about an order event, and to whom it goes.

    sequence: the number of the event within its order. Later events have higher numbers
    recipient: the address, in the form in which it is sent to mail servers. None if the order has no valid address, or
        if no mail is to be sent, as the event's attribute `nomail` says
    has_address: whether the order's `email` or `user` looks like an address, because it contains an @. It may still be
        invalid. False if no mail is to be sent (`nomail`)
    """

    event_id: str
    kind: Kind
    sequence: int
    order_id: UUID
    recipient: str | None
    has_address: bool
    lines: tuple[Line, ...]
    total: Decimal
    currency: str
    ordered_at: datetime
    # When the event occurred, that is, when the order was confirmed or cancelled; None if the event has no valid time.
    occurred_at: datetime | None
    request_id: str

    @property
    def recipient_domain(self) -> str:
        """The domain of the recipient's address, in lower case; empty if there is no recipient."""
        return (self.recipient or "").rpartition("@")[2].lower()

    @property
    def short_id(self) -> str:
        """The last 8 hex digits of the order's id. (The first digits are a timestamp, so many orders share them.)"""
        return self.order_id.hex[-8:].upper()


@dataclass(frozen=True, slots=True)
class EventSummary:
    """What an event is about, for operators. A field is None if it cannot be read.

    recipient: the address to which the mail goes, masked
    """

    kind: Kind | None = None
    order_id: UUID | None = None
    recipient: str | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """A composed mail. `content` is the complete RFC 5322 message."""

    recipient: str
    content: bytes

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the recipient's address is not ASCII, so that the mail server must offer SMTPUTF8 (RFC 6531)."""
        return not self.recipient.isascii()


# An e-mail address anywhere in a text, such as a mail server's reply.
_ADDRESS = re.compile(r"""("[^"]*"|[^\s<>"'`(),;:\[\]]+)@([^\s<>"'`(),;:\[\]]+)""")
_QUOTE = '"'


def mask_addresses(text: str) -> str:
    """Return the text with each e-mail address masked: its first character and its domain remain."""
    return _ADDRESS.sub(_masked, text)


def _masked(address: re.Match[str]) -> str:
    local_part, domain = address.groups()
    return f"{local_part.strip(_QUOTE)[:1]}***@{domain}"


class FirstStart(NamedTuple):
    """What the sent log records about the group's first start.

    log_is_empty: True if the log has never had a record, so no start has been recorded
    started_ms: the time of the first start, in Unix milliseconds by the broker's clock. None if it is unknown
    """

    log_is_empty: bool
    started_ms: int | None


class InvalidEvent(Exception):
    """The message is not a valid event, so a retry cannot help."""


class MailRejected(Exception):
    """The mail server rejected this mail permanently (5xx)."""


class MailDeferred(Exception):
    """The mail server deferred this mail (4xx), or the connection broke while it was sent."""


class MailHeldBack(Exception):
    """The mail must not be sent yet, so no attempt was made. It becomes a deferred mail, due in `seconds`.

    cause: `throttled` (its domain is throttled) or `order` (an earlier mail of the order is deferred)
    reserved: whether the attempt at that time already counts against the domain's rate limit
    """

    def __init__(self, cause: Literal["throttled", "order"], seconds: float, *, reserved: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.seconds = seconds
        self.reserved = reserved


class MailServerUnavailable(Exception):
    """No mail can be sent: the mail server cannot be reached, or rejects our account."""


class SenderRejected(MailServerUnavailable):
    """The mail server rejects all mails of our account, because of its login, a policy or a sending limit."""
