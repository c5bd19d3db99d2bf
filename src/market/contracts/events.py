"""The events of the topic `orders`: CloudEvents 1.0 as structured JSON, keyed by order id.

A consumer must tolerate duplicates: `id` identifies them, and `sequence` shows if one arrives after a later event.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID, uuid5

from msgspec import UNSET, Meta, Struct, UnsetType

TOPIC = "orders"
DEAD_LETTER_TOPIC = "orders.dead-letter"
PARTITIONS = 12
RETENTION_MS = 30 * 24 * 3600 * 1000
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

CREATED = "order.created"
CANCELLED = "order.cancelled"
SEQUENCE = {CREATED: "1", CANCELLED: "2"}
# Kafka headers of each message. The content type is what the CloudEvents SDKs recognize the structured mode by (Kafka
# Protocol Binding for CloudEvents 1.0, section 3.3).
CONTENT_TYPE_HEADER = "content-type"
CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
REQUEST_ID_HEADER = "x-request-id"
TRACE_HEADER = "traceparent"
# Only with a traceparent.
TRACE_STATE_HEADER = "tracestate"
BAGGAGE_HEADER = "baggage"


# Texts, whose form is only described: an event or an order of any version can be read.
IdText = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
TimeText = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
StatusText = Annotated[str, Meta(extra_json_schema={"enum": ["pending", "confirmed", "rejected", "cancelled"]})]


class OrderLine(Struct, frozen=True, kw_only=True):
    """A line as it was sold. `unit_price` is money as text: 2.50, or 1.250 if the currency has three decimals."""

    product_id: IdText
    name: str
    quantity: int
    unit_price: str


class Order(Struct, frozen=True, kw_only=True):
    """The order as REST and events represent it."""

    id: IdText
    user: str
    email: str | None
    items: list[OrderLine]
    total: str
    currency: str
    status: StatusText
    created_at: TimeText


class OrderEvent(Struct, frozen=True, kw_only=True):
    """A CloudEvent. `type` is order.created or order.cancelled, `subject` the order's id.

    `sequence` is text, as the CloudEvents extension of that name requires. Early events have a number: consumers accept
    both and compare `sequence_number`.

    `nomail` is true if the buyer signed in and has no verified address: then no mail is sent, even if `user` looks like
    an address. Otherwise it is absent.
    """

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str = "/market/orders"
    type: str
    subject: str
    time: str
    datacontenttype: str = "application/json"
    sequence: str | int
    nomail: bool | UnsetType = UNSET
    data: Order

    @property
    def sequence_number(self) -> int:
        """The position of the event among those of its order, from 1. Raises ValueError if `sequence` has none."""
        digits = str(self.sequence)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and 0 < int(digits) < 2**31):
            raise ValueError("sequence: must be a whole number from 1 to 2147483647")
        return int(digits)


def event_id(order_id: UUID, event_type: str) -> UUID:
    """Return the event's id, which is the same however often the event is sent."""
    return uuid5(order_id, event_type)
