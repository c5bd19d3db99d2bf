"""An order's lifecycle: plain data, the allowed transitions, and the errors.

The state machine is data: `TRANSITIONS`, with the pure functions `next_step`, `transition_after_reservation` and
`apply_transition`. The store builds its conditional updates from the transitions, and the model checker in the tests
explores the same transitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, field

from market.contracts import events, money
from market.kit.errors import Conflict, Unavailable
from market.kit.text import pluralize

MAX_LINES = 1000
MAX_QUANTITY = 1_000_000
# Orders share calls to MongoDB and inventory. An order with more lines than this is large, and shares calls only with
# other large ones.
SMALL_ORDER_LINES = 100
# The maximum number of lines in one call, for small orders and for large orders.
MAX_SMALL_ORDERS_BATCH_LINES = 4000
MAX_LARGE_ORDERS_BATCH_LINES = 1000

# The failure points (kit/faults.py), in the sequence of an order's lifecycle.
FAILURE_POINTS = (
    "orders.before-intent",  # the intent is the pending order in MongoDB
    "orders.after-intent",
    "orders.before-reserve",
    "orders.after-reserve",
    "orders.before-confirm",
    "orders.after-confirm",  # acknowledged by MongoDB; a failure here simulates a lost acknowledgement
    "orders.before-response",
    "orders.before-publish",
    "orders.after-publish",  # acknowledged by Kafka, but still in the outbox
    "orders.after-remove",  # acknowledged by Kafka and removed from the outbox
    "orders.after-reject-status",  # rejected, stock not yet released
    "orders.before-cancel-status",
    "orders.after-cancel-status",  # cancelled, stock not yet released
    "orders.after-release",  # inventory has responded, release_due is still set
    "orders.after-release-cleared",
    "orders.recovery-before-reject",
    "orders.relay-after-lease",
)


class Status(StrEnum):
    """The status of an order. `TRANSITIONS` lists the allowed changes."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    # Stands for a stored status that only a newer version knows. This version shows such an order, but does not change
    # it, publish its events or release its stock. UNKNOWN itself is never stored.
    UNKNOWN = "unknown"


# The statuses that are stored.
KNOWN_STATUSES = tuple(status for status in Status if status is not Status.UNKNOWN)
# An order with one of these statuses never frees its idempotency key.
KEY_HOLDING_STATUSES = (Status.CONFIRMED, Status.CANCELLED)


class Reason(StrEnum):
    """Why an order was rejected."""

    OUT_OF_STOCK = "out-of-stock"
    # See ReservationRejected. The value `refused` is stored in documents, so it cannot be renamed.
    RESERVATION_REJECTED = "refused"
    EXPIRED = "expired"


class RequestedLine(Struct, frozen=True):
    """A line of a request, before pricing.

    After `merge_lines`, the product id is in lower case, and no other line of the request has the same product id.
    """

    product_id: str
    quantity: int


class OrderLine(Struct, frozen=True):
    """A line, with the name and the price that the product had when it was ordered.

    The product id is in lower case.
    """

    product_id: str
    name: str
    quantity: int
    unit_price: Decimal


class Shortage(Struct, frozen=True):
    """A product with fewer units available than requested."""

    product_id: str
    requested: int
    available: int


class OutboxEntry(Struct, frozen=True):
    """An event in the outbox, without its content, which is built from the order when the event is published."""

    id: UUID
    event_type: str
    # When the order's status changed.
    at: datetime
    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""
    # Why Kafka permanently rejected the event, or None if it did not.
    rejection: str | None = None


