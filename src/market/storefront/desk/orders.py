"""The orders of the desk: everybody's orders, one of them with what happened when, and its cancellation."""

from __future__ import annotations

from datetime import date, timedelta
from urllib.parse import urlencode

from starlette.responses import Response

from market.contracts.access import CANCEL_ORDERS, READ_ORDERS
from market.kit.auth.permissions import Permission
from market.kit.errors import Forbidden, Unavailable
from market.storefront.desk.notices import redirect_with_notice
from market.storefront.desk.sections import Section
from market.storefront.documents import desk_orders as documents
from market.storefront.domain import DeskOrder, DeskOrderPage
from market.storefront.pages.visit import STAFF, Visit
from market.storefront.texts.languages import N_

STATUSES = ("pending", "confirmed", "cancelled", "rejected")
_PATH = "/desk/orders"
_PAGE_SIZE = 25
_MAX_USER = 200


async def list_orders(visit: Visit) -> Response:
    """Show a page of everybody's orders: of a status, of a user, and of days in UTC, both of them included."""
    status = visit.query("status")
    filters = {
        "status": status if status in STATUSES else "",
        "user": visit.query("user").strip()[:_MAX_USER],
        "from": _day(visit.query("from")),
        "to": _day(visit.query("to")),
    }
    after = visit.query("after")
    is_backwards = bool(filters["from"] and filters["to"] and filters["from"] > filters["to"])
    page = DeskOrderPage(items=())
    if not is_backwards:
        variables = {
            "status": filters["status"] or None,
            "user": filters["user"] or None,
            "createdFrom": f"{filters['from']}T00:00:00Z" if filters["from"] else None,
            "createdTo": f"{_day_after(filters['to'])}T00:00:00Z" if filters["to"] else None,
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
        next_path=None if page.next is None else _path({**filters, "after": page.next}),
        first_path=_path(filters) if after else None,
    )


async def get_order(visit: Visit) -> Response:
    """Show an order: its lines, who ordered, and what happened to it when."""
    order = await _read(visit)
    return visit.page("desk/order.html", order=order, may_cancel=_may_cancel(visit))


async def confirm_cancellation(visit: Visit) -> Response:
    """Ask whether the order is to be cancelled."""
    _require_merchant(visit)
    order = await _read(visit)
    if not order.can_be_cancelled:
        return _tell_what_it_is(visit, order)
    return visit.page("desk/cancellation.html", order=order)


async def cancel_order(visit: Visit) -> Response:
    """Cancel the order, or say what has become of it meanwhile."""
    _require_merchant(visit)
    order = await _read(visit)
    if not order.can_be_cancelled:
        return _tell_what_it_is(visit, order)
    path = f"{_PATH}/{order.id}"
    try:
        after = await visit.deps.gateway.execute(documents.CANCEL_ORDER, {"id": order.id}, DeskOrder)
    except Unavailable:
        unknown = N_("It is not known yet whether the order was cancelled. Please look again in some seconds.")
        return redirect_with_notice(visit, path, unknown, "warn")
    if after.status != "cancelled":
        return _tell_what_it_is(visit, after)
    return redirect_with_notice(visit, path, N_("The order was cancelled. Its units go back to the stock."))


def _tell_what_it_is(visit: Visit, order: DeskOrder) -> Response:
    """Return to the order, and say why nothing was done."""
    texts = {
        "cancelled": N_("Nothing was done: the order had been cancelled already."),
        "rejected": N_("Nothing was done: the order was rejected, so there is nothing to cancel."),
    }
    text = texts.get(order.status, N_("Nothing was done: an order with this status cannot be cancelled."))
    return redirect_with_notice(visit, f"{_PATH}/{order.id}", text, "warn")


async def _read(visit: Visit) -> DeskOrder:
    return await visit.deps.gateway.execute(documents.GET_ORDER, {"id": visit.parameter("id")}, DeskOrder)


def _may_cancel(visit: Visit) -> bool:
    if visit.site.is_open:
        return True
    roles = {role for role in STAFF if getattr(CANCEL_ORDERS, role) is Permission.YES}
    return visit.person is not None and not roles.isdisjoint(visit.person.roles)


def _require_merchant(visit: Visit) -> None:
    if not _may_cancel(visit):
        raise Forbidden("only merchants may cancel orders")


def _day(text: str) -> str:
    """Return the day as browsers send it, such as 2026-01-31; "" if it is none."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return ""
    return day.isoformat() if date(1970, 1, 1) <= day < date(9999, 1, 1) else ""


def _day_after(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def _path(parameters: dict[str, str]) -> str:
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"{_PATH}?{query}" if query else _PATH


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
