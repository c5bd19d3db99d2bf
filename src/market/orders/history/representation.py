"""The order in REST responses.

Unlike the order in events, it says when its status changed, and why it was rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from market.contracts import events
from market.orders import domain
from market.orders.domain import Reason, Status, timestamp, to_contract


class Shortage(Struct, frozen=True):
    """A product with fewer units available than requested. The problem document of a 409 has the same members."""

    product_id: events.IdText
    wanted: int
    left: int


class Order(events.Order, frozen=True, kw_only=True):
    """An order. A time is absent if the change has not happened, or was made by a version that did not store times."""

    confirmed_at: events.TimeText | UnsetType = UNSET
    cancelled_at: events.TimeText | UnsetType = UNSET
    rejected_at: events.TimeText | UnsetType = UNSET
    rejection_reason: (
        Annotated[
            str,
            Meta(
                description="Why the order was rejected: out-of-stock, not-confirmed-in-time or reservation-rejected. "
                "Newer versions may add reasons."
            ),
        ]
        | UnsetType
    ) = UNSET
    shortages: (
        Annotated[
            list[Shortage],
            Meta(description="The products that had fewer units available than requested when it was rejected."),
        ]
        | UnsetType
    ) = UNSET


# The API's names of the stored reasons, where they differ.
_PUBLIC_REASONS: Mapping[str, str] = {
    Reason.EXPIRED: "not-confirmed-in-time",
    Reason.RESERVATION_REJECTED: "reservation-rejected",
}


def to_representation(order: domain.Order) -> Order:
    """Return the order as it is in REST responses."""
    represented = Order(
        **msgspec.structs.asdict(to_contract(order)),
        confirmed_at=_timestamp_or_unset(order.confirmed_at),
    )
    if order.status is Status.CANCELLED:
        return msgspec.structs.replace(represented, cancelled_at=_timestamp_or_unset(order.ended_at))
    if order.status is Status.REJECTED:
        return msgspec.structs.replace(
            represented,
            rejected_at=_timestamp_or_unset(order.ended_at),
            rejection_reason=public_reason(order.reason) if order.reason else UNSET,
            shortages=[Shortage(s.product_id, s.requested, s.available) for s in order.shortages] or UNSET,
        )
    return represented


def public_reason(stored: str) -> str:
    """Return the API's name of a stored reason. A reason that only a newer version knows is returned unchanged."""
    return _PUBLIC_REASONS.get(stored, stored)


def _timestamp_or_unset(at: datetime | None) -> str | UnsetType:
    return UNSET if at is None else timestamp(at)
