"""The REST edge of products: five operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from market.contracts import access, currency
from market.contracts.money import PriceText
from market.kit import text
from market.kit.auth.identity import identity
from market.kit.batching import Batcher, SharedReads
from market.kit.errors import BadInput, InputErrors, NotFound, Unavailable
from market.kit.http import compression
from market.kit.http.admission import Admission
from market.kit.http.caller import caller
from market.kit.http.edge import Endpoint
from market.kit.http.requests import (
    idempotency_key,
    parse_query,
    read_body,
    read_header,
    reject_unsupported_preconditions,
)
from market.kit.http.responses import json_response, problem_response
from market.kit.paging import MAX_COUNT, Cursor, Offset, read_cursor, write_cursor
from market.products import domain, service
from market.products.domain import Draft, Product, ProductExists, ProductModified, Sort
from market.products.preconditions.tags import find_if_none_match, parse_if_match, representation_tag
from market.products.search.pages import SearchQuery
from market.products.service import Deps
from market.products.store import CallerKey, PageQuery

_NO_CONTROLS = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"}
_NO_CONTROLS_BUT_NEWLINE_AND_TAB = {"pattern": r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029]*$"}

Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=domain.MAX_NAME_LENGTH,
        description="text with a visible character, without control and directional characters",
        extra_json_schema=_NO_CONTROLS,
    ),
]
Description = Annotated[
    str, Meta(max_length=domain.MAX_DESCRIPTION_LENGTH, extra_json_schema=_NO_CONTROLS_BUT_NEWLINE_AND_TAB)
]
Currency = Annotated[
    str,
    Meta(
        description="code of ISO 4217",
        extra_json_schema={"minLength": 3, "maxLength": 3, "enum": list(currency.CODES)},
    ),
]
ImageUrl = Annotated[
    str,
    Meta(
        max_length=domain.MAX_URL_LENGTH,
        description="an https URL, or a path that begins with one slash",
        extra_json_schema={
            "pattern": r"^(https://[A-Za-z0-9.-]+(/[!#-;=?-\[\]-~]*)?|/([!#-.0-;=?-\[\]-~][!#-;=?-\[\]-~]*)?)$"
        },
    ),
]
Stock = Annotated[int, Meta(ge=0, le=domain.MAX_STOCK)]
Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Ignored = Annotated[Any, Meta(description="read-only: accepted and ignored")]


# Validation beyond that of msgspec, by field. Each function returns the field's value in a draft.
FIELD_CHECKS: dict[str, Callable[[Any], object]] = {
    "name": domain.validate_name,
    "description": domain.validate_description,
    "price": domain.parse_price,
    "currency": domain.validate_currency,
    "image_url": domain.validate_image_url,
}


class WritableFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that POST and PUT have in common."""

    name: Name
    description: Description
    price: PriceText
    currency: Currency
    image_url: ImageUrl | None

    def to_draft(self, stock: int | None) -> Draft:
        """Return the validated fields. Raises BadInput, which names all invalid fields."""
        errors = InputErrors()
        values: dict[str, Any] = {}
        for name, check in FIELD_CHECKS.items():
            with errors:
                values[name] = check(getattr(self, name))
        errors.raise_collected()
        draft = Draft(**values, stock=stock)
        domain.validate_price_in(draft.currency, draft.price)
        return draft


class NewProduct(WritableFields, forbid_unknown_fields=True, kw_only=True):
    """The body of POST."""

    image_url: ImageUrl | None = None
    stock: Annotated[Stock, Meta(description="the units to sell; 0 if absent")] = 0


class ChangedProduct(WritableFields, forbid_unknown_fields=True, kw_only=True):
    """The body of PUT: the id and every writable field. A body that GET returned can be sent back."""

    id: Id
    stock: Annotated[Stock, Meta(description="the units to sell; unchanged if absent")] | UnsetType = UNSET
    delivery: domain.Delivery | UnsetType = UNSET
    available: Ignored = None
    version: Ignored = None
    created_at: Ignored = None
    updated_at: Ignored = None


class ProductPage(Struct, frozen=True):
    items: list[Product]
    total: Annotated[int, Meta(ge=0, description="the number of products in the whole list, or a lower bound of it")]
    limit: int
    offset: int
    total_exact: Annotated[
        bool, Meta(description=f"false if only {MAX_COUNT} products were counted, and there are more")
    ]
    next: Annotated[str, Meta(description="the cursor of the next page, for `after`; null on the last page")] | None
    suggested: Annotated[
        bool,
        Meta(description="true if the search finds nothing, and the items are products with words similar to its own"),
    ] = False


class NoQuery(Struct, forbid_unknown_fields=True):
    """For operations without query parameters."""


