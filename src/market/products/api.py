"""The REST edge of products: five calls."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from market.contracts.money import PriceText
from market.kit import text
from market.kit.batching import Batcher
from market.kit.errors import BadInput, NotFound
from market.kit.http.edge import Endpoint
from market.kit.http.requests import idempotency_key, parse_query, read_body, read_header
from market.kit.http.responses import json_response
from market.products import domain, etag, service, store
from market.products.domain import Draft, Product, Sort, Stored
from market.products.service import Shop

_NO_CONTROLS = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"}
Name = Annotated[str, Meta(min_length=1, max_length=200, extra_json_schema=_NO_CONTROLS)]
Description = Annotated[
    str,
    Meta(
        max_length=10_000, extra_json_schema={"pattern": r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029]*$"}
    ),
]
Currency = Annotated[
    str, Meta(min_length=3, max_length=3, description="ISO 4217", extra_json_schema={"enum": sorted(domain.CURRENCIES)})
]
ImageUrl = Annotated[
    str,
    Meta(
        max_length=domain.MAX_URL,
        description="an https URL, or a path that begins with one slash",
        extra_json_schema={
            "pattern": r"^(https://[A-Za-z0-9.-]+(/[!#-;=?-\[\]-~]*)?|/([!#-.0-;=?-\[\]-~][!#-;=?-\[\]-~]*)?)$"
        },
    ),
]
Stock = Annotated[int, Meta(ge=0, le=domain.MAX_STOCK)]
Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Ignored = Annotated[Any, Meta(description="read-only: accepted and ignored")]


class NewProduct(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of POST."""

    name: Name
    description: Description
    price: PriceText
    currency: Currency
    image_url: ImageUrl | None = None
    stock: Stock = 0

    def draft(self) -> Draft:
        return domain.draft(
            name=self.name,
            description=self.description,
            price=self.price,
            currency=self.currency,
            image_url=self.image_url,
            stock=self.stock,
        )


class ChangedProduct(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of PUT: the id and every writable field; what GET gave can be sent back."""

    id: Id
    name: Name
    description: Description
    price: PriceText
    currency: Currency
    image_url: ImageUrl | None
    stock: Stock | UnsetType = UNSET
    available: Ignored = None
    created_at: Ignored = None
    updated_at: Ignored = None

    def draft(self) -> Draft:
        return domain.draft(
            name=self.name,
            description=self.description,
            price=self.price,
            currency=self.currency,
            image_url=self.image_url,
            stock=None if self.stock is UNSET else self.stock,
        )


class ProductPage(Struct, frozen=True):
    items: list[Product]
    total: int
    limit: int
    offset: int


class NoQuery(Struct, forbid_unknown_fields=True):
    """The calls that take no parameters."""


class OneQuery(Struct, forbid_unknown_fields=True):
    availability: bool = True


class ListQuery(Struct, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    offset: Annotated[int, Meta(ge=0, le=2_147_483_647)] = 0
    q: str | None = None
    ids: str | None = None
    sort: Sort | None = None
    availability: bool = True


_NEW = msgspec.json.Decoder(NewProduct)
_CHANGED = msgspec.json.Decoder(ChangedProduct)
_ALL = OneQuery()


def routes(shop: Shop) -> dict[str, Endpoint]:
    """The endpoints by method and path."""
    # Products read at once are one query; `fold`: the same product is read once.
    find: Batcher[UUID, Stored | None] = Batcher(
        lambda ids: store.find(shop.db, ids), name="products.find", max_batch_size=128, max_concurrency=2, dedupe=True
    )

    async def get_one(request: Request) -> Response:
        id = text.parse_path_id("product", request.path_params["id"])
        wanted = parse_query(request, OneQuery) if request.scope["query_string"] else _ALL
        stored = await find(id)
        if stored is None:
            raise NotFound("product", id)
        seen = read_header(request, b"if-none-match")
        if seen is not None and etag.seen(seen, stored.version):
            return Response(status_code=304, headers={"ETag": etag.write(stored.version)})
        return _answer(await service.looked_up(shop, stored) if wanted.availability else stored)

    async def get_page(request: Request) -> Response:
        wanted = parse_query(request, ListQuery)
        if wanted.ids is not None:
            page = await by_ids(wanted)
        else:
            q = None if wanted.q is None else domain.parse_query(wanted.q)
            part = store.Page(wanted.limit, wanted.offset, wanted.sort or "-created_at", q)
            items, total = await store.list_page(shop.db, part)
            page = ProductPage(items, total, wanted.limit, wanted.offset)
        if wanted.availability:
            known = await shop.availability.of([str(item.id) for item in page.items])
            page = replace(page, items=[replace(item, available=known.get(str(item.id))) for item in page.items])
        return json_response(page)

    async def by_ids(wanted: ListQuery) -> ProductPage:
        assert wanted.ids is not None
        for name, given in (("q", wanted.q), ("sort", wanted.sort), ("offset", wanted.offset or None)):
            if given is not None:
                raise BadInput(name, "does not go together with ids")
        ids = domain.parse_ids(wanted.ids)
        found = [stored.product for stored in await store.find(shop.db, ids) if stored]
        return ProductPage(found, len(found), len(ids), 0)

    async def post(request: Request) -> Response:
        parse_query(request, NoQuery)
        key = idempotency_key(request)
        stored, replayed = await service.create(shop, (await read_body(request, _NEW)).draft(), key)
        headers = {"Location": f"/api/product/{stored.product.id}"}
        if replayed:
            headers["Idempotency-Replayed"] = "true"
        return _answer(stored, 200 if replayed else 201, headers)

    async def put(request: Request) -> Response:
        parse_query(request, NoQuery)
        versions = etag.matching(read_header(request, b"if-match"))
        body = await read_body(request, _CHANGED)
        return _answer(await service.change(shop, text.parse_uuid("id", body.id), body.draft(), versions))

    async def delete(request: Request) -> Response:
        parse_query(request, NoQuery)
        await service.remove(shop, text.parse_path_id("product", request.path_params["id"]))
        return Response(status_code=204)

    return {
        "GET /api/product/{id}": get_one,
        "GET /api/product": get_page,
        "POST /api/product": post,
        "PUT /api/product": put,
        "DELETE /api/product/{id}": delete,
    }


def _answer(stored: Stored, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return json_response(stored.product, status, {"ETag": etag.write(stored.version), **(headers or {})})
