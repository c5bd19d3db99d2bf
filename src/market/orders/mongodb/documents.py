"""The order's document: converts domain data to BSON values and back, and a transition to a conditional update.

Besides the fields of the order itself, a document has:
- `subject_key`, `idempotency_key`, `key`: the idempotency key, each with its own unique index (docs/decisions/0025).
  `subject_key` is `{"subject": ..., "key": ...}`, and the others are only the key.
- `digest`: the SHA-256 of the request. If it is absent, the order no longer has its idempotency key.
- `placed_by`: the subject that placed the order, if that is not the user.
- `without_mail`: true if no mails are sent, even if the user's name looks like an address. Otherwise absent.
- `since`: the server's time when the pending order was stored.
- `release_due`: the server's time when the stock release became due, or was last postponed. Absent if none is due.
- `outbox`: the events that Kafka has not acknowledged.
- `unsent_since`: present if the relay has to publish events. The time of the first event that was added to the empty
  outbox, or when the events were requeued. Removed if an event becomes stuck, and set again if an event is added later.
- `stuck_since`: when Kafka permanently rejected an event. The event's outbox entry has the reason in `refused`.
- `claimed_by`, `claimed_at`: the owner of the outbox lease, and the server's time when it was taken.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from bson import Decimal128, Timestamp
from msgspec import Struct

from market.contracts import money
from market.orders.domain import (
    KNOWN_STATUSES,
    Order,
    OrderLine,
    OutboxEntry,
    Reason,
    Shortage,
    Status,
    Transition,
    UnreadableOrder,
)

Document = dict[str, Any]

# The server replaces the empty timestamp with its own time.
_SERVER_TIME = Timestamp(0, 0)


class ConditionalUpdate(Struct, frozen=True):
    """A MongoDB update: `change` is applied to the document that `where` matches, if there is one."""

    where: Document
    change: Document


def order_filter(order_id: UUID, owner: str | None) -> Document:
    """Return the filter for the order. `owner`: the user that it must belong to; None: any user."""
    return {"_id": order_id} if owner is None else {"_id": order_id, "user": owner}


def transition_update(
    order_id: UUID,
    transition: Transition,
    *,
    at: datetime,
    entry: OutboxEntry | None = None,
    reason: Reason | None = None,
    shortages: Sequence[Shortage] = (),
) -> ConditionalUpdate:
    """Return the transition as one update that matches only an order in the transition's source status."""
    values: Document = {"status": transition.target.value, f"{transition.target.value}_at": at}
    change: Document = {"$set": values}
    if reason is not None:
        values["reason"] = reason.value
    if shortages:
        values["shortages"] = [
            {"product_id": s.product_id, "wanted": s.requested, "left": s.available} for s in shortages
        ]
    if transition.releases:
        change["$currentDate"] = {"release_due": True}
    if transition.frees_key:
        change["$unset"] = {"idempotency_key": 1, "subject_key": 1, "key": 1, "digest": 1}
    if entry is not None:
        change["$push"] = {"outbox": entry_to_document(entry)}
        change["$min"] = {"unsent_since": entry.at}
    return ConditionalUpdate({"_id": order_id, "status": transition.source.value}, change)


# Amounts with two decimals are converted here, because bson's own conversion to and from Decimal128 is slow (digit by
# digit in Python). A Decimal128 is two 64-bit words, the low one first. The high word has the exponent from bit 49 on,
# biased by 6176. The other bits are the integer.
_BID_WORDS = struct.Struct("<QQ")
_HUNDREDTHS = (6176 - 2) << 49


def to_decimal128(amount: Decimal) -> Decimal128:
    """Return money as MongoDB stores it: with two decimals, or with three if the third one is not zero."""
    in_hundredths = amount.scaleb(2)
    hundredths = int(in_hundredths)
    if hundredths != in_hundredths:
        return Decimal128(money.normalize(amount))
    return Decimal128.from_bid(_BID_WORDS.pack(hundredths, _HUNDREDTHS))


def from_decimal128(value: Decimal128) -> Decimal:
    """Return stored money with two decimals, or with three if the third one is not zero."""
    low, high = _BID_WORDS.unpack(value.bid)
    return Decimal(low).scaleb(-2) if high == _HUNDREDTHS else money.normalize(value.to_decimal())


