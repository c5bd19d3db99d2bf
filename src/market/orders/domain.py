"""An order's life: plain data, the moves it may make, and the errors.

The state machine is data (`MOVES`, `next_step`, `after_reserve`, `moved`), so that the store builds its
conditional updates from it and the model checker in the tests explores the very same moves.
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
from msgspec import Struct

from market.contracts import events, money
from market.kit.errors import BadInput, Conflict

MAX_LINES = 1000
MAX_QUANTITY = 1_000_000

# The failure points, in the order in which an order passes them (kit/faults.py).
POINTS = (
    "orders.before-intent",
    "orders.after-intent",
    "orders.before-reserve",
    "orders.after-reserve",
    "orders.before-confirm",
    "orders.after-confirm",  # acknowledged, not yet known to the handler: `fail` is a lost answer
    "orders.before-answer",
    "orders.before-publish",
    "orders.after-publish",  # acknowledged by Kafka, not yet cleared
    "orders.after-clear",
    "orders.after-reject-status",  # rejected, its goods not yet released
    "orders.before-cancel-status",
    "orders.after-cancel-status",  # cancelled, its goods not yet released
    "orders.after-release",  # inventory has answered, release_due still set
    "orders.after-release-cleared",
    "orders.recovery-before-reject",
    "orders.relay-after-claim",
)


class Status(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why an order was rejected."""

    SHORT = "out-of-stock"
    # Inventory refused the id: it was cancelled there, or holds other goods.
    REFUSED = "refused"
    EXPIRED = "expired"


class Line(Struct, frozen=True):
    """A line as it was sold. `product_id` is canonical, lower case."""

    product_id: str
    name: str
    quantity: int
    unit_price: Decimal


class Shortage(Struct, frozen=True):
    product_id: str
    wanted: int
    left: int


class Entry(Struct, frozen=True):
    """An event that waits in the outbox; what it says is built when it is published."""

    id: UUID
    type: str
    at: datetime
    request_id: str = ""
    traceparent: str = ""
    # Why Kafka refused it for good; None: it did not.
    refused: str | None = None


class Order(Struct, frozen=True):
    """The order with what it still owes the world: `release_due`, `outbox`."""

    id: UUID
    user: str
    email: str | None
    lines: tuple[Line, ...]
    total: Decimal
    currency: str
    created_at: datetime
    status: Status = Status.PENDING
    key: str | None = None
    # SHA-256 of the parsed request, kept beside the key.
    digest: bytes | None = None
    release_due: bool = False
    outbox: tuple[Entry, ...] = ()
    # The process that publishes the outbox just now.
    claimed_by: str | None = None
    reason: Reason | None = None
    shortages: tuple[Shortage, ...] = ()
    confirmed_at: datetime | None = None
    # When it was rejected or cancelled.
    ended_at: datetime | None = None


class Move(Struct, frozen=True):
    """A change of status, as one conditional write: only from `source`."""

    name: str
    source: Status
    target: Status
    # The event it puts into the outbox.
    event: str | None = None
    # Whether inventory may hold goods that it must get back.
    releases: bool = False
    # A failed attempt may be made again under the same key.
    frees_key: bool = False


CONFIRM = Move("confirm", Status.PENDING, Status.CONFIRMED, event=events.CREATED)
REJECT = Move("reject", Status.PENDING, Status.REJECTED, releases=True, frees_key=True)
WITHDRAW = Move("withdraw", Status.PENDING, Status.CANCELLED, releases=True)
CANCEL = Move("cancel", Status.CONFIRMED, Status.CANCELLED, event=events.CANCELLED, releases=True)
MOVES = (CONFIRM, REJECT, WITHDRAW, CANCEL)
# DELETE's move, by the status that it finds; nothing where there is nothing to do.
CANCELLING: Mapping[Status, Move] = {Status.PENDING: WITHDRAW, Status.CONFIRMED: CANCEL}


class Step(StrEnum):
    """What `advance` does next."""

    RESERVE = "reserve"
    REJECT = "reject"
    RELEASE = "release"
    PUBLISH = "publish"
    NOTHING = "nothing"


class Reserved(Struct, frozen=True):
    """Inventory holds the goods."""


class Short(Struct, frozen=True):
    """Nothing was taken."""

    shortages: tuple[Shortage, ...]


class Refused(Struct, frozen=True):
    """Inventory will never take this id: it was cancelled there."""

    detail: str


Reservation = Reserved | Short | Refused


def next_step(order: Order, *, overdue: bool = False) -> Step:
    """The step that the order is due; `overdue`: it is pending for so long that its handler is gone."""
    if order.status is Status.PENDING:
        return Step.REJECT if overdue else Step.RESERVE
    if order.release_due:
        return Step.RELEASE
    return Step.PUBLISH if order.outbox else Step.NOTHING


def after_reserve(answer: Reservation) -> Move:
    """The move that inventory's answer asks for."""
    return CONFIRM if isinstance(answer, Reserved) else REJECT


