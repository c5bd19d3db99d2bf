"""The errors that tell a client what became of its order, and what it can do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal
from uuid import UUID

from market.kit.errors import Unavailable
from market.orders.domain import Order, OrderCancelled, OutOfStock, Reason, Status

# Advice for the client if it is unknown whether the order was placed or cancelled.
ADVICE_WITH_KEY = "repeat the request with the same Idempotency-Key for the final result, or read the order by its id"
ADVICE_WITHOUT_KEY = (
    "read the order by its id for the result; without an Idempotency-Key, ordering again may place a second order"
)
ADVICE_AFTER_CANCELLATION = "cancel it again, or read the order by its id for the result"
ADVICE_AFTER_FAILED_READ = (
    "send the request again, or read the order by its id, because an earlier request may have cancelled it"
)

# Why an order was rejected, in words for the client. OUT_OF_STOCK is missing, because it has an error of its own,
# OutOfStock. The keys are text, because a newer version may have stored a reason that this version does not know.
_REJECTION_CAUSES: Mapping[str | None, str] = {
    Reason.EXPIRED: "the order could not be processed in time and was rejected",
    Reason.RESERVATION_REJECTED: "inventory rejected the order's reservation, so the order was rejected",
}


class OrderNotPlaced(Unavailable):
    """The request has stored no order. An earlier request with the same Idempotency-Key may have."""

    def __init__(self, cause: Unavailable, *, has_key: bool) -> None:
        if has_key:
            detail = (
                f"this request did not place the order: {cause}; repeat it with the same Idempotency-Key, because an "
                "earlier request may have placed it"
            )
        else:
            detail = f"the order was not placed: {cause}; place it again"
        super().__init__(detail, retry_after=cause.retry_after)


def explain_unknown_outcome(
    action: Literal["placed", "cancelled"], order_id: UUID, advice: str
) -> AbstractContextManager[None]:
    """Add the order's id, what is unknown, and `advice` to an Unavailable that the block raises.

    OrderNotPlaced, and an Unavailable that already has an order id, are not changed.
    """
    return _explain(f"it is unknown whether the order was {action}", order_id, advice)


@contextmanager
def explain_failed_lookup() -> Iterator[None]:
    """Raise OrderNotPlaced if the block, which looks up an Idempotency-Key, raises Unavailable.

    The request must not have stored an order.
    """
    try:
        yield
    except Unavailable as e:
        raise OrderNotPlaced(e, has_key=True) from e


def explain_failed_read(order_id: UUID) -> AbstractContextManager[None]:
    """Say that nothing was cancelled if the block, which reads the order to cancel, raises Unavailable.

    An Unavailable that already has an order id is not changed.
    """
    return _explain("this request did not cancel the order", order_id, ADVICE_AFTER_FAILED_READ)


@contextmanager
def _explain(outcome: str, order_id: UUID, advice: str) -> Iterator[None]:
    try:
        yield
    except OrderNotPlaced:
        raise
    except Unavailable as e:
        if e.extension_members().get("order_id"):
            raise
        raise Unavailable(f"{outcome}: {e}; {advice}", retry_after=e.retry_after, order_id=str(order_id)) from e


def require_confirmed(order: Order) -> Order:
    """Return the order if it is confirmed, otherwise raise the error that says why it is not.

    Raises OrderCancelled, OutOfStock or Unavailable.
    """
    if order.status is Status.CONFIRMED:
        return order
    if order.status is Status.CANCELLED:
        raise OrderCancelled(order.id)
    if order.status is Status.UNKNOWN:
        raise unknown_status(order)
    if order.shortages:
        raise OutOfStock(order.shortages)
    cause = _REJECTION_CAUSES.get(order.reason, "the order was rejected")
    raise Unavailable(f"{cause}; place it again", order_id=str(order.id))


def unknown_status(order: Order) -> Unavailable:
    """Return the error for an order whose status only a newer version of the service knows."""
    return Unavailable(
        f'the order has the status "{order.unknown_status}", which this version of the service does not know',
        order_id=str(order.id),
    )
