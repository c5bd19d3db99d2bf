"""The order's document: domain data to BSON values and back, and a move as a conditional update."""

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

from market.orders.domain import Entry, Line, Move, Order, Reason, Shortage, Status

Document = dict[str, Any]

# The server puts its own time in place of the empty timestamp.
_SERVER_TIME = Timestamp(0, 0)


def update_of(
    id: UUID,
    move: Move,
    *,
    at: datetime,
    entry: Entry | None = None,
    reason: Reason | None = None,
    shortages: Sequence[Shortage] = (),
) -> tuple[Document, Document]:
    """The move as one conditional update: what must hold, and the change."""
    values: Document = {"status": move.target.value, f"{move.target.value}_at": at}
    change: Document = {"$set": values}
    if reason is not None:
        values["reason"] = reason.value
    if shortages:
        values["shortages"] = [{"product_id": s.product_id, "wanted": s.wanted, "left": s.left} for s in shortages]
    if move.releases:
        change["$currentDate"] = {"release_due": True}
    if move.frees_key:
        change["$unset"] = {"key": 1, "digest": 1}
    if entry is not None:
        change["$push"] = {"outbox": entry_document(entry)}
        change["$min"] = {"unsent_since": entry.at}
    return {"_id": id, "status": move.source.value}, change


# Money is hundredths: exponent -2 in Decimal128's binary form. (bson's own conversion goes digit by digit in Python.)
_HUNDREDTHS = (6176 - 2) << 49
_BID = struct.Struct("<QQ")
_CENT = Decimal("0.01")


def to_decimal128(amount: Decimal) -> Decimal128:
    """Money as MongoDB keeps it, with two places."""
    return Decimal128.from_bid(_BID.pack(int(amount.scaleb(2)), _HUNDREDTHS))


def from_decimal128(value: Decimal128) -> Decimal:
    """Money with two places."""
    low, high = _BID.unpack(value.bid)
    return Decimal(low).scaleb(-2) if high == _HUNDREDTHS else value.to_decimal().quantize(_CENT)


def document_of(order: Order) -> Document:
    """The intent's document."""
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
    if order.key is not None:
        document["key"] = order.key
        document["digest"] = order.digest
    return document


class Unreadable(Struct, frozen=True):
    """A document that is no order: changed by hand, or of another program."""

    id: UUID
    reason: str


_KEPT_AS_THEY_ARE = (datetime, Decimal, UUID, bytes)


def read_order(d: Mapping[str, Any]) -> Order | Unreadable:
    """The order that a document holds, or why it holds none."""
    try:
        order = order_of(d)
        # A text where a time belongs would be met later, where nobody knows whose it is.
        msgspec.convert(msgspec.to_builtins(order, builtin_types=_KEPT_AS_THEY_ARE), Order)
        return order
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        return Unreadable(d["_id"], f"{type(e).__name__}: {e}"[:200])


def order_of(d: Mapping[str, Any]) -> Order:
    """The order that a document holds."""
    return Order(
        id=d["_id"],
        user=d["user"],
        email=d["email"],
        lines=tuple(
            [Line(i["product_id"], i["name"], i["quantity"], from_decimal128(i["unit_price"])) for i in d["items"]]
        ),
        total=from_decimal128(d["total"]),
        currency=d["currency"],
        created_at=d["created_at"],
        status=Status(d["status"]),
        key=d.get("key"),
        digest=d.get("digest"),
        release_due="release_due" in d,
        outbox=tuple([_entry_of(e) for e in d.get("outbox", ())]),
        claimed_by=d.get("claimed_by"),
        reason=Reason(d["reason"]) if "reason" in d else None,
        shortages=tuple([Shortage(s["product_id"], s["wanted"], s["left"]) for s in d.get("shortages", ())]),
        confirmed_at=d.get("confirmed_at"),
        ended_at=d.get("cancelled_at") or d.get("rejected_at"),
    )


def entry_document(entry: Entry) -> Document:
    """An outbox entry as it is stored."""
    return {
        "id": entry.id,
        "type": entry.type,
        "at": entry.at,
        "request_id": entry.request_id,
        "traceparent": entry.traceparent,
    }


def _entry_of(d: Mapping[str, Any]) -> Entry:
    return Entry(d["id"], d["type"], d["at"], d.get("request_id", ""), d.get("traceparent", ""), d.get("refused"))
