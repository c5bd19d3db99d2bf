"""What could not be sold, and which orders are unfinished. Both come from the interfaces of orders for the desk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from market.contracts.access import OPERATE, SEE_PROBLEMS
from market.kit.errors import Forbidden, NotFound, Unavailable
from market.kit.text import parse_uuid
from market.storefront.clients import OrdersClient
from market.storefront.desk.notices import redirect_with_notice
from market.storefront.desk.sections import Section, may
from market.storefront.documents import desk_orders as documents
from market.storefront.domain import ProductPage, RequestRefused, ShortagePage, UnfinishedPage
from market.storefront.pages.addresses import address, read_day
from market.storefront.pages.visit import Visit
from market.storefront.texts.languages import N_

KINDS = ("pending", "release-due", "unsent", "stuck")
_SHORTAGES, _UNFINISHED = "/desk/shortages", "/desk/unfinished"
_PAGE_SIZE = 50
_DAYS, _MAX_DAYS = 30, 92


async def list_shortages(visit: Visit) -> Response:
    """Show what could not be sold in a period, by day and product. If products is unavailable, show ids, not names."""
    last = read_day(visit.query("to")) or datetime.now(UTC).date()
    first = read_day(visit.query("from")) or last - timedelta(days=_DAYS - 1)
    after = visit.query("after")
    period = {"from": first.isoformat(), "to": last.isoformat()}
    is_wrong = not 0 <= (last - first).days < _MAX_DAYS
    page = ShortagePage(items=())
    problem: Unavailable | None = None
    if not is_wrong:
        try:
            page = await _orders(visit).list_shortages(
                first=period["from"], last=period["to"], limit=_PAGE_SIZE, after=after or None
            )
        except Unavailable as e:
            problem = e
    names = await _names(visit, page)
    return visit.page(
        "desk/shortages.html",
        status=200 if problem is None else 503,
        problem=problem,
        period=period,
        max_days=_MAX_DAYS,
        is_wrong=is_wrong,
        page=page,
        names=names,
        next_path=None if page.next is None else address(_SHORTAGES, {**period, "after": page.next}),
        first_path=address(_SHORTAGES, period) if after else None,
    )


async def _names(visit: Visit, page: ShortagePage) -> dict[str, str] | None:
    """Return the names of the page's products by id, without deleted ones; None if they are not available."""
    ids = sorted({row.product_id for row in page.items})
    if not ids:
        return {}
    try:
        products = await visit.deps.gateway.execute(documents.NAME_PRODUCTS, {"ids": ids}, ProductPage)
    except (Unavailable, RequestRefused):
        return None
    return {product.id: product.name for product in products.items}


async def list_unfinished(visit: Visit) -> Response:
    """Show the number of unfinished orders of each kind, and a page of them."""
    kind = visit.query("kind")
    kind = kind if kind in KINDS else ""
    after = visit.query("after")
    page = UnfinishedPage(kinds=(), items=())
    problem: Unavailable | None = None
    try:
        page = await _orders(visit).list_unfinished(kind=kind or None, limit=_PAGE_SIZE, after=after or None)
    except Unavailable as e:
        problem = e
    return visit.page(
        "desk/unfinished.html",
        status=200 if problem is None else 503,
        problem=problem,
        kind=kind,
        page=page,
        may_retry=may(visit, OPERATE),
        next_path=None if page.next is None else address(_UNFINISHED, {"kind": kind, "after": page.next}),
        first_path=address(_UNFINISHED, {"kind": kind}) if after else None,
    )


async def retry(visit: Visit) -> Response:
    """Have orders do the unfinished work of an order at once, and return to the list."""
    if not may(visit, OPERATE):
        raise Forbidden("only operators may retry")
    order_id, kind = parse_uuid("order", visit.value("order")), visit.value("kind")
    path = address(_UNFINISHED, {"kind": kind if kind in KINDS else ""})
    try:
        await _orders(visit).retry(str(order_id))
    except NotFound:
        return redirect_with_notice(visit, path, N_("There is no such order."), "warn")
    except Unavailable:
        text = N_("The order could not be finished, because a part of the shop does not respond.")
        return redirect_with_notice(visit, path, text, "warn")
    text = N_("The order was taken up. If it is still listed, look again in some seconds.")
    return redirect_with_notice(visit, path, text)


def _orders(visit: Visit) -> OrdersClient:
    if visit.deps.orders is None:
        raise Unavailable("the storefront has no connection to orders")
    return visit.deps.orders


SECTIONS = (
    Section(
        path=_SHORTAGES,
        title=N_("Not sold"),
        explanation=N_("What could not be sold for lack of stock, by day and product."),
        access=SEE_PROBLEMS,
        routes={f"GET {_SHORTAGES}": list_shortages},
    ),
    Section(
        path=_UNFINISHED,
        title=N_("Unfinished orders"),
        explanation=N_("Orders with work that should be done by now, since when, and why."),
        access=SEE_PROBLEMS,
        routes={f"GET {_UNFINISHED}": list_unfinished, f"POST {_UNFINISHED}": retry},
    ),
)
