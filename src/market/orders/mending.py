"""The repairs of reconciliation. Each is a step that the shop itself would take, conditional or idempotent, so that a
live system may go on meanwhile. A repair answers whether it is mended, and what there is to say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from uuid import UUID

from msgspec import Struct

from market.contracts import events
from market.orders.domain import CANCELLING, Entry, Order, Refused, Short, Status, Wanted
from market.orders.service import Shop, advance


class Case(Struct, frozen=True):
    """A difference: the order as it was read for a decision, and what was found."""

    shop: Shop
    id: UUID
    order: Order | None
    detail: str


async def give_up(case: Case) -> tuple[bool, str]:
    """Rejects an order that nobody finishes, and gives its goods back."""
    assert case.order is not None
    order = await advance(case.shop, case.order, overdue=True)
    if order.release_due:
        await advance(case.shop, order)
    return order.status not in CANCELLING, f"{case.detail}; it is {order.status} now"


async def release(case: Case) -> tuple[bool, str]:
    """Gives back what nobody bought: there is no order, or an acknowledged write has ended it."""
    released = await case.shop.inventory.release(case.id)
    if case.order is not None and case.order.release_due:
        await case.shop.store.released(case.id)
    return True, f"{case.detail}; {'given back' if released else 'nothing was held any more'}"


async def reserve_again(case: Case) -> tuple[bool, str]:
    """Takes the goods of a confirmed order anew."""
    assert case.order is not None
    answer = await case.shop.inventory.reserve(
        case.id, [Wanted(line.product_id, line.quantity) for line in case.order.lines]
    )
    if isinstance(answer, Short):
        short = ", ".join(f"{s.product_id} (wanted {s.wanted}, left {s.left})" for s in answer.shortages)
        return False, f"{case.detail}; short of {short}"
    if isinstance(answer, Refused):
        return False, f"{case.detail}; inventory refuses it: {answer.detail}"
    now = await case.shop.store.read(case.id)
    if now is None or now.status is not case.order.status:
        # Cancelled meanwhile, and its own release may have come before this reservation.
        await case.shop.inventory.release(case.id)
        return False, f"{case.detail}; the order was cancelled meanwhile"
    return True, f"{case.detail}; reserved again"


async def publish(case: Case) -> tuple[bool, str]:
    """Lets the relay try again."""
    done = await case.shop.store.publish_again(case.id, None, case.shop.clock())
    return done, f"{case.detail}; {'handed to the relay' if done else 'gone meanwhile'}"


async def publish_anew(case: Case) -> tuple[bool, str]:
    """Puts the event, whose type the detail names, into the outbox once more: the same id, so that repeats are known."""
    done = await _once_more(case, case.detail)
    if case.detail == events.CREATED and case.order is not None and case.order.status is Status.CANCELLED:
        # Or the topic's last word of the order would be that it was created.
        done = await _once_more(case, events.CANCELLED) and done
    return done, f"{case.detail}; {'handed to the relay' if done else 'not there any more'}"


async def cancel_anew(case: Case) -> tuple[bool, str]:
    """Sends the cancellation once more, after the creation that came late: the topic's last word of the order is true again."""
    done = await _once_more(case, events.CANCELLED)
    return done, f"{case.detail}; {'handed to the relay once more' if done else 'not there any more'}"


async def _once_more(case: Case, type: str) -> bool:
    """Whether the event is in the outbox, now or before."""
    entry = Entry(events.event_id(case.id, type), type, case.shop.clock())
    if await case.shop.store.publish_again(case.id, entry, case.shop.clock()):
        return True
    now = await case.shop.store.read(case.id)
    return now is not None and any(e.id == entry.id for e in now.outbox)


# By the difference's name; what is not here has no one right answer, and is reported.
MENDING: Mapping[str, Callable[[Case], Awaitable[tuple[bool, str]]]] = {
    "order-still-pending": give_up,
    "reservation-without-order": release,
    "goods-not-given-back": release,
    "release-overdue": release,
    "confirmed-without-reservation": reserve_again,
    "event-overdue": publish,
    "event-refused": publish,
    "event-not-in-topic": publish_anew,
    "events-in-wrong-order": cancel_anew,
}
