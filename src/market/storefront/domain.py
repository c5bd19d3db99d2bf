"""What the pages show: products and orders as the GraphQL API returns them, the basket, and the storefront's errors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from msgspec import Struct

from market.kit.errors import GRPC_INVALID_ARGUMENT, Conflict, Forbidden, Problem, Unavailable

# Products per page of the catalogue.
PAGE_SIZE = 20
# The longest search that the shop accepts, in characters.
MAX_SEARCH = 200
# Orders per page of "my orders".
ORDERS_PAGE_SIZE = 20
# The maximum number of lines of a basket, which has to fit into a cookie.
MAX_LINES = 50
# The maximum quantity of a line.
MAX_QUANTITY = 1_000_000


class Product(Struct, frozen=True, kw_only=True, rename="camel"):
    """A product. `available`: whether it can be ordered; None if that is unknown at the moment."""

    id: str
    name: str
    price: str
    currency: str
    description: str = ""
    image_url: str | None = None
    available: bool | None = None


class ProductPage(Struct, frozen=True, kw_only=True, rename="camel"):
    """A page of the catalogue. `suggested`: the search found nothing, so these products match similar words."""

    items: tuple[Product, ...]
    total: int = 0
    total_exact: bool = True
    next: str | None = None
    suggested: bool = False


class DeskProduct(Struct, frozen=True, kw_only=True, rename="camel"):
    """A product as merchants see it.

    version: increased by each change, but not by sales
    stock: the units that are free to sell; None if that is unknown at the moment
    """

    id: str
    name: str
    price: str
    currency: str
    updated_at: datetime
    description: str = ""
    image_url: str | None = None
    version: int = 0
    stock: int | None = None


class DeskProductPage(Struct, frozen=True, kw_only=True, rename="camel"):
    """A page of the desk's products. The fields are those of ProductPage."""

    items: tuple[DeskProduct, ...]
    total: int = 0
    total_exact: bool = True
    next: str | None = None
    suggested: bool = False


class ListedProduct(Struct, frozen=True, rename="camel"):
    """What the sitemap shows of a product."""

    id: str
    updated_at: str


class ListedProductPage(Struct, frozen=True):
    items: tuple[ListedProduct, ...]
    next: str | None = None


class OrderLine(Struct, frozen=True, kw_only=True, rename="camel"):
    """A line of an order, with the name and the price at the time of the order."""

    product_id: str
    name: str
    quantity: int
    unit_price: str

    @property
    def total(self) -> Decimal:
        """The unit price times the quantity."""
        return Decimal(self.unit_price) * self.quantity


class Order(Struct, frozen=True, kw_only=True, rename="camel"):
    id: str
    user: str
    email: str | None
    items: tuple[OrderLine, ...]
    total: str
    currency: str
    # pending, confirmed, rejected or cancelled; later versions of the shop may have more.
    status: str
    created_at: datetime

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the status permits a cancellation."""
        return self.status in ("pending", "confirmed")


class Shortage(Struct, frozen=True, rename="camel"):
    """A product of which a rejected order requested more units than were available."""

    product_id: str
    wanted: int
    left: int


class DeskOrder(Order, frozen=True, kw_only=True, rename="camel"):
    """An order with the times of its transitions. None: it has not happened, or an early version did not store it."""

    confirmed_at: datetime | None = None
    cancelled_at: datetime | None = None
    rejected_at: datetime | None = None
    # out-of-stock, not-confirmed-in-time or reservation-rejected; later versions of the shop may have more.
    rejection_reason: str | None = None
    shortages: tuple[Shortage, ...] = ()


class DeskOrderPage(Struct, frozen=True, kw_only=True, rename="camel"):
    """A page of everybody's orders. `total` is a lower bound if `total_exact` is False."""

    items: tuple[DeskOrder, ...]
    total: int = 0
    total_exact: bool = True
    next: str | None = None


class DailyShortage(Struct, frozen=True, kw_only=True):
    """What could not be sold of a product on a day in UTC."""

    day: date
    product_id: str
    orders_rejected: int
    units_requested: int
    units_short: int


class ShortagePage(Struct, frozen=True, kw_only=True):
    items: tuple[DailyShortage, ...]
    next: str | None = None


class UnfinishedOrder(Struct, frozen=True, kw_only=True):
    """An order with work that should be done by now. `kind`: pending, release-due, unsent or stuck.

    reason: why Kafka rejected an event, if it is stuck
    """

    order_id: str
    kind: str
    since: datetime
    status: str
    user: str
    reason: str | None = None


class UnfinishedKind(Struct, frozen=True, kw_only=True):
    """How many orders are unfinished in this way, and since when.

    total: a lower bound if `total_exact` is False
    """

    kind: str
    total: int
    total_exact: bool
    since: datetime | None


