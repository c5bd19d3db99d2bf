"""What is mailed, what is refused, and the names of the failure points."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

# In order of a message's life; see kit/faults.py.
POINTS = ("notifications.before-mail", "notifications.after-mail", "notifications.before-commit")

Kind = Literal["created", "cancelled"]


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka message as it came."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def size(self) -> int:
        """Bytes that it takes here, about."""
        return len(self.key or b"") + len(self.value or b"") + 512

    def header(self, name: str) -> str:
        """The last header of that name as text; empty: there is none."""
        for key, value in reversed(self.headers):
            if key == name and value is not None:
                return value.decode("latin-1")
        return ""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    quantity: int
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.unit_price * self.quantity


@dataclass(frozen=True, slots=True)
class Notice:
    """What an event tells the customer. `recipient` None: there is no address to write to."""

    event_id: str
    kind: Kind
    sequence: int
    order_id: UUID
    recipient: str | None
    lines: tuple[Line, ...]
    total: Decimal
    currency: str
    ordered_at: datetime
    request_id: str

    @property
    def short_id(self) -> str:
        """The end of the order's id: ids of version 7 that were minted together begin alike."""
        return self.order_id.hex[-8:].upper()


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as it goes over the wire."""

    recipient: str
    content: bytes


class Unreadable(Exception):
    """The message is no event that we could mail, and reading it again will not help."""


class Refused(Exception):
    """The mail server refused this mail for good (5xx)."""


class RefusedForNow(Exception):
    """The mail server refused this mail for now (4xx), or it broke off in the middle."""


class MailServerAway(Exception):
    """No connection, or a refusal that concerns us and not one mail."""
