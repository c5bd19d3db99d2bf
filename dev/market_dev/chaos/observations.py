"""What the checker works on: the clients' history and the final state of the stores, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from market_dev.chaos.history import Call


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """An order document. `items`: product id -> quantity."""

    id: str
    status: str
    items: dict[str, int]
    user: str
    key: str | None
    # Seconds between its creation and the read, by the database's clock.
    age_seconds: float
    unpublished_events: int
    release_due: bool


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """A row of `reservations`. `items`: product id -> quantity."""

    id: str
    status: str
    items: dict[str, int]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A message of the topic `orders`."""

    id: str
    type: str
    order_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class MailRecord:
    """A mail that the mail server accepted."""

    message_id: str
    to: str


@dataclass(frozen=True, slots=True)
class StockSample:
    """The stock of a product, read during the run. `second`: since the run started."""

    second: float
    product_id: str
    quantity: int


@dataclass
class Observations:
    """Everything that was read after the shop had settled. Quantities are units, by product id."""

    calls: list[Call]
    orders: dict[str, OrderRecord]
    reservations: dict[str, ReservationRecord]
    initial_stock: dict[str, int]
    restocked: dict[str, int]
    final_stock: dict[str, int]
    stock_samples: list[StockSample]
    # In the order of each partition.
    events: list[EventRecord]
    # The ids of events that became dead letters because of an injected fault.
    dead_letters: set[str]
    mails: list[MailRecord]
    # Whether any fault was injected. Only then may a mail be repeated.
    faults_injected: bool
    recovery_seconds: float
    # What `market reconcile` reports, one text per difference.
    differences: list[str] = field(default_factory=list)


def event_id_of_mail(message_id: str) -> str:
    """Return the id of the event that a mail was sent for: the local part of its Message-ID."""
    return message_id.strip("<>").partition("@")[0]