class ProductQuery(Struct, forbid_unknown_fields=True):
    availability: bool = True
    stock: bool = False


class ListQuery(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    offset: Offset = 0
    after: Cursor | None = None
    q: str | None = None
    ids: list[str] | None = None
    sort: Sort | None = None
    availability: bool = True
    stock: bool = False


_NEW = msgspec.json.Decoder(NewProduct)
_CHANGED = msgspec.json.Decoder(ChangedProduct)
_DEFAULT_QUERY = ProductQuery()
# The conditional headers of one product.
_EVALUATED = (b"if-match", b"if-none-match")


def routes(deps: Deps, admission: Admission) -> dict[str, Endpoint]:
    """Return the endpoints by method and path. `admission`: of reads, by number of products."""
    # Concurrent reads share a query.
    find: Batcher[UUID, Product | None] = Batcher(
        deps.products.get_many, name="products.get", max_batch_size=128, max_concurrency=2, dedupe=True
    )

    async def get_one(request: Request) -> Response:
        reject_unsupported_preconditions(request, *_EVALUATED)
        product_id = text.parse_path_id("product", request.path_params["id"])
        query = parse_query(request, ProductQuery) if request.scope["query_string"] else _DEFAULT_QUERY
        if query.stock:
            access.PRODUCTS["GET /api/product/{id}?stock=true"].require(identity.get())
        async with admission(request, 1):
            return await respond_with_one(request, product_id, query)

    async def respond_with_one(request: Request, product_id: UUID, query: ProductQuery) -> Response:
        found = await find(product_id)
        if found is None:
            raise NotFound("product", product_id)
        versions = parse_if_match(read_header(request, b"if-match"))
        if versions is not None and found.version not in versions:
            raise ProductModified(product_id, found.version)
        [product] = await service.look_up(deps, [found], availability=query.availability, stock=query.stock)
        tag = representation_tag(product, availability=query.availability)
        headers = {"ETag": tag, **_cache_headers(stock=query.stock)}
        known_tags = read_header(request, b"if-none-match")
        if known_tags is not None:
            # Only tags of codings that the client accepts, because it would get one of these now.
            tags = [
                tag,
                *(compression.etag_for_coding(tag, coding) for coding in compression.accepted_codings(request)),
            ]
            if known := find_if_none_match(known_tags, tags):
                vary = ", ".join(filter(None, (headers.get("Vary"), "accept-encoding")))
                return Response(status_code=304, headers={**headers, "ETag": known, "Vary": vary})
        return json_response(product, 200, headers)

    async def read_page(query: ListQuery) -> bytes:
        page = await _page(deps, query)
        items = await service.look_up(deps, page.items, availability=query.availability, stock=query.stock)
        return msgspec.json.encode(replace(page, items=items))

    # Most visitors read the same few pages. Concurrent requests for the same page share one query.
    shared_pages = SharedReads(read_page, name="products.get-page")

    def weigh(query: ListQuery) -> int:
        """Return how many products are read if the page is requested now. One that shares a read counts as one."""
        return 1 if _is_shared(query) and shared_pages.has_pending(query) else _weigh(query)

    async def get_page(request: Request) -> Response:
        reject_unsupported_preconditions(request)
        query = parse_query(request, ListQuery)
        if query.stock:
            access.PRODUCTS["GET /api/product?stock=true"].require(identity.get())
        async with admission(request, weigh(query)) as ticket:
            # If it has waited, the read that it would have shared may have begun.
            await ticket.increase_weight(weigh(query))
            body = await (shared_pages(query) if _is_shared(query) else read_page(query))
            return json_response(body, 200, _cache_headers(stock=query.stock))

    async def post(request: Request) -> Response:
        parse_query(request, NoQuery)
        reject_unsupported_preconditions(request)
        key = idempotency_key(request)
        body = await read_body(request, _NEW, FIELD_CHECKS)
        caller_key = None if key is None else CallerKey(caller(request), key, identity.get().signed_in)
        creation = await service.create(deps, body.to_draft(body.stock), caller_key)
        headers = {"Location": f"/api/product/{creation.product.id}"}
        if creation.replayed:
            headers["Idempotency-Replayed"] = "true"
        return _product_response(creation.product, 200 if creation.replayed else 201, headers)

    async def put(request: Request) -> Response:
        parse_query(request, NoQuery)
        versions = parse_if_match(read_header(request, b"if-match"))
        body = await read_body(request, _CHANGED, FIELD_CHECKS)
        product_id = text.parse_uuid("id", body.id)
        await _check_absence(request, deps, product_id)
        draft = body.to_draft(None if body.stock is UNSET else body.stock)
        delivery = None if body.delivery is UNSET else body.delivery
        if draft.stock is not None and delivery is not None:
            raise BadInput("delivery", "cannot be combined with `stock`")
        try:
            return _product_response(await service.replace_product(deps, product_id, draft, versions, delivery))
        except (Unavailable, domain.DeliveryRefused) as e:
            response = problem_response(e)
            if tag := e.extension_members().get("etag"):
                response.headers["ETag"] = tag
            return response

    async def delete(request: Request) -> Response:
        parse_query(request, NoQuery)
        product_id = text.parse_path_id("product", request.path_params["id"])
        versions = parse_if_match(read_header(request, b"if-match"))
        await _check_absence(request, deps, product_id)
        await service.delete(deps, product_id, versions)
        return Response(status_code=204)

    return {
        "GET /api/product/{id}": get_one,
        "GET /api/product": get_page,
        "POST /api/product": post,
        "PUT /api/product": put,
        "DELETE /api/product/{id}": delete,
    }


def _is_shared(query: ListQuery) -> bool:
    # Lists of ids differ from caller to caller, and not everybody may see the stock.
    return query.ids is None and not query.stock


def _weigh(query: ListQuery) -> int:
    """Return the number of products that the page may have."""
    return query.limit if query.ids is None else sum(1 + ids.count(",") for ids in query.ids)


_P = TypeVar("_P", bound=Struct)


async def _page(deps: Deps, query: ListQuery) -> ProductPage:
    if query.ids is not None:
        return await _page_of_ids(deps, query)
    if query.q is not None:
        return await _page_of_search(deps, query, query.q)
    return await _page_of_list(deps, query)


async def _page_of_list(deps: Deps, query: ListQuery) -> ProductPage:
    sort = query.sort or domain.DEFAULT_SORT
    position_type = domain.position_type(sort)
    definition = ("products", sort, None)
    after = _read_after(query, position_type, definition)
    page = await deps.products.get_page(PageQuery(query.limit, query.offset, sort, after))
    following = write_cursor(position_type.of(page.products[-1]), *definition) if page.has_next else None
    return ProductPage(page.products, page.total, query.limit, query.offset, True, following)


async def _page_of_search(deps: Deps, query: ListQuery, words: str) -> ProductPage:
    definition = ("products", query.sort, domain.validate_search(words))
    search = SearchQuery(words, query.limit, query.offset, query.sort)
    search = replace(search, after=_read_after(query, search.position_type, definition))
    page = await deps.search.get_page(search)
    following = None if page.end is None else write_cursor(page.end, *definition)
    return ProductPage(
        page.products, page.total, query.limit, query.offset, page.total_exact, following, suggested=page.suggested
    )


def _read_after(query: ListQuery, position_type: type[_P], definition: tuple[str | None, ...]) -> _P | None:
    if query.after is None:
        return None
    if query.offset:
        raise BadInput("offset", "cannot be combined with `after`")
    return read_cursor(query.after, position_type, *definition)


async def _page_of_ids(deps: Deps, query: ListQuery) -> ProductPage:
    assert query.ids is not None
    # Generated clients may send declared defaults explicitly.
    sort = None if query.sort == domain.DEFAULT_SORT else query.sort
    for name, value in (("q", query.q), ("sort", sort), ("offset", query.offset or None), ("after", query.after)):
        if value is not None:
            raise BadInput(name, "cannot be combined with `ids`")
    product_ids = domain.parse_ids(query.ids)
    products = [product for product in await deps.products.get_many(product_ids) if product]
    return ProductPage(products, len(products), len(product_ids), 0, True, None)


def _product_response(product: Product, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    tag = representation_tag(product, availability=True)
    return json_response(product, status, {"ETag": tag, **(headers or {})})


async def _check_absence(request: Request, deps: Deps, product_id: UUID) -> None:
    """Evaluate `If-None-Match: *` for a method that changes a product. Raises BadInput for other conditions."""
    reject_unsupported_preconditions(request, *_EVALUATED)
    tags = read_header(request, b"if-none-match")
    if tags is None:
        return
    if tags.strip() != b"*":
        raise BadInput("If-None-Match", f"must be * with {request.method}; use If-Match to name versions")
    if await deps.products.get(product_id) is None:
        raise NotFound("product", product_id)
    raise ProductExists(product_id)


# Caches may store the response, but must revalidate it each time.
_REVALIDATE = {"Cache-Control": "no-cache"}
# Only private caches may store a response with the stock, and must not use it with another token or without one.
_REVALIDATE_PRIVATELY = {"Cache-Control": "private, no-cache", "Vary": "authorization"}


def _cache_headers(*, stock: bool) -> dict[str, str]:
    return _REVALIDATE_PRIVATELY if stock else _REVALIDATE