class Order(Struct, frozen=True):
    """An order, including the work that is still due for it (`release_due`, `outbox`)."""

    id: UUID
    user: str
    email: str | None
    lines: tuple[OrderLine, ...]
    total: Decimal
    currency: str
    created_at: datetime
    status: Status = Status.PENDING
    # Stored in up to three fields (mongodb/documents.py).
    idempotency_key: str | None = None
    # The subject that the idempotency key belongs to. None: the key belongs to the user.
    key_subject: str | None = None
    # SHA-256 of the parsed request, stored with the idempotency key.
    digest: bytes | None = None
    # The subject that placed the order, if that is not the user.
    placed_by: str | None = None
    # True if no mails are sent about the order, even if `user` looks like an address.
    without_mail: bool = False
    release_due: bool = False
    outbox: tuple[OutboxEntry, ...] = ()
    # The instance that holds the lease on the outbox: only its relay publishes the events.
    lease_owner: str | None = None
    # Why the order was rejected: a `Reason`, or what a newer version has stored.
    reason: str | None = None
    shortages: tuple[Shortage, ...] = ()
    confirmed_at: datetime | None = None
    # When the order was rejected or cancelled.
    ended_at: datetime | None = None
    # What is stored as the status, if `status` is UNKNOWN.
    unknown_status: str | None = None


class Transition(Struct, frozen=True):
    """A change of status as one conditional write: it applies only to an order in status `source`."""

    name: str
    source: Status
    target: Status
    # The type of the event that the transition adds to the outbox.
    event: str | None = None
    # Whether the transition makes a stock release due. This includes rejecting or cancelling a pending order, because
    # inventory may already hold its stock.
    releases: bool = False
    # Whether the transition frees the idempotency key, so that the client may use it for another attempt.
    frees_key: bool = False


CONFIRM = Transition("confirm", Status.PENDING, Status.CONFIRMED, event=events.CREATED)
REJECT = Transition("reject", Status.PENDING, Status.REJECTED, releases=True, frees_key=True)
CANCEL_PENDING = Transition("cancel pending", Status.PENDING, Status.CANCELLED, releases=True)
CANCEL_CONFIRMED = Transition(
    "cancel confirmed", Status.CONFIRMED, Status.CANCELLED, event=events.CANCELLED, releases=True
)
TRANSITIONS = (CONFIRM, REJECT, CANCEL_PENDING, CANCEL_CONFIRMED)
# The transition that a cancellation applies, by the order's status. A rejected or cancelled order has none.
CANCELLATION_BY_STATUS: Mapping[Status, Transition] = {
    Status.PENDING: CANCEL_PENDING,
    Status.CONFIRMED: CANCEL_CONFIRMED,
}


class Step(StrEnum):
    """What has to be done next for an order. `service.advance` performs it."""

    RESERVE = "reserve"
    REJECT = "reject"
    RELEASE = "release"
    PUBLISH = "publish"
    NOTHING = "nothing"


class Reserved(Struct, frozen=True):
    """Inventory holds the stock."""


class InsufficientStock(Struct, frozen=True):
    """Nothing was reserved."""

    shortages: tuple[Shortage, ...]


class ReservationRejected(Struct, frozen=True):
    """Inventory will never accept a reservation with this id.

    It already has a reservation with this id, which either was cancelled or has other items.
    """

    detail: str


ReservationResult = Reserved | InsufficientStock | ReservationRejected


def next_step(order: Order, *, overdue: bool = False) -> Step:
    """Return the step that is due.

    overdue: whether the order has been pending for so long that no request can still be placing it.
    """
    if order.status is Status.UNKNOWN:
        return Step.NOTHING
    if order.status is Status.PENDING:
        return Step.REJECT if overdue else Step.RESERVE
    if order.release_due:
        return Step.RELEASE
    return Step.PUBLISH if next_event(order) else Step.NOTHING


def next_event(order: Order) -> OutboxEntry | None:
    """Return the outbox entry that has to be published next.

    Return None if the outbox is empty. Also return None if only a newer version can publish the event, because this
    version does not know the order's status or the event's type.
    """
    if not order.outbox or order.status is Status.UNKNOWN or order.outbox[0].event_type not in events.SEQUENCE:
        return None
    return order.outbox[0]


def transition_after_reservation(result: ReservationResult) -> Transition:
    """Return the transition to apply to a pending order after inventory's response."""
    return CONFIRM if isinstance(result, Reserved) else REJECT


def apply_transition(order: Order, transition: Transition, entry: OutboxEntry | None = None) -> Order:
    """Return the order as it is after the transition, with `entry` added to its outbox.

    The order must be in the transition's source status. Its times and its reason are not changed.
    """
    assert order.status is transition.source, f'transition "{transition.name}" of an order that is {order.status}'
    return msgspec.structs.replace(
        order,
        status=transition.target,
        release_due=order.release_due or transition.releases,
        idempotency_key=None if transition.frees_key else order.idempotency_key,
        digest=None if transition.frees_key else order.digest,
        outbox=(*order.outbox, entry) if entry is not None else order.outbox,
    )


