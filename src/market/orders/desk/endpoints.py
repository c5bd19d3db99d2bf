"""The endpoints for the desk (the storefront's pages for merchants and operators): shortages and unfinished orders."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from market.kit import text
from market.kit.errors import BadInput
from market.kit.http.edge import Endpoint
from market.kit.http.requests import parse_query, reject_unsupported_preconditions
from market.kit.http.responses import json_response
from market.kit.paging import Cursor, read_cursor, write_cursor
from market.kit.times import parse_day
from market.orders.config import Recovery
from market.orders.desk.shortages import DailyShortage, DayOrdinal, ShortagePosition, ShortageRepository
from market.orders.desk.unfinished import (
    Ages,
    Kind,
    KindSummary,
    UnfinishedOrder,
    UnfinishedOrders,
    UnfinishedPosition,
    retry_order,
)
from market.orders.service import Deps

MAX_PERIOD_DAYS = 92
DEFAULT_PERIOD_DAYS = 30

_Limit = Annotated[int, Meta(ge=1, le=1000)]


class ShortagePage(Struct, frozen=True, rename={"first": "from", "last": "to"}):
    """A page of shortages, the latest day first."""

    items: list[DailyShortage]
    first: Annotated[str, Meta(description="The first day of the period.", extra_json_schema={"format": "date"})]
    last: Annotated[str, Meta(description="The last day of the period.", extra_json_schema={"format": "date"})]
    limit: int
    next: Annotated[str, Meta(description="The cursor of the next page, for `after`; null on the last page.")] | None


class UnfinishedPage(Struct, frozen=True):
    """The number of unfinished orders by kind, and a page of unfinished orders."""

    kinds: list[KindSummary]
    items: list[UnfinishedOrder]
    limit: int
    next: Annotated[str, Meta(description="The cursor of the next page, for `after`; null on the last page.")] | None


class _ShortagesQuery(Struct, frozen=True, forbid_unknown_fields=True, rename={"first": "from", "last": "to"}):
    first: str | None = None
    last: str | None = None
    product: str | None = None
    limit: _Limit = 100
    after: Cursor | None = None


class _Continuation(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page of shortages ends, if the request has no `to`. Cursors contain it, so its fields must not change.

    today: the day of the first page, as an ordinal. The list that begins on it does not change at midnight.
    """

    today: DayOrdinal
    after: ShortagePosition


class _UnfinishedQuery(Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["pending", "release-due", "unsent", "stuck"] | None = None
    limit: _Limit = 100
    after: Cursor | None = None


class _NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    pass


def parse_period(first: str | None, last: str | None, today: date) -> tuple[date, date]:
    """Return the first and the last day of the period. Raises BadInput.

    first: as in the request. None: the period has 30 days
    last: as in the request. None: today
    """
    end = today if last is None else parse_day("to", last)
    begin = end - timedelta(days=DEFAULT_PERIOD_DAYS - 1) if first is None else parse_day("from", first)
    days = (end - begin).days + 1
    if days < 1:
        raise BadInput("from", f"must not be after `to`, which is {end}")
    if days > MAX_PERIOD_DAYS:
        raise BadInput("from", f"the period must have at most {MAX_PERIOD_DAYS} days, got {days} until {end}")
    return begin, end


def routes(deps: Deps, recovery: Recovery) -> Mapping[str, Endpoint]:
    """Return the endpoints by method and path."""
    shortages = ShortageRepository(deps.orders.collection)
    ages = Ages(pending=recovery.reject_after_seconds, other=recovery.unfinished_after_seconds)
    unfinished = UnfinishedOrders(deps.orders.collection, ages)

    async def list_shortages(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        query = parse_query(request, _ShortagesQuery)
        product_id = None if query.product is None else str(text.parse_uuid("product", query.product))
        definition = ("shortages", query.first, query.last, product_id)
        today, after = deps.clock().astimezone(UTC).date(), None
        if query.after is not None and query.last is None:
            continuation = read_cursor(query.after, _Continuation, *definition)
            today, after = date.fromordinal(continuation.today), continuation.after
        elif query.after is not None:
            after = read_cursor(query.after, ShortagePosition, *definition)
        first, last = parse_period(query.first, query.last, today)
        found = await shortages.list_daily(first, last, product_id=product_id, limit=query.limit + 1, after=after)
        items, next_cursor = found[: query.limit], None
        if len(found) > query.limit:
            end = items[-1]
            position = ShortagePosition(date.fromisoformat(end.day).toordinal(), end.product_id)
            continuation = _Continuation(today.toordinal(), position)
            next_cursor = write_cursor(continuation if query.last is None else position, *definition)
        page = ShortagePage(items, first.isoformat(), last.isoformat(), query.limit, next_cursor)
        return json_response(page)

    async def list_unfinished(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        query = parse_query(request, _UnfinishedQuery)
        kinds = tuple(Kind) if query.kind is None else (Kind(query.kind),)
        definition = ("unfinished-orders", query.kind)
        after = None if query.after is None else read_cursor(query.after, UnfinishedPosition, *definition)
        if after is not None and after.kind not in kinds:
            raise BadInput("after", "is not a cursor: it must be the `next` of a page, unchanged")
        items, position = await unfinished.list_page(kinds, limit=query.limit, after=after)
        next_cursor = None if position is None else write_cursor(position, *definition)
        page = UnfinishedPage(await unfinished.summarize(), items, query.limit, next_cursor)
        return json_response(page)

    async def retry(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        parse_query(request, _NoParameters)
        await retry_order(deps, unfinished, text.parse_path_id("order", request.path_params["id"]))
        return Response(status_code=202)

    return {
        "GET /api/shortages": list_shortages,
        "GET /api/unfinished-orders": list_unfinished,
        "POST /api/unfinished-orders/{id}/retry": retry,
    }
