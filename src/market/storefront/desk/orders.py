"""The orders of the desk: the list of everybody's orders, an order with its history, and cancelling it."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from market.contracts.access import CANCEL_ORDERS, READ_ORDERS
from market.kit.errors import Forbidden, Unavailable
from market.storefront.desk.notices import redirect_with_notice
from market.storefront.desk.sections import Section, may
from market.storefront.documents import desk_orders as documents
from market.storefront.domain import DeskOrder, DeskOrderPage
from market.storefront.pages.addresses import address, read_day
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

STATUSES = ("pending", "confirmed", "cancelled", "rejected")
_PATH = "/desk/orders"
_PAGE_SIZE = 25
_MAX_USER = 200


async def list_orders(visit: Visit) -> Response:
    """Show a page of everybody's orders, filtered by status, user, and first and last day in UTC, both included."""
    status = visit.query("status")
    first, last = read_day(visit.query("from")), read_day(visit.query("to"))
    filters = {
        "status": status if status in STATUSES else "",
        "user": visit.query("user").strip()[:_MAX_USER],
        "from": "" if first is None else first.isoformat(),
        "to": "" if last is None else last.isoformat(),
    }
    after = visit.query("after")
    is_backwards = first is not None and last is not None and first > last
    page = DeskOrderPage(items=())
    if not is_backwards:
        variables = {
            "status": filters["status"] or None,
            "user": filters["user"] or None,
            "createdFrom": None if first is None else f"{first}T00:00:00Z",
            "createdTo": None if last is None else f"{last + timedelta(days=1)}T00:00:00Z",
            "limit": _PAGE_SIZE,
            "after": after or None,
        }
        page = await visit.deps.gateway.execute(documents.LIST_ORDERS, variables, DeskOrderPage)
    return visit.page(
        "desk/orders.html",
        filters=filters,
        statuses=STATUSES,
        is_backwards=is_backwards,
        page=page,
        next_path=None if page.next is None else address(_PATH, {**filters, "after": page.next}),
        first_path=address(_PATH, filters) if after else None,
    )


async def get_order(visit: Visit) -> Response:
    """Show an order: its lines, its user, and its history."""
    order = await _read(visit)
    return visit.page("desk/order.html", order=order, may_cancel=may(visit, CANCEL_ORDERS))


async def confirm_cancellation(visit: Visit) -> Response:
    """Show the page that asks for confirmation."""
    _require_merchant(visit)
    order = await _read(visit)
    if not order.can_be_cancelled:
        return _redirect_unchanged(visit, order)
    return visit.page("desk/cancellation.html", order=order)


async def cancel_order(visit: Visit) -> Response:
    """Cancel the order, or say why it cannot be cancelled."""
    _require_merchant(visit)
    order = await _read(visit)
    if not order.can_be_cancelled:
        return _redirect_unchanged(visit, order)
    path = f"{_PATH}/{order.id}"
    try:
        after = await visit.deps.gateway.execute(documents.CANCEL_ORDER, {"id": order.id}, DeskOrder)
    except Unavailable:
        unknown = N_("It is not known yet whether the order was cancelled. Please look again in some seconds.")
        return redirect_with_notice(visit, path, unknown, "warn")
    if after.status != "cancelled":
        return _redirect_unchanged(visit, after)
    return redirect_with_notice(visit, path, N_("The order was cancelled. Its units go back to the stock."))


def _redirect_unchanged(visit: Visit, order: DeskOrder) -> Response:
    """Redirect to the order with a notice that says why nothing was done."""
    texts = {
        "cancelled": N_("Nothing was done: the order had been cancelled already."),
        "rejected": N_("Nothing was done: the order was rejected, so there is nothing to cancel."),
    }
    text = texts.get(order.status, N_("Nothing was done: an order with this status cannot be cancelled."))
    return redirect_with_notice(visit, f"{_PATH}/{order.id}", text, "warn")


async def _read(visit: Visit) -> DeskOrder:
    return await visit.deps.gateway.execute(documents.GET_ORDER, {"id": visit.parameter("id")}, DeskOrder)


def _require_merchant(visit: Visit) -> None:
    if not may(visit, CANCEL_ORDERS):
        raise Forbidden("only merchants may cancel orders")


SECTIONS = (
    Section(
        path=_PATH,
        title=N_("Orders"),
        explanation=N_("Everybody's orders: what happened to them when, and cancelling them."),
        access=READ_ORDERS,
        routes={
            f"GET {_PATH}": list_orders,
            f"GET {_PATH}/{{id}}": get_order,
            f"GET {_PATH}/{{id}}/cancellation": confirm_cancellation,
            f"POST {_PATH}/{{id}}/cancellation": cancel_order,
        },
    ),
)