class UnfinishedPage(Struct, frozen=True, kw_only=True):
    kinds: tuple[UnfinishedKind, ...]
    items: tuple[UnfinishedOrder, ...]
    next: str | None = None


class OrderPage(Struct, frozen=True):
    items: tuple[Order, ...]
    next: str | None = None


class DeadLetter(Struct, frozen=True, kw_only=True):
    """An event that could not be mailed, as notifications returns it. Addresses in it are masked."""

    id: str
    # In ISO 8601; "" if it is unknown.
    time: str
    reason: str
    detail: str = ""
    order_id: str | None = None
    event: str | None = None
    attempts: int | None = None
    recipient: str | None = None

    @property
    def written_at(self) -> datetime | None:
        """The time, or None if it is unknown."""
        try:
            return datetime.fromisoformat(self.time)
        except ValueError:
            return None


class DeadLetterPage(Struct, frozen=True):
    """A page of dead letters. `complete`: whether the list contains all dead letters, not only the newest."""

    items: tuple[DeadLetter, ...]
    next: str | None = None
    complete: bool = True


class DeadLetterResult(Struct, frozen=True):
    """The result of a request to replay or drop a dead letter (openapi/notifications.json)."""

    id: str
    result: str
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Line:
    """A line of the basket: a product and a quantity."""

    product_id: str
    quantity: int


@dataclass(frozen=True)
class PricedLine:
    """A line with its product, which is None if it no longer exists."""

    product_id: str
    quantity: int
    product: Product | None

    @property
    def total(self) -> Decimal:
        """The current price times the quantity; 0 if the product no longer exists."""
        return Decimal(0) if self.product is None else Decimal(self.product.price) * self.quantity


@dataclass(frozen=True)
class Totals:
    """The totals of priced lines by currency. All products of an order must have the same currency."""

    by_currency: tuple[tuple[str, Decimal], ...]

    @classmethod
    def of(cls, lines: tuple[PricedLine, ...]) -> Totals:
        """Return the totals of the lines, without products that no longer exist."""
        sums: dict[str, Decimal] = {}
        for line in lines:
            if line.product is not None:
                currency = line.product.currency
                sums[currency] = sums.get(currency, Decimal(0)) + line.total
        return cls(tuple(sums.items()))


class DraftLine(Struct, frozen=True, array_like=True):
    """A line of a draft, with the price that the buyer saw."""

    product_id: str
    quantity: int
    price: str


class Draft(Struct, frozen=True, kw_only=True):
    """An order that a buyer has confirmed. Sent again with the same key, it does not become a second order.

    currency: of the prices that the buyer saw
    user, email: None in mode `required`, where the shop takes them from the token
    subject: the subject of the buyer; None in mode `open`
    """

    key: str
    lines: tuple[DraftLine, ...]
    currency: str
    user: str | None = None
    email: str | None = None
    subject: str | None = None

    @property
    def total(self) -> Decimal:
        """The total that the buyer saw."""
        return sum((Decimal(line.price) * line.quantity for line in self.lines), Decimal(0))


class FormRefused(Forbidden):
    """A form was sent by a page of another site or of another session."""

    type = "form-refused"
    title = "Form refused"


class RequestRefused(Problem):
    """The shop has refused a request.

    code: `extensions.code` of the GraphQL error, or the type of the REST problem without its prefix
    fields: (field, reason) of each invalid field
    """

    type = "request-refused"
    title = "Request refused"
    status = 400
    grpc_status = GRPC_INVALID_ARGUMENT

    def __init__(self, detail: str, code: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.refusal = code
        self.fields = fields


class OrderChanged(Conflict):
    """Nothing was ordered, because prices or stock are no longer what the buyer saw.

    available: the available quantity of each product with a shortage, by product id
    """

    type = "order-changed"
    title = "Order changed"

    def __init__(self, available: dict[str, int] | None = None) -> None:
        super().__init__("the order is not what the buyer saw")
        self.available = available or {}


class KeyUsed(Conflict):
    """The idempotency key of the checkout page was used before, for other lines or by another buyer."""

    type = "key-used"
    title = "Key used"


class PlacedAndCancelled(Conflict):
    """The idempotency key belongs to an order that has been cancelled since."""

    type = "placed-and-cancelled"
    title = "Placed and cancelled"

    def __init__(self, order_id: str) -> None:
        super().__init__("the order has been cancelled")
        self.order_id = order_id


class OutcomeUnknown(Unavailable):
    """It is not known yet whether the order was placed or the change made. Sending the request again resolves this."""

    type = "outcome-unknown"
    title = "Outcome unknown"