def moved(order: Order, move: Move, entry: Entry | None = None) -> Order:
    """The order after the move. The order must be in the move's source."""
    assert order.status is move.source, f"{move.name} of an order that is {order.status}"
    return msgspec.structs.replace(
        order,
        status=move.target,
        release_due=order.release_due or move.releases,
        key=None if move.frees_key else order.key,
        digest=None if move.frees_key else order.digest,
        outbox=(*order.outbox, entry) if entry is not None else order.outbox,
    )


class Wanted(Struct, frozen=True):
    """A line of a request, merged."""

    product_id: str
    quantity: int


class NewOrder(Struct, frozen=True):
    """A request that was parsed."""

    user: str
    email: str | None
    wanted: tuple[Wanted, ...]
    expected_total: Decimal | None

    def digest(self) -> bytes:
        """SHA-256 of the parsed request: spaces and the order of keys in the JSON do not count."""
        return sha256(msgspec.json.encode(self)).digest()


class Product(Struct, frozen=True):
    """What pricing needs to know."""

    id: str
    name: str
    price: Decimal
    currency: str


def merged(lines: list[tuple[str, int]]) -> tuple[Wanted, ...]:
    """One line per product, in the order of first mention. Raises BadInput where a sum is too large."""
    sums: dict[str, int] = {}
    for i, (product_id, quantity) in enumerate(lines):
        total = sums.get(product_id, 0) + quantity
        if total > MAX_QUANTITY:
            raise BadInput(
                f"items[{i}].quantity",
                f"must be at most {MAX_QUANTITY} of one product in all, merged lines are {total}",
            )
        sums[product_id] = total
    return tuple(Wanted(product_id, quantity) for product_id, quantity in sums.items())


def priced(new: NewOrder, products: Mapping[str, Product]) -> tuple[tuple[Line, ...], Decimal, str]:
    """Lines, total and currency. Raises BadInput for an unknown product and for two currencies, PriceChanged."""
    unknown = [w.product_id for w in new.wanted if w.product_id not in products]
    if unknown:
        raise UnknownProducts(unknown)
    lines = []
    total = Decimal(0)
    currencies: dict[str, None] = {}
    for wanted in new.wanted:
        product = products[wanted.product_id]
        currencies[product.currency] = None
        total += product.price * wanted.quantity
        lines.append(Line(wanted.product_id, product.name, wanted.quantity, product.price))
    if len(currencies) > 1:
        raise BadInput("items", f"must all be in one currency, these are in {', '.join(sorted(currencies))}")
    if new.expected_total is not None and new.expected_total != total:
        raise PriceChanged(total)
    return tuple(lines), total, next(iter(currencies))


class UnknownProducts(BadInput):
    """Products that are not in the catalogue."""

    def __init__(self, product_ids: list[str]) -> None:
        shown = ", ".join(product_ids[:10]) + (f" and {len(product_ids) - 10} more" if len(product_ids) > 10 else "")
        super().__init__("items.product_id", f"there is no product {shown}")
        self.product_ids = product_ids

    def facts(self) -> dict[str, Any]:
        return {
            "errors": [{"field": "items.product_id", "reason": f"there is no product {id}"} for id in self.product_ids]
        }


class OutOfStock(Conflict):
    type = "out-of-stock"
    title = "Out of stock"

    def __init__(self, shortages: tuple[Shortage, ...]) -> None:
        first = shortages[0]
        more = f", and {len(shortages) - 1} more" if len(shortages) > 1 else ""
        super().__init__(f"of product {first.product_id} {first.wanted} are wanted and {first.left} are left{more}")
        self.shortages = shortages

    def facts(self) -> dict[str, Any]:
        return {"shortages": [{"product_id": s.product_id, "wanted": s.wanted, "left": s.left} for s in self.shortages]}


class PriceChanged(Conflict):
    type = "price-changed"
    title = "Price changed"

    def __init__(self, total: Decimal) -> None:
        super().__init__(f"the total is {money.write(total)} now")
        self.total = total

    def facts(self) -> dict[str, Any]:
        return {"total": money.write(self.total)}


class OrderCancelled(Conflict):
    type = "order-cancelled"
    title = "Order cancelled"

    def __init__(self, order_id: UUID) -> None:
        super().__init__("the order was cancelled before it was confirmed")
        self.order_id = order_id

    def facts(self) -> dict[str, Any]:
        return {"order_id": str(self.order_id)}


def as_contract(order: Order) -> events.Order:
    """The order as REST and events write it."""
    return events.Order(
        id=str(order.id),
        user=order.user,
        email=order.email,
        items=[
            events.OrderLine(
                product_id=line.product_id,
                name=line.name,
                quantity=line.quantity,
                unit_price=money.write(line.unit_price),
            )
            for line in order.lines
        ],
        total=money.write(order.total),
        currency=order.currency,
        status=order.status.value,
        created_at=timestamp(order.created_at),
    )


def event(order: Order, entry: Entry) -> events.OrderEvent:
    """The entry's CloudEvent, with the order as it is now."""
    return events.OrderEvent(
        id=str(entry.id),
        type=entry.type,
        subject=str(order.id),
        time=timestamp(entry.at),
        sequence=events.SEQUENCE[entry.type],
        data=as_contract(order),
    )


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds: 2026-01-31T12:00:00.000Z."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