def order_to_document(order: Order, *, with_idempotency_key: bool = True, with_key: bool = True) -> Document:
    """Return the document of a new, pending order.

    with_idempotency_key: whether to set the field `idempotency_key`
    with_key: whether to set the field `key`
    """
    document: Document = {
        "_id": order.id,
        "user": order.user,
        "email": order.email,
        "items": [
            {
                "product_id": line.product_id,
                "name": line.name,
                "quantity": line.quantity,
                "unit_price": to_decimal128(line.unit_price),
            }
            for line in order.lines
        ],
        "total": to_decimal128(order.total),
        "currency": order.currency,
        "status": order.status.value,
        "created_at": order.created_at,
        "since": _SERVER_TIME,
    }
    if order.placed_by is not None:
        document["placed_by"] = order.placed_by
    if order.without_mail:
        document["without_mail"] = True
    if order.idempotency_key is not None:
        document["digest"] = order.digest
        if order.key_subject is not None:
            document["subject_key"] = subject_key(order.key_subject, order.idempotency_key)
        if with_idempotency_key:
            document["idempotency_key"] = order.idempotency_key
        if with_key:
            document["key"] = order.idempotency_key
    return document


def subject_key(subject: str, key: str) -> Document:
    """Return the value of the field `subject_key`.

    MongoDB compares it as a whole, so the sequence of its fields must not change.
    """
    return {"subject": subject, "key": key}


def document_to_order(d: Mapping[str, Any]) -> Order:
    """Return the order in a document. Raises UnreadableOrder if a value is missing or not valid.

    A status or reason that only a newer version knows is kept.
    """
    try:
        order = _to_order(d)
        # Check the types of the values. Otherwise, for example, a string in place of a time would fail only later.
        msgspec.convert(msgspec.to_builtins(order, builtin_types=_NATIVE_TYPES), Order)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise UnreadableOrder(d["_id"], f"{type(e).__name__}: {e}"[:200]) from None
    return order


_NATIVE_TYPES = (datetime, Decimal, UUID, bytes)
_STATUSES = {status.value: status for status in KNOWN_STATUSES}


def _to_order(d: Mapping[str, Any]) -> Order:
    stored_status = d["status"]
    if not isinstance(stored_status, str):
        raise TypeError("status is not text")
    status = _STATUSES.get(stored_status, Status.UNKNOWN)
    return Order(
        id=d["_id"],
        user=d["user"],
        email=d["email"],
        lines=tuple(
            [OrderLine(i["product_id"], i["name"], i["quantity"], from_decimal128(i["unit_price"])) for i in d["items"]]
        ),
        total=from_decimal128(d["total"]),
        currency=d["currency"],
        created_at=d["created_at"],
        status=status,
        idempotency_key=held_key(d),
        key_subject=key_subject(d),
        digest=d.get("digest"),
        placed_by=d.get("placed_by"),
        without_mail=d.get("without_mail", False),
        release_due="release_due" in d,
        outbox=tuple([_document_to_entry(e) for e in d.get("outbox", ())]),
        lease_owner=d.get("claimed_by"),
        reason=d.get("reason"),
        shortages=tuple([Shortage(s["product_id"], s["wanted"], s["left"]) for s in d.get("shortages", ())]),
        confirmed_at=d.get("confirmed_at"),
        ended_at=d.get("cancelled_at") or d.get("rejected_at"),
        unknown_status=stored_status if status is Status.UNKNOWN else None,
    )


def held_key(d: Mapping[str, Any]) -> str | None:
    """Return the order's idempotency key, or None if it never had one or no longer has it."""
    if "digest" not in d:
        return None
    key: str | None = d["subject_key"]["key"] if "subject_key" in d else d.get("idempotency_key", d.get("key"))
    return key


def key_subject(d: Mapping[str, Any]) -> str | None:
    """Return the subject that the document's idempotency key belongs to, or None if it belongs to the user."""
    return d["subject_key"]["subject"] if "subject_key" in d else None


def entry_to_document(entry: OutboxEntry) -> Document:
    """Return an outbox entry as it is stored. `tracestate` and `baggage` are left out if they are empty."""
    document: Document = {
        "id": entry.id,
        "type": entry.event_type,
        "at": entry.at,
        "request_id": entry.request_id,
        "traceparent": entry.traceparent,
    }
    if entry.tracestate:
        document["tracestate"] = entry.tracestate
    if entry.baggage:
        document["baggage"] = entry.baggage
    return document


def _document_to_entry(d: Mapping[str, Any]) -> OutboxEntry:
    return OutboxEntry(
        d["id"],
        d["type"],
        d["at"],
        d.get("request_id", ""),
        d.get("traceparent", ""),
        d.get("tracestate", ""),
        d.get("baggage", ""),
        d.get("refused"),
    )