class NewOrder(Struct, frozen=True, omit_defaults=True):
    """A parsed request.

    user: who the order is for. None: the signed-in caller
    email: as in the request
    expected_total, expected_currency: what the customer has seen, or None if the request does not contain them

    A new field needs a default. `digest` leaves out fields that are equal to their default, so a request without the
    new field has the same digest as in earlier versions.
    """

    user: str | None
    email: str | None
    # The digest contains the name `wanted`. If the name changed, requests that are repeated after an upgrade would not
    # match their stored digests.
    lines: tuple[RequestedLine, ...] = field(name="wanted")
    expected_total: Decimal | None
    expected_currency: str | None = None

    def digest(self) -> bytes:
        """Return the SHA-256 of the parsed request. Whitespace and the sequence of keys in the JSON do not matter."""
        return sha256(msgspec.json.encode(self)).digest()


class Product(Struct, frozen=True):
    """The product data that pricing needs."""

    id: str
    name: str
    price: Decimal
    currency: str


class OutOfStock(Conflict):
    """At least one product has fewer units available than requested."""

    type = "out-of-stock"
    title = "Out of stock"

    def __init__(self, shortages: tuple[Shortage, ...]) -> None:
        first, *others = shortages
        more = f"; {pluralize(len(others), 'more product')} out of stock" if others else ""
        super().__init__(f"product {first.product_id}: requested {first.requested}, available {first.available}{more}")
        self.shortages = shortages

    def extension_members(self) -> dict[str, Any]:
        return {
            "shortages": [
                {"product_id": s.product_id, "wanted": s.requested, "left": s.available} for s in self.shortages
            ]
        }


class UnreadableOrder(Unavailable):
    """The stored document cannot be read as an order: it was modified by hand, or written by a newer version.

    `reason` is for logs and reports; it may contain stored values. Clients may retry, because another instance may be
    able to read it.
    """

    type = "unreadable-order"
    title = "Unreadable order"

    def __init__(self, order_id: UUID, reason: str) -> None:
        super().__init__(
            "the stored order cannot be read by this version of the service", retry_after=30, order_id=str(order_id)
        )
        self.order_id = order_id
        self.reason = reason


class OrderCancelled(Conflict):
    """The order was cancelled while it was being placed."""

    type = "order-cancelled"
    title = "Order cancelled"

    def __init__(self, order_id: UUID) -> None:
        super().__init__("the order was cancelled while it was being placed")
        self.order_id = order_id

    def extension_members(self) -> dict[str, Any]:
        return {"order_id": str(self.order_id)}


def to_contract(order: Order) -> events.Order:
    """Return the order as it is in REST responses and events: ids, money and times as text."""
    return events.Order(
        id=str(order.id),
        user=order.user,
        email=order.email,
        items=[
            events.OrderLine(
                product_id=line.product_id,
                name=line.name,
                quantity=line.quantity,
                unit_price=money.write(line.unit_price, order.currency),
            )
            for line in order.lines
        ],
        total=money.write(order.total, order.currency),
        currency=order.currency,
        status=order.unknown_status or order.status.value,
        created_at=timestamp(order.created_at),
    )


def to_event(order: Order, entry: OutboxEntry) -> events.OrderEvent:
    """Return the entry's CloudEvent, with the order as it is now."""
    return events.OrderEvent(
        id=str(entry.id),
        type=entry.event_type,
        subject=str(order.id),
        time=timestamp(entry.at),
        sequence=events.SEQUENCE[entry.event_type],
        nomail=True if order.without_mail else UNSET,
        data=to_contract(order),
    )


def timestamp(at: datetime) -> str:
    """Return the time as RFC 3339 in UTC with milliseconds: 2026-01-31T12:00:00.000Z."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_milliseconds(at: datetime) -> datetime:
    """Truncate the time to milliseconds, which is MongoDB's precision."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
